"""Importance to first order: against a little pruning by hand, the ranks of real pruning, and an image that stays what it is."""

from dataclasses import replace

import host_inprocess
import pytest
import torch
from attention_loom.core.attach import record_of
from attention_loom.core.errors import LoomError
from attention_loom.core.inspect import slope as slope_module
from attention_loom.core.inspect.importance import FAST
from attention_loom.core.inspect.summary import text, top_heads
from attention_loom.core.methods.prune_part import PARTS
from inspect_runs import inspect, of_part, scores, spearman


@pytest.mark.host
@pytest.mark.parametrize("prune", ["mean", "identity"])
def test_fast_ranks_heads_as_pruning_does(prune, monkeypatch):
    """Two double and six single blocks of four heads."""
    host_inprocess.import_host()
    import tiny_models

    small = tiny_models.RECIPES["flux"]
    deep = replace(small, unet=small.unet | {"depth": 2, "depth_single_blocks": 6, "num_heads": 4, "hidden_size": 128})
    monkeypatch.setitem(tiny_models.RECIPES, "flux_deep", deep)
    full, *_ = inspect("flux_deep", prune=prune)
    fast, *_ = inspect("flux_deep", mode="fast", prune=prune)
    measured, estimated = scores(full, "importance"), scores(fast, FAST)
    assert len(measured) == 32
    assert spearman(measured, estimated) > 0.7
    assert estimated.sum() == pytest.approx(measured.sum(), rel=0.25), "the same number, estimated"


@pytest.mark.host
@pytest.mark.parametrize("prune", ["mean", "identity", "zero", "text_image"])
def test_fast_is_the_limit_of_a_little_pruning(prune):
    """Every head a hundredth of the way, through an override of one's own, seen along the same random directions."""
    host_inprocess.import_host()
    import comfy.samplers

    little, changed = 0.01, {}

    def keep(model):
        def by_hand(args):
            for layer, head in [(n, h) for n in range(3) for h in range(2)] if not changed else ():
                count = iter(range(99))

                def override(func, q, k, v, heads, *rest, **kw):
                    out = func(q, k, v, heads, *rest, **kw).clone()
                    if next(count) == layer:  # noqa: B023
                        width, mine = v.shape[-1], v[:, head]  # noqa: B023
                        part = out[..., head * width : (head + 1) * width]  # noqa: B023
                        if prune in PARTS:
                            there = part - of_part(prune, q[:, head], k[:, head], mine)  # noqa: B023
                        else:
                            there = {"identity": mine, "mean": mine.mean(1, keepdim=True), "zero": torch.zeros_like(mine)}[prune]
                        part += little * (there - part)
                    return out

                options = dict(args["model_options"]) | {"transformer_options": {"optimized_attention_override": override}}
                (pruned,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
                step = (pruned - args["cond_denoised"]) / little
                along = torch.stack([(slope_module._direction(i, step) * step).sum() for i in range(slope_module.DIRECTIONS)])
                changed[layer, head] = float(along.square().mean().sqrt() / args["cond_denoised"].norm())
            return args["denoised"]

        model.set_model_sampler_post_cfg_function(by_hand)
        return model

    asked = {"part": prune} if prune in PARTS else {}
    study, *_ = inspect("flux", mode="fast", prune="mean" if asked else prune, percents=(0.0,), after=keep, asked=asked)
    for at, value in changed.items():
        assert study.pruned[0][at][FAST] == pytest.approx(value, rel=0.03, abs=1e-4), at


@pytest.mark.host
@pytest.mark.parametrize(("name", "latent"), [("flux", (2, 16, 4, 6)), ("sd3", None), ("wan", None), ("lumina2", None), ("svd", None)])
def test_fast_leaves_the_image_bit_identical_and_reaches_every_head(name, latent):
    from tiny_models import sample, tiny

    study, out, model, patched = inspect(name, mode="fast", latent=latent, percents=(0.0, 0.5), asked={"spare_memory": name == "flux"})
    with torch.inference_mode():
        assert torch.equal(out, sample(tiny(name).patcher, model))
    heads = {(p.layer, h) for p in study.places() for h in range(model.facts.heads)}
    assert [set(pruned) for pruned in study.pruned.values()] == [heads] * 2
    assert study.evaluations == 2 == record_of(patched).last.passes["Attention Inspector, first order"]
    assert (scores(study, FAST) > 0).all()
    assert f"importance: {len(heads)} heads to first order in 2 evaluations" in text(study, FAST, top_heads(study, FAST, 3))


@pytest.mark.host
def test_fast_means_over_pictures_what_each_has_alone():
    """Batch rows keep gates of their own: two pictures give the mean of their scores, not the score of their sum."""

    def score(squares):
        return slope_module._scores({0: squares})[0, 0][FAST]

    gates = {0: torch.zeros(2, 1, requires_grad=True)}
    y = torch.tensor([[3.0], [-4.0]]) * gates[0]
    found = slope_module._squares(y.expand(2, 64), gates)[0]
    assert found.flatten().tolist() == pytest.approx([9 * 64, 16 * 64], rel=0.6)
    assert score(torch.tensor([[2.0], [4.0]])) == 3.0


@pytest.mark.host
def test_a_prompt_with_hooks_has_no_gradient():
    with pytest.raises(LoomError, match=r"'fast' cannot take a gradient through a prompt that carries hooks"):
        slope_module.slopes({"model": None, "sigma": torch.ones(1), "cond": [{"hooks": object()}]}, None, False)
