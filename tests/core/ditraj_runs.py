"""What the tests of DiTraj share: paths, texts, one call of attention and what is computed from it by hand."""

import tiny_models
import torch
from attention_loom.core.call import AttentionCall, Block, Span, TokenLayout
from attention_loom.core.families.base import RopePlane
from attention_loom.core.methods.ditraj import DiTraj
from attention_loom.core.weave import Draft

OWNER = DiTraj.owner
LATENT = {"wan": (1, 16, 3, 8, 12), "hunyuan_video": (1, 16, 3, 8, 12), "ltx": (1, 128, 3, 4, 6), "cosmos_predict2": (1, 16, 3, 8, 12), "cosmos": (1, 16, 3, 8, 12)}
LATENT |= dict.fromkeys(tiny_models.here("cogvideo", "kandinsky5"), (1, 16, 3, 8, 12)) | dict.fromkeys(tiny_models.here("cogvideo_15"), (1, 16, 5, 8, 12))
WIDTH = dict.fromkeys(LATENT, 48) | {"wan": 4096}
GRID = (3, 4, 6)
PATH = torch.tensor([[[0, 0, 2 / 6, 2 / 4], [2 / 6, 1 / 4, 5 / 6, 3 / 4], [4 / 6, 2 / 4, 1, 1]]], dtype=torch.float64)


def text(seed, width=48, n=5):
    return torch.randn(1, n, width, generator=torch.Generator().manual_seed(seed))


def method(name="wan", path=PATH, **settings):
    width = WIDTH[name]
    fronts = tuple(text(2 + i, width, 4) for i in range(len(path)))
    return DiTraj(boxes=path, background=text(1, width, 3), foregrounds=fronts, **settings)


H, D = 2, 12
VIDEO = Span("video", 72, GRID)
PLANE = RopePlane(torch.cat([torch.linspace(0, 1, 12).reshape(2, 1, 6).double()]))


def call_of(kind, rows=(0,), batch=None, spans_q=(VIDEO,), spans_k=None, progress=0.0, steps=10, block=None, **more):
    q = TokenLayout(spans_q)
    k = q if spans_k is None else TokenLayout(spans_k)
    cpu, made = torch.device("cpu"), dict(plane=PLANE) | more
    return AttentionCall("Wan", block or Block("block", 0), kind, H, D, q, k, 1.0, progress, rows, batch or len(rows), cpu, torch.float64, steps=steps, **made)


def tensors(n, m=None, batch=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, H, count, D, generator=g, dtype=torch.float64) for count in (n, m or n, m or n))


def softmax(q, k, v, mask=None):
    logits = q @ k.transpose(-1, -2) / D**0.5
    return torch.softmax(logits if mask is None else logits.masked_fill(~mask, float("-inf")), -1) @ v


def draft_of(m, call):
    draft = Draft(call)
    assert m.wants(call)
    m.contribute(call, draft)
    return draft
