"""One scene and two references for IR-Diffusion's tests: their masks, the method on them, one attention call and the move of tokens written out.

The grid is 4 x 6 tokens, masks are 32 x 48. Needs no host; ``batch`` makes a tiny real model of a family with the pictures in one batch.
"""

import tiny_models
import torch
from attention_loom.core.call import AttentionCall, Block, Seen, Span, TokenLayout
from attention_loom.core.concepts import Concept, Located
from attention_loom.core.families.base import RopePlane
from attention_loom.core.methods.ir_diffusion import IRDiffusion

OWNER = IRDiffusion.owner
H, D = 2, 12
Y, X = 4, 6


def box(top, bottom, left, right, y=32, x=48):
    mask = torch.zeros(y, x)
    mask[round(top * y) : round(bottom * y), round(left * x) : round(right * x)] = 1
    return mask


SCENE = torch.stack([box(0.25, 1, 0, 0.34), box(0, 0.75, 0.5, 1)])[None]
REFERENCES = torch.stack([box(0.25, 0.75, 0.34, 0.84), box(0, 1, 0.17, 0.67)])


def method(**settings):
    return IRDiffusion(**dict(scene=SCENE, references=REFERENCES, dropout=0.0) | settings)


def slow_reposition(reference, scene):
    """The spec's map, token by token."""
    ys, xs = reference.nonzero().T
    rt, rb, rl, rr = int(ys.min()), int(ys.max()), int(xs.min()), int(xs.max())
    ys, xs = scene.nonzero().T
    tt, tb, tl, tr = int(ys.min()), int(ys.max()), int(xs.min()), int(xs.max())
    out = []
    for y in range(tt, tb + 1):
        for x in range(tl, tr + 1):
            sy, sx = rt + (y - tt) * (rb - rt + 1) // (tb - tt + 1), rl + (x - tl) * (rr - rl + 1) // (tr - tl + 1)
            if reference[sy, sx]:
                out.append((sy * reference.shape[1] + sx, y - sy, x - sx))
    return out


# --- one call ---------------------------------------------------------------------------------------------------------

IMAGE = Span("image", Y * X, (1, Y, X))
PLANE = RopePlane(torch.linspace(0, 1, 12).reshape(2, 1, 6).double())


def softmax(q, k, v, mask=None):
    logits = q @ k.transpose(-1, -2) / D**0.5
    return torch.softmax(logits if mask is None else logits.masked_fill(~mask, float("-inf")), -1) @ v


def tensors(batch, n, m=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, H, count, D, generator=g, dtype=torch.float64) for count in (n, m or n, m or n))


def call_of(kind, qkv, rows=(0,), text=0, progress=0.0, steps=10, ordinal=8, spans_k=None, **more):
    spans = (Span("text", text), IMAGE) if text else (IMAGE,)
    q = TokenLayout(spans)
    k = q if spans_k is None else TokenLayout(spans_k)
    made = dict(family="SD3", block=Block("double", ordinal, ordinal, 10)) | more
    cpu = torch.device("cpu")
    return AttentionCall(
        kind=kind, heads=H, width=D, q=q, k=k, sigma=1.0, progress=progress, rows=rows, batch=len(qkv[0]), device=cpu, dtype=torch.float64, steps=steps,
        seen=Seen(*qkv, None, None, softmax), **made,
    )  # fmt: skip


WORDS = Located((Concept("a", (1, 2), ("a", "b")), Concept("c", (4,), ("c",))), (1, 2, 3, 4), 6)

# --- whole models -----------------------------------------------------------------------------------------------------

LATENT = {"sd15": (3, 4, 8, 12), "sd3": (3, 16, 8, 12), "flux": (3, 16, 8, 12), "qwen_image": (3, 16, 1, 8, 12), "sdxl": (3, 4, 16, 24)}


def batch(name, targets=1):
    """A tiny model with two references and scenes in one batch, every row with its own prompt."""
    model = tiny_models.tiny(name, latent=(2 + targets, *LATENT[name][1:]))
    g = torch.Generator().manual_seed(5)

    def rows(conditioning):
        text, facts = conditioning[0]
        made = {key: torch.randn(2 + targets, *x.shape[1:], generator=g) for key, x in facts.items() if key == "pooled_output"}
        return [[torch.randn(2 + targets, *text.shape[1:], generator=g), facts | made]]

    return model._replace(positive=rows(model.positive), negative=rows(model.negative))
