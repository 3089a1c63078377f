"""Runs of the Attention Inspector that measure importance, on tiny models, and what is asked of their findings."""

import host_inprocess
import torch
from attention_loom.core.attach import attach
from attention_loom.core.inspect.importance import changes
from attention_loom.core.inspect.prune import install
from attention_loom.core.inspect.study import Collection
from attention_loom.core.methods.inspector import Inspector


def inspect(name="flux", mode="full", prune="mean", percents=(0.0, 0.5), after=lambda m: m, how=None, latent=None, asked=None, **sampling):
    """(study, sampled latent, the tiny model, the patched one)"""
    host_inprocess.import_host()
    from tiny_models import sample, tiny

    with torch.inference_mode():
        model = tiny(name, latent=latent)
        method = Inspector(percents=percents, into=Collection(), **how or {})
        patched = after(install(attach(model.patcher, method), method, mode, prune, **asked or {}))
        out = sample(patched, model, **sampling)
    return method.into.last, out, model, patched


def by_hand(change, at=1):
    """Head 1 of attention call `at` of an evaluation (FLUX makes three) becomes change(its result, q, k, v), each [B, N, D], by an override of one's own.

    Returns a dict that holds `changes` once a model sampled that went through the second: {metric: value} of the first step.
    """
    seen = {}

    def keep(model):
        def measure(args):
            import comfy.samplers

            if not seen:
                count = iter(range(99))

                def override(func, q, k, v, heads, *rest, **kw):
                    out = func(q, k, v, heads, *rest, **kw).clone()
                    if next(count) == at:
                        q, k, v = (x if x.ndim == 4 else x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
                        width = v.shape[-1]
                        head = slice(width, 2 * width)
                        out[..., head] = change(out[..., head], q[:, 1], k[:, 1], v[:, 1])
                    return out

                options = dict(args["model_options"]) | {"transformer_options": {"optimized_attention_override": override}}
                (pruned,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
                seen.update(changes(args["cond_denoised"], pruned, args["input"]))
            return args["denoised"]

        model.set_model_sampler_post_cfg_function(measure)
        return model

    return seen, keep


def scores(study, metric):
    """Mean over the steps, heads in order."""
    heads = sorted(next(iter(study.pruned.values())))
    return torch.tensor([[pruned[at][metric] for at in heads] for pruned in study.pruned.values()]).mean(0)


def spearman(a, b):
    return float(torch.corrcoef(torch.stack([v.argsort().argsort().double() for v in (a, b)]))[0, 1])


KINDS = {"text": slice(0, 5), "image": slice(5, 11)}
"""Of the tiny FLUX."""


def of_part(part, q, k, v):
    """What a part adds to one head's result [B, N, D], by an explicit softmax."""
    rows, keys = (KINDS[side] for side in part.split("_"))
    a = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    out = torch.zeros_like(v)
    out[:, rows] = a[:, rows, keys] @ v[:, keys]
    return out
