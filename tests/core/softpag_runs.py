"""SoftPAG on tiny models: the method from a line of settings, what the backend executed, and the guidance written once more by hand.

``by_hand(patcher, scale, lambda q, k, v, text: explicit(q, k, v, text, target, rows, u))`` is what the method must give: attention as fp64 matrices, in an
extra pass of its own.
"""

import torch
from attention_loom.core import woven
from attention_loom.core.guidance import EXTRA, Guidance
from attention_loom.core.heads import HeadSet
from attention_loom.core.methods.softpag import SoftPAG
from attention_loom.core.schedule import Window


def softpag(heads="all", scale=3.0, u=0.5, **more):
    window, target, rows = more.pop("window", Window()), more.pop("target", "identity"), more.pop("rows", "all")
    return SoftPAG(HeadSet.parse(heads), u, target, rows, guidance=Guidance(scale, **more), window=window)


def counted(patcher):
    """A clone that counts model calls: (clone, list of cond_or_uncond and whether the call is an extra one)."""
    import comfy.patcher_extension as extension

    seen = []

    def wrap(executor, *args, **kwargs):
        options = args[5]
        seen.append((tuple(options["cond_or_uncond"]), EXTRA in options))
        return executor(*args, **kwargs)

    clone = patcher.clone()
    clone.add_wrapper_with_key(extension.WrappersMP.APPLY_MODEL, "test", wrap)
    return clone, seen


def watched(monkeypatch):
    """Every call our backend executed: (q, k, v, plan, stock result, our result)."""
    seen, original = [], woven.attend

    def attend(q, k, v, plan, **more):
        out = original(q, k, v, plan, **more)
        seen.append((q, k, v, plan, more["dense"](q, k, v), out))
        return out

    monkeypatch.setattr(woven, "attend", attend)
    return seen


def explicit(q, k, v, text, target, rows, u):
    """The attention with A' as a matrix, fp64; text: tokens in front."""
    n, d = q.shape[-2:]
    s = q.double() @ k.double().transpose(-1, -2) / d**0.5
    a, eye = s.softmax(-1), torch.eye(n, dtype=torch.float64)
    mixed = torch.arange(n) >= (0 if rows == "all" else text)
    if rows == "image_image":
        simple = s.masked_fill(~(eye.bool() | (torch.arange(n) < text)), float("-inf")).softmax(-1)
    elif target == "identity":
        simple = eye.expand_as(a)
    elif target == "uniform":
        simple = torch.full_like(a, 1 / n)
    elif target == "max":
        simple = torch.nn.functional.one_hot(s.argmax(-1), n).double()
    else:
        one = q.double()[..., mixed, :].mean(-2, keepdim=True)
        simple = (one @ k.double().transpose(-1, -2) / d**0.5).softmax(-1).expand_as(a)
    weights = torch.where(mixed[:, None], (1 - u) * a + u * simple, a)
    return (weights @ v.double()).float()


def by_hand(patcher, scale, change, text=5):
    """Guidance written once more: an override that computes ``change(q, k, v, text)`` in an extra pass of its own."""
    import comfy.samplers

    def override(func, q, k, v, heads, *args, **kwargs):
        def split(x):
            return x if kwargs.get("skip_reshape") else x.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2)

        q, k, v = split(q), split(k), split(v)
        return change(q, k, v, text if q.shape[2] > 6 else 0).transpose(1, 2).flatten(2)

    def post_cfg(args):
        options = dict(args["model_options"])
        options["transformer_options"] = dict(options["transformer_options"]) | {"optimized_attention_override": override}
        (extra,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        return args["denoised"] + scale * (args["cond_denoised"] - extra)

    clone = patcher.clone()
    clone.set_model_sampler_post_cfg_function(post_cfg)
    return clone
