"""Importance by pruning: metrics in closed form, what is pruned against a hand-written override, and an image that stays what it is."""

import json
from dataclasses import replace

import host_inprocess
import pytest
import torch
from attention_loom.core.attach import attach, record_of
from attention_loom.core.call import AttentionCall, Block, Seen, Span, TokenLayout
from attention_loom.core.errors import LoomError
from attention_loom.core.families.base import number
from attention_loom.core.inspect import prune as prune_module
from attention_loom.core.inspect import slope as slope_module
from attention_loom.core.inspect.gallery import Look, draw
from attention_loom.core.inspect.importance import FAST, GUIDANCE, PRUNED, by_head, changes, guidance_change, ranked
from attention_loom.core.inspect.prune import MOST, Probes, install
from attention_loom.core.inspect.study import Collection
from attention_loom.core.inspect.summary import as_json, heads_text, text, top_heads
from attention_loom.core.methods.inspector import Inspector
from attention_loom.core.methods.prune import Pruning
from attention_loom.core.methods.prune_part import PARTS, share, sides
from attention_loom.core.schedule import BlockSelection
from attention_loom.core.weave import Draft

# --- the metrics ----------------------------------------------------------------------------------------------------------


def test_changes_in_closed_form():
    g = torch.Generator().manual_seed(0)
    d, x = torch.randn(2, 4, 8, 12, generator=g), torch.randn(2, 4, 8, 12, generator=g)
    assert all(abs(v) < 1e-6 for v in changes(d, d, x).values())
    twice = changes(d, 2 * d, torch.zeros_like(x))
    assert twice["importance"] == pytest.approx(1.0)
    assert twice["importance low"] == pytest.approx(1.0, rel=1e-5)
    assert twice["importance high"] == pytest.approx(1.0, rel=1e-5)
    assert twice["importance angle"] == pytest.approx(0.0, abs=1e-6), "noise of the same direction"
    assert changes(d, -d, torch.zeros_like(x))["importance angle"] == pytest.approx(2.0)
    flat, checks = torch.ones_like(d), (torch.arange(8)[:, None] + torch.arange(12)) % 2 * 2.0 - 1
    low, high = changes(d, d + flat, x), changes(d, d + checks, x)
    assert low["importance high"] < 1e-5 < low["importance low"]
    assert high["importance low"] < 1e-5 < high["importance high"]
    video = torch.randn(1, 4, 3, 8, 12, generator=g)
    assert changes(video, 2 * video, video)["importance high"] == pytest.approx(1.0, rel=1e-5)


def test_ranks_share_ties_and_means_skip_what_was_not_pruned():
    found = ranked({(0, 0): {"importance": 1.0}, (0, 1): {"importance": 3.0}, (1, 0): {"importance": 1.0}, (1, 1): {"importance": 2.0}})
    assert [found[at]["importance rank"] for at in found] == [pytest.approx(1 / 6), 1.0, pytest.approx(1 / 6), pytest.approx(2 / 3)]
    assert ranked({(0, 0): {"importance": 1.0}})[0, 0]["importance rank"] == 0.0
    one = dict.fromkeys(PRUNED, 1.0)
    means = by_head({0: {(2, 0): one}, 3: {(2, 0): dict.fromkeys(PRUNED, 3.0), (2, 2): one}}, 2, 3)
    assert means["importance"].tolist()[::2] == [2.0, 1.0]
    assert means["importance"][1].isnan()
    assert by_head({0: {(2, 0): one}}, 1, 3) == {}


def test_evaluations_are_counted_before():
    sd3 = tuple((b.ordinal, 24) for b in number({"double": 24}))
    assert Probes(sd3, 3, "full").evaluations == 3 * 576
    assert Probes(sd3, 3, "screen").evaluations == 24 + 3 * 6 * 24


# --- on the host's models ---------------------------------------------------------------------------------------------------


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


@pytest.mark.host
@pytest.mark.parametrize(
    ("name", "latent", "sampling"),
    [("flux", (2, 16, 4, 6), {}), ("flux", None, {"cfg": 1.0, "sampler": "heun"}), ("sd3", None, {}), ("wan", None, {"sampler": "euler_ancestral"})],
    ids=["flux-batch2", "flux-cfg1-heun", "sd3", "wan-ancestral"],
)
def test_the_image_is_bit_identical_and_every_head_is_pruned_once_per_step(name, latent, sampling):
    from tiny_models import sample, tiny

    study, out, model, patched = inspect(name, latent=latent, **sampling)
    with torch.inference_mode():
        assert torch.equal(out, sample(tiny(name).patcher, model, **sampling))
    heads = {(p.layer, h) for p in study.places() for h in range(model.facts.heads)}
    assert set(study.pruned) == {0, 1}
    assert all(set(pruned) == heads for pruned in study.pruned.values())
    assert study.evaluations == 2 * len(heads) == record_of(patched).last.passes[Pruning.owner]
    for place in study.places():
        for metric in PRUNED:
            values = study.mean(place).scalars[metric]
            assert bool(values.isfinite().all())
        assert (study.mean(place).scalars["importance"] > 0).all()


@pytest.mark.host
@pytest.mark.parametrize("prune", ["mean", "identity", "zero"])
def test_a_pruned_head_is_what_an_override_of_ones_own_makes(prune):
    """FLUX: three calls per evaluation, head 1 of the second one replaced by hand."""
    host_inprocess.import_host()
    import comfy.samplers

    seen = {}

    def keep(model):
        def by_hand(args):
            if not seen:
                count = iter(range(99))

                def override(func, q, k, v, heads, *rest, **kw):
                    out = func(q, k, v, heads, *rest, **kw).clone()
                    if next(count) == 1:
                        width = v.shape[-1]
                        out[..., width : 2 * width] = {"identity": v[:, 1], "mean": v[:, 1].mean(1, keepdim=True), "zero": 0.0}[prune]
                    return out

                options = dict(args["model_options"]) | {"transformer_options": {"optimized_attention_override": override}}
                (pruned,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
                seen.update(changes(args["cond_denoised"], pruned, args["input"]))
            return args["denoised"]

        model.set_model_sampler_post_cfg_function(by_hand)
        return model

    study, *_ = inspect("flux", prune=prune, percents=(0.0,), after=keep)
    assert set(seen) == {*PRUNED} - {"importance rank"}
    for metric, value in seen.items():
        assert study.pruned[0][1, 1][metric] == pytest.approx(value, rel=1e-3, abs=1e-7), metric


@pytest.mark.host
def test_screening_prunes_heads_of_the_layers_that_matter_most(monkeypatch):
    monkeypatch.setattr(prune_module, "LAYERS", 1)
    study, *_ = inspect("flux", mode="screen")
    assert sorted(study.layer_importance) == [0, 1, 2]
    top = max(study.layer_importance, key=study.layer_importance.get)
    assert [set(pruned) for pruned in study.pruned.values()] == [{(top, 0), (top, 1)}] * 2
    assert study.evaluations == 3 + 2 * 2
    assert [p.layer for p, _ in top_heads(study, "importance", 9)] == [top, top]


@pytest.mark.host
def test_blocks_limit_what_is_pruned_and_the_findings_reach_the_user():
    study, *_ = inspect("flux", how={"blocks": BlockSelection.parse("1-2")})
    heads = top_heads(study, "importance", 2)
    assert {layer for layer, _ in study.pruned[0]} == {1, 2}
    assert f"most: {heads_text(top_heads(study, 'importance', 5))}" in text(study, "importance", heads)
    data = json.loads(as_json(study, "importance", "highest", heads))
    assert data["importance"]["evaluations"] == 8
    assert len(data["places"][0]["mean"]["importance"]) == 2
    (picture,) = draw(study, "heads", Look("importance", "highest"), heads)
    assert picture.width >= 640


@pytest.mark.host
def test_a_unet_is_pruned_in_its_self_attention_alone():
    study, *_ = inspect("sd15", percents=(0.0,), how={"blocks": BlockSelection.parse("m0")})
    (place,) = study.places()
    assert set(study.pruned[0]) == {(place.layer, h) for h in range(8)}
    assert (study.mean(place).scalars["importance"] > 0).all()
    assert "importance" not in study.mean(study.places(cross=True)[0]).scalars


@pytest.mark.host
def test_too_many_evaluations_need_a_second_word(monkeypatch):
    host_inprocess.import_host()
    from tiny_models import tiny

    monkeypatch.setattr(prune_module, "MOST", 10)
    method, model = Inspector(), tiny("flux")
    with pytest.raises(LoomError, match=r"importance 'full' would evaluate the model 18 times \(6 heads at 3 steps\), more than 10; choose screen or fast"):
        install(attach(model.patcher, method), method, "full")
    install(attach(model.patcher, method), method, "full", sure=True)
    with pytest.raises(LoomError, match="prune 'half' was given; choose one of mean, identity, zero"):
        install(model.patcher, method, "full", prune="half", sure=True)
    assert MOST == 5000


# --- parts of joint attention -------------------------------------------------------------------------------------------------

KINDS = {"text": slice(0, 5), "image": slice(5, 11)}
"""Of the tiny FLUX."""


def of_part(part, q, k, v):
    """What a part adds to one head's result [B, N, D], by an explicit softmax."""
    rows, keys = (KINDS[side] for side in part.split("_"))
    a = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    out = torch.zeros_like(v)
    out[:, rows] = a[:, rows, keys] @ v[:, keys]
    return out


@pytest.mark.host
@pytest.mark.parametrize("part", PARTS[1:])
def test_a_part_is_put_out_as_by_an_explicit_softmax(part):
    """FLUX: three calls per evaluation, head 1 of the second one changed by hand."""
    host_inprocess.import_host()
    import comfy.samplers

    seen = {}

    def keep(model):
        def by_hand(args):
            if not seen:
                count = iter(range(99))

                def override(func, q, k, v, heads, *rest, **kw):
                    out = func(q, k, v, heads, *rest, **kw).clone()
                    if next(count) == 1:
                        width = v.shape[-1]
                        out[..., width : 2 * width] -= of_part(part, q[:, 1], k[:, 1], v[:, 1])
                    return out

                options = dict(args["model_options"]) | {"transformer_options": {"optimized_attention_override": override}}
                (pruned,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
                seen.update(changes(args["cond_denoised"], pruned, args["input"]))
            return args["denoised"]

        model.set_model_sampler_post_cfg_function(by_hand)
        return model

    study, out, model, _ = inspect("flux", percents=(0.0,), after=keep, asked={"part": part})
    for metric, value in seen.items():
        assert study.pruned[0][1, 1][metric] == pytest.approx(value, rel=2e-3, abs=1e-7), metric
    assert study.how["part"] == part
    assert f"6 heads pruned one by one (part {part})" in text(study, "importance", top_heads(study, "importance", 1))
    from tiny_models import sample, tiny

    with torch.inference_mode():
        assert torch.equal(out, sample(tiny("flux").patcher, model))


def test_the_four_parts_make_the_whole_with_masks_scales_and_shared_keys():
    g = torch.Generator().manual_seed(0)
    layout = TokenLayout((Span("text", 4), Span("image", 6, (1, 2, 3)), Span("reference", 3)))
    q, k, v = (torch.randn(2, h, 13, 8, generator=g, dtype=torch.float64) for h in (4, 2, 2))
    mask = torch.zeros(2, 1, 13, 13, dtype=torch.float64).masked_fill(torch.rand(2, 1, 13, 13, generator=g) < 0.2, -1e9)

    def dense(q, k, v, mask=None):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    seen = Seen(q, k, v, mask, 0.7, dense)
    call = AttentionCall("FLUX", Block("double", 0, 0, 1), "joint", 4, 8, layout, layout, 1.0, 0.0, (0,), 2, q.device, q.dtype)
    parts = [share(part, call, seen, Draft(call), "me") for part in PARTS[1:]]
    whole = (q @ k.repeat_interleave(2, 1).mT * 0.7 + mask).softmax(-1) @ v.repeat_interleave(2, 1)
    torch.testing.assert_close(sum(parts), whole)
    for part, found in zip(PARTS[1:], parts, strict=True):
        assert (found[:, :, ~sides(part, layout)[0]] == 0).all()
    padded = TokenLayout((Span("text", 4), Span("image", 6, (1, 2, 3)), Span("other", 3)))
    assert [int(side.sum()) for side in sides("image_text", padded)] == [6, 4], "padding is neither"
    changed = Draft(call)
    changed.bias("Another node", torch.zeros(1, 1, 13))
    with pytest.raises(LoomError, match=r"part image_text is taken from the model's own attention, and Another node changes that in double 0; take it out"):
        share("image_text", call, seen, changed, "me")


@pytest.mark.host
@pytest.mark.parametrize("name", ["sd3", "lumina2", "z_image", "mochi", "qwen_image"])
def test_parts_exist_in_every_joint_family(name):
    study, *_ = inspect(name, percents=(0.0,), asked={"part": "image_text"})
    assert (scores(study, "importance") > 0).all()
    assert study.evaluations == len(study.pruned[0]) == 4


@pytest.mark.host
def test_parts_are_refused_where_text_is_read_apart():
    for mode in ("full", "fast"):
        with pytest.raises(LoomError, match="part text_image needs attention over text and picture together, and Wan reads its text apart; set part to whole"):
            inspect("wan", mode=mode, asked={"part": "text_image"})
    with pytest.raises(LoomError, match="part 'image' was given; choose one of whole, image_image"):
        inspect("flux", asked={"part": "image"})


# --- to first order ---------------------------------------------------------------------------------------------------------


def scores(study, metric):
    """Mean over the steps, heads in order."""
    heads = sorted(next(iter(study.pruned.values())))
    return torch.tensor([[pruned[at][metric] for at in heads] for pruned in study.pruned.values()]).mean(0)


def spearman(a, b):
    return float(torch.corrcoef(torch.stack([v.argsort().argsort().double() for v in (a, b)]))[0, 1])


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


# --- the direction of CFG -----------------------------------------------------------------------------------------------------


def test_change_of_the_guidance_in_closed_form():
    c, u = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert guidance_change((c, u), (c + 7, u + 7)) == pytest.approx(0.0, abs=1e-6), "both alike: the direction stays"
    assert guidance_change((c, u), (u, c)) == pytest.approx(2.0)
    assert guidance_change((c, u), (c, c)) == pytest.approx(1.0)


@pytest.mark.host
def test_a_head_is_pruned_for_both_prompts_as_by_hand():
    """The same override by hand, each prompt by itself."""
    host_inprocess.import_host()
    import comfy.samplers

    seen = {}

    def keep(model):
        def by_hand(args):
            if not seen:

                def pruned(prompt):
                    count = iter(range(99))

                    def override(func, q, k, v, heads, *rest, **kw):
                        out = func(q, k, v, heads, *rest, **kw).clone()
                        if next(count) == 1:
                            out[..., v.shape[-1] : 2 * v.shape[-1]] = 0
                        return out

                    options = dict(args["model_options"]) | {"transformer_options": {"optimized_attention_override": override}}
                    return comfy.samplers.calc_cond_batch(args["model"], [args[prompt]], args["input"], args["sigma"], options)[0]

                before = args["cond_denoised"] - args["uncond_denoised"]
                seen["change"] = float((pruned("cond") - pruned("uncond") - before).norm() / before.norm())
            return args["denoised"]

        model.set_model_sampler_post_cfg_function(by_hand)
        return model

    study, out, model, patched = inspect("flux", prune="zero", percents=(0.0,), after=keep, asked={"guidance": True})
    assert study.pruned[0][1, 1][GUIDANCE] == pytest.approx(seen["change"], rel=1e-3)
    assert study.evaluations == 12 == record_of(patched).last.passes[Pruning.owner]
    from tiny_models import sample, tiny

    with torch.inference_mode():
        assert torch.equal(out, sample(tiny("flux").patcher, model))


@pytest.mark.host
def test_guidance_needs_a_negative_prompt_and_twice_the_evaluations(monkeypatch):
    layers = ((0, 3), (1, 3))
    assert Probes(layers, 2, "full", guidance=True).evaluations == 24
    assert Probes(layers, 2, "screen", guidance=True).evaluations == 2 + 24
    monkeypatch.setattr(prune_module, "LAYERS", 1)
    study, _, _, patched = inspect("flux", mode="screen", asked={"guidance": True})
    assert study.evaluations == 3 + 2 * 2 * 2 == record_of(patched).last.passes[Pruning.owner]
    with pytest.raises(LoomError, match=r"this run evaluates no negative one \(cfg 1, or a guider without it\); raise cfg above 1"):
        inspect("flux", asked={"guidance": True}, cfg=1.0)
    with pytest.raises(LoomError, match="connect a negative prompt"):
        Pruning("mean", negative=True).check_prompts({"positive": [{}]}, 1)
    with pytest.raises(LoomError, match="measured by pruning and importance is 'fast'"):
        inspect("flux", mode="fast", asked={"guidance": True})


# --- blocks before a pruned layer, handed on ------------------------------------------------------------------------------------

TRANSFORMERS = ("flux", "sd3", "wan", "wan_vace", "lumina2", "z_image", "qwen_image", "hunyuan_video", "ltx", "mochi", "cosmos", "cosmos_predict2")


@pytest.mark.host
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_handed_on_blocks_give_the_same_numbers_bit_for_bit(name):
    plain, *_ = inspect(name, percents=(0.0,), prune="zero")
    reused, out, model, patched = inspect(name, percents=(0.0,), prune="zero", asked={"reuse_prefix": True})
    assert reused.pruned == plain.pruned
    layers, heads = sorted({layer for layer, _ in plain.pruned[0]}), model.facts.heads
    assert reused.handed_on >= heads * sum(layers), "all before each layer, for each of its heads; and where the walk goes on"
    assert reused.evaluations == plain.evaluations == record_of(patched).last.passes[Pruning.owner]
    assert "blocks before a pruned layer were handed on" in text(reused, "importance", top_heads(reused, "importance", 1))
    from tiny_models import sample, tiny

    with torch.inference_mode():
        assert torch.equal(out, sample(tiny(name).patcher, model))


@pytest.mark.host
@pytest.mark.parametrize("how", [{"mode": "screen"}, {"asked": {"guidance": True}}, {"latent": (2, 16, 4, 6)}, {"how": {"blocks": BlockSelection.parse("2")}}], ids=str)
def test_handing_on_goes_with_screening_guidance_batches_and_chosen_blocks(how, monkeypatch):
    monkeypatch.setattr(prune_module, "LAYERS", 2)
    asked = how.pop("asked", {})
    plain, *_ = inspect("flux", asked=asked, **how)
    reused, *_ = inspect("flux", asked=asked | {"reuse_prefix": True}, **how)
    assert reused.pruned == plain.pruned
    assert reused.layer_importance == plain.layer_importance
    assert reused.handed_on > 0


@pytest.mark.host
def test_only_what_is_not_handed_on_is_computed(monkeypatch):
    """FLUX, 3 blocks of 2 heads: 6 evaluations of the blocks from the pruned one on, and two pieces of one block each between them."""
    counts = []

    def keep(model):
        def count(func, q, *args, **kw):
            counts.append(len(q))
            return func(q, *args, **kw)

        model.model_options["transformer_options"] = model.model_options.get("transformer_options", {}) | {"optimized_attention_override": count}
        return model

    for reuse, calls in ((False, 2 * 3 * 3), (True, 2 * (3 + 2 + 1) + 2)):
        counts.clear()
        inspect("flux", percents=(0.0,), after=keep, prune="zero", asked={"reuse_prefix": reuse}, cfg=1.0)
        assert len(counts) == calls + 2 * 3, "and the two steps"


@pytest.mark.host
def test_handing_on_is_refused_where_blocks_are_no_wholes():
    with pytest.raises(LoomError, match="reuse_prefix hands whole blocks on, which SD 1.5 / SDXL does not allow; switch it off"):
        inspect("sd15", asked={"reuse_prefix": True})
    with pytest.raises(LoomError, match="reuse_prefix is for heads pruned one by one and importance is 'fast'"):
        inspect("flux", mode="fast", asked={"reuse_prefix": True})
