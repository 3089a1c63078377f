"""Importance by pruning: metrics in closed form, what is pruned against a hand-written override, and an image that stays what it is."""

import json

import host_inprocess
import pytest
import torch
from attention_loom.core.attach import attach, methods_of, record_of
from attention_loom.core.errors import LoomError
from attention_loom.core.extra_pass import evaluate
from attention_loom.core.families.base import number
from attention_loom.core.guidance import ExtraPass
from attention_loom.core.inspect import prune as prune_module
from attention_loom.core.inspect.gallery import Look, draw
from attention_loom.core.inspect.importance import FAST, GUIDANCE, PRUNED, by_head, changes, guidance_change, ranked
from attention_loom.core.inspect.prune import MOST, Probes, install
from attention_loom.core.inspect.summary import as_json, heads_text, text, top_heads
from attention_loom.core.methods.inspector import Inspector
from attention_loom.core.methods.prune import Pruning
from attention_loom.core.schedule import BlockSelection
from inspect_runs import by_hand, inspect
from softpag_runs import softpag

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
    seen, keep = by_hand(lambda out, q, k, v: {"identity": v, "mean": v.mean(1, keepdim=True), "zero": 0.0}[prune])
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


# --- what pruning must be, whatever it measures ---------------------------------------------------------------------------------


class Values(torch.nn.Module):
    """The value projection of a layer, whose head 1 gives the same values for all tokens, or none."""

    def __init__(self, inner, width, change):
        super().__init__()
        self.inner, self.width, self.change = inner, width, change

    def forward(self, x):
        v = self.inner(x).clone()
        head = v[..., self.width : 2 * self.width]
        head[:] = self.change(head)
        return v


@pytest.mark.host
@pytest.mark.parametrize(
    ("prune", "change"),
    [("zero", torch.zeros_like), ("mean", lambda v: v[:, :1].expand_as(v)), ("identity", lambda v: v[:, :1].expand_as(v))],
    ids=["zero", "mean", "identity"],
)
@pytest.mark.parametrize("mode", ["full", "fast"])
def test_a_head_whose_values_pruning_does_not_change_has_no_importance(prune, change, mode):
    """Values of 0, or the same for all tokens, in head 1 of the first layer."""

    def constant(model):
        path = "diffusion_model.blocks.0.self_attn.v"
        model.add_object_patch(path, Values(model.get_model_object(path), 128, change))
        return model

    study, *_ = inspect("wan", mode=mode, prune=prune, percents=(0.0,), after=constant, cfg=1.0)
    metric = "importance" if mode == "full" else FAST
    none = study.pruned[0][0, 1][metric]
    assert none == 0 if prune == "zero" else none < 1e-5
    assert all(found[metric] > 1e-3 for at, found in study.pruned[0].items() if at != (0, 1))


@pytest.mark.host
def test_a_head_put_out_twice_is_put_out_once():
    """Another pack puts head 1 of the second call out in every pass: doing it again changes nothing."""

    def put_out(model):
        calls = []

        def override(func, q, k, v, heads, *rest, **kw):
            out = func(q, k, v, heads, *rest, **kw).clone()
            if len(calls) % 3 == 1:
                out[..., v.shape[-1] : 2 * v.shape[-1]] = 0
            calls.append(1)
            return out

        model.model_options["transformer_options"] = model.model_options["transformer_options"] | {"optimized_attention_override": override}
        return model

    study, *_ = inspect("flux", prune="zero", percents=(0.0,), after=put_out, cfg=1.0)
    assert [at for at, found in study.pruned[0].items() if found["importance"] == 0] == [(1, 1)]


@pytest.mark.host
def test_a_whole_layer_put_out_is_the_projection_of_nothing():
    """Mode screen prunes layers first; Wan's output projection of zeros by hand."""
    host_inprocess.import_host()
    import comfy.samplers

    seen = {}

    def keep(model):
        def by_hand(args):
            if not seen:
                projection = args["model"].diffusion_model.blocks[1].self_attn.o
                hook = projection.register_forward_pre_hook(lambda module, given: (torch.zeros_like(given[0]),))
                try:
                    (pruned,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], {"transformer_options": {}})
                finally:
                    hook.remove()
                seen.update(changes(args["cond_denoised"], pruned, args["input"]))
            return args["denoised"]

        model.set_model_sampler_post_cfg_function(by_hand)
        return model

    study, *_ = inspect("wan", mode="screen", prune="zero", percents=(0.0,), after=keep, cfg=1.0)
    assert study.layer_importance[1] == pytest.approx(seen["importance"], rel=1e-5)


@pytest.mark.host
def test_identity_is_head_guidance_at_u_1():
    seen = {}

    def keep(model):
        model = attach(model, softpag("L1H1", u=1.0))
        pass_name = methods_of(model)[-1].only_in

        def look(args):
            if not seen:
                seen.update(changes(args["cond_denoised"], evaluate(ExtraPass(pass_name), args), args["input"]))
            return args["denoised"]

        model.set_model_sampler_post_cfg_function(look)
        return model

    study, *_ = inspect("flux", prune="identity", percents=(0.0,), after=keep)
    found = study.pruned[0][1, 1]
    assert seen["importance"] > 1e-3
    assert {metric: found[metric] for metric in seen} == seen
