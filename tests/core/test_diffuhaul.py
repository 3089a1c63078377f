"""DiffUHaul in whole runs on tiny models of every family: what must be bit-equal, other methods beside it, and what is refused."""

from dataclasses import replace

import pytest
import tiny_models
import torch
from attention_loom.core.anchoring import Anchoring
from attention_loom.core.attach import attach, record_of
from attention_loom.core.buckets import Buckets
from attention_loom.core.errors import ConflictError, LoomError
from attention_loom.core.methods.sourced import Source
from diffuhaul_runs import FRAME, OWNER, SIZE, STILL, draw, method, model_of, picture, run

pytestmark = pytest.mark.host


def same(one, other, stock):
    """Bit for bit where the host itself gives equal pictures of a batch equal bits, which it does not for SDXL on every processor."""
    if torch.equal(stock[0], stock[1]):
        return torch.equal(one, other)
    return (stock[0] - stock[1]).abs().max() < 1e-5 * stock.abs().max() and (one - other).abs().max() < 1e-5 * one.abs().max()


# --- nothing moves --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SIZE))
def test_an_object_that_rests_in_one_batch_comes_out_as_its_source(host, name):
    """Sharing, anchoring at w between 0 and 1, and copying are all exact where result and source are one."""
    model = model_of(name, 2)
    noise = draw(1, *SIZE[name], seed=2).expand(2, *SIZE[name]).clone()
    texts = {"texts": (draw(1, 5, 768, seed=5),)} if name == "sd15" else {}
    patched = attach(model.patcher, method(name, STILL, source=None, vacate=True, **texts))
    out = run(patched, model, noise, torch.zeros(2, *SIZE[name]), steps=3)
    stock = run(model.patcher, model, noise, torch.zeros(2, *SIZE[name]), steps=3)
    assert same(out[0], out[1], stock)
    if not texts:
        assert (out[0] - stock[0]).abs().max() < 1e-4 * stock.abs().max(), "and as without the node"
    assert record_of(patched).last.touched[OWNER] > 0


@pytest.mark.parametrize("name", list(SIZE))
def test_an_object_that_rests_aside_changes_nothing_in_the_first_step(host, name):
    """The source has the sampler's own noise then, so both see one latent; later its noise is another."""
    model, own = model_of(name), picture(name)
    noise = draw(1, *SIZE[name], seed=2)
    one = dict(steps=3, last_step=1)
    got = run(attach(model.patcher, method(name, STILL, latent=own)), model, noise, own, **one)
    assert torch.equal(got, run(model.patcher, model, noise, own, **one))
    two = dict(steps=3, last_step=2)
    late = run(attach(model.patcher, method(name, STILL, latent=own)), model, noise, own, **two)
    assert not torch.equal(late, run(model.patcher, model, noise, own, **two))


# --- the source -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SIZE))
def test_the_source_does_not_know_of_the_result(host, name):
    model = model_of(name, 3)
    noise = draw(1, *SIZE[name], seed=2).expand(3, *SIZE[name]).clone()
    latent = torch.zeros(3, *SIZE[name])
    out = run(attach(model.patcher, method(name, source=None, vacate=True)), model, noise, latent)
    stock = run(model.patcher, model, noise, latent)
    assert torch.equal(out[0], stock[0])
    assert same(out[1], out[2], stock), "all results read one source"
    assert (out[1] - stock[1]).abs().max() > 1e-3 * stock.abs().max()


def test_the_source_aside_is_seen_once_per_bucket(host):
    model = model_of("sd3")
    for buckets, passes in ((0, 6), (6, 6), (3, 3), (1, 1)):
        patched = attach(model.patcher, method("sd3", buckets=buckets))
        out = run(patched, model, draw(1, *SIZE["sd3"], seed=2), picture("sd3"), steps=6)
        last = record_of(patched).last
        assert torch.isfinite(out).all() and last.passes[OWNER] == passes and not last.state and last.noise is None
    only = attach(model.patcher, method("sd3", share_to=0.5, anchoring=Anchoring("constant", 1.0, 0.0), copy=0.0))
    run(only, model, draw(1, *SIZE["sd3"], seed=2), picture("sd3"), steps=6)
    assert record_of(only).last.passes[OWNER] == 3, "it is not seen where nothing reads it"


def test_results_repeat_and_other_samplers_and_batches_run(host):
    model, own = model_of("flux"), picture("flux")
    patched, noise = attach(model.patcher, method("flux")), draw(1, *SIZE["flux"], seed=2)
    first = run(patched, model, noise, own)
    assert torch.equal(run(patched, model, noise, own), first)
    for sampler in ("heun", "dpm_2", "euler_ancestral", "dpmpp_2m"):
        assert torch.isfinite(run(patched, model, noise, own, sampler=sampler)).all()
    alone = run(patched, model, noise, own, cfg=1.0)
    assert torch.isfinite(alone).all() and not torch.equal(alone, first)
    both = run(patched, model, noise.expand(2, *SIZE["flux"]).clone(), own.expand(2, *SIZE["flux"]).clone())
    assert torch.allclose(both[0], both[1], atol=1e-5) and (both[0] - first[0]).abs().max() < 1e-3 * first.abs().max(), "several results of one source"


def test_unequal_prompts_run(host):
    for name in ("sd15", "flux"):
        model = tiny_models.tiny(name, latent=(1, *SIZE[name]), prompts=(5, 3))
        assert torch.isfinite(run(attach(model.patcher, method(name)), model, draw(1, *SIZE[name], seed=2), picture(name))).all()


# --- beside other methods -------------------------------------------------------------------------------------------------


def test_other_methods_act_beside(host):
    from attention_loom.core.guidance import Guidance
    from attention_loom.core.heads import HeadSet
    from attention_loom.core.methods.entropy_scale import EntropyScale
    from attention_loom.core.methods.softpag import SoftPAG

    model, own = model_of("flux"), picture("flux")
    noise, alone = draw(1, *SIZE["flux"], seed=2), method("flux", vacate=True)
    plain = run(attach(model.patcher, alone), model, noise, own)
    for other in (EntropyScale(trained=((1, 4, 6),)), SoftPAG(HeadSet.parse("all"), 1.0, guidance=Guidance(2.0))):
        results = []
        for first, second in ((alone, other), (other, alone)):
            patched = attach(attach(model.patcher, first), second)
            results.append(run(patched, model, noise, own))
            touched = record_of(patched).last.touched
            assert touched[OWNER] > 0 and touched[other.owner] > 0
        assert torch.equal(*results) and not torch.equal(results[0], plain), other.owner


def test_placed_subjects_and_captions_share_cross_attention(host):
    from attention_loom.core.methods.spacetime import Local, SpaceTime
    from attention_loom.core.regions import Box, Region

    model, own = model_of("sd15"), picture("sd15")
    placed = dict(locals=(Local(Region("x", Box(0, 0, 0.5, 1)), draw(1, 5, 768, seed=7)),), weight=0.5)
    ours = method("sd15", texts=(draw(1, 4, 768, seed=5),))
    part = dict(steps=2, last_step=1)
    noise = draw(1, *SIZE["sd15"], seed=2)
    patched = attach(attach(model.patcher, ours), SpaceTime(mode="affine", **placed))
    both = run(patched, model, noise, own, **part)
    assert torch.isfinite(both).all() and not torch.equal(both, run(attach(model.patcher, ours), model, noise, own, **part))
    with pytest.raises(ConflictError, match="compares pictures of the batch that the other parts"):
        run(attach(attach(model.patcher, ours), SpaceTime(mode="contrast", **placed)), model, noise, own, **part)


def test_references_of_another_node_are_refused(host):
    from attention_loom.core.beside import Beside
    from attention_loom.core.methods.ir_diffusion import IRDiffusion

    model, own = model_of("sd3"), picture("sd3")
    masks = torch.zeros(1, 1, *FRAME)
    masks[..., :32, :32] = 1
    other = IRDiffusion(scene=masks, references=masks[0], start_layer=0, beside=Beside(own, (model.positive,), model.negative))
    with pytest.raises(ConflictError, match="Use one of them"):
        run(attach(attach(model.patcher, method("sd3")), other), model, torch.zeros_like(own), own)


# --- what is refused ------------------------------------------------------------------------------------------------------


def fails(words, name="sd15", model=None, patch=None, latent=None, **settings):
    model = model or model_of(name)
    patched = attach(model.patcher, method(name, **settings))
    if patch:
        patch(patched)
    latent = picture(name) if latent is None else latent
    with pytest.raises(LoomError, match=words):
        run(patched, model, torch.zeros_like(latent), latent)


def test_what_does_not_fit_is_said(host):
    model = model_of("sd15")
    fails("3 buckets and 2 steps were given", buckets=3)
    fails(r"whose latent is \(4, 8, 8\) and the sampler's is \(4, 8, 12\)", source=Source(torch.zeros(1, 4, 8, 8)))
    fails("in one batch and was given 1 picture", source=None)
    fails("the mask is 96 x 64 and the picture has 8 x 12 tokens", latent=torch.ones(1, 4, 12, 8))
    fails(r"another node replaces its attention \(attn1/", patch=lambda m: m.set_model_attn1_replace(lambda q, k, v, e: q, "input", 1))
    text, facts = model.positive[0]
    for extra, words in (({"area": (2, 2, 0, 0)}, "a conditioning of an area"), ({"mask": torch.ones(1, 8, 12)}, "of a mask"), ({"start_percent": 0.5}, "of a part of the steps")):
        fails(words, model=model._replace(positive=[[text, facts | extra]]))
    fails("one conditioning for each of positive and negative and was given 2", model=model._replace(positive=model.positive * 2))
    fails("reference pictures behind the picture's tokens", "flux", model=tiny_models.tiny("flux_references", latent=(1, *SIZE["flux"])))
    fails("the prompt has 5 tokens in double 0 and the captions alone 6", "flux", model=model_of("flux"), spans=(6,))
    with pytest.raises(LoomError, match="was given Wan; connect SD 1.5"):
        attach(tiny_models.tiny("wan").patcher, method("sd15"))
    with pytest.raises(LoomError, match="rotary positions of this FLUX model"):
        attach(tiny_models.tiny("flux2").patcher, method("sd15"))
    with pytest.raises(LoomError, match="encoded to a width of 64 and the model reads 768"):
        attach(model.patcher, method("sd15", texts=(torch.zeros(1, 3, 64),)))
    with pytest.raises(LoomError, match="1 objects and 2 texts were given"):
        method("sd15", texts=(torch.zeros(1, 3, 64),) * 2)
    with pytest.raises(LoomError, match=r"copy_blend 2 was given"):
        method("sd15", copy=2.0)
    with pytest.raises(LoomError, match="anchor_scope 'here' was given"):
        method("sd15", scope="here")


def test_context_windows_are_refused(host):
    from attention_loom.core.source_call import with_source

    with pytest.raises(LoomError, match="cannot work with context windows"):
        with_source(method("sd15"), None, 0.0, 4, None, None, [], torch.zeros(1, *SIZE["sd15"]), torch.ones(1), {"context_handler": object()})


def test_a_control_hint_acts_on_the_source_alone(host, monkeypatch):
    from attention_loom.core import source_call

    class Model:
        class model_sampling:
            sigma_max = torch.tensor(10.0)

            @staticmethod
            def noise_scaling(sigma, noise, latent, top):
                return noise + latent

        @staticmethod
        def process_latent_in(x):
            return x

    class RunNow:
        noise, state, passes = torch.ones(1, 4, 8, 12), {}, {OWNER: 0}

        def kept(self, key, make):
            return make()

        def roles_in(self, conds):
            return frozenset({0})

    looked, ran = [], []
    monkeypatch.setattr(source_call, "_look", lambda owner, notes, model, conds, *rest: looked.append(conds))
    for control in (False, True):
        given, conds = replace(method("sd15"), control=control), [[{"control": 1, "x": 2}], None]
        source_call.with_source(given, RunNow(), 0.0, 4, lambda model, conds, *rest: ran.append(conds), Model, conds, torch.zeros(1, 4, 8, 12), torch.ones(1), {})
    assert looked == [[[{"control": 1, "x": 2}], None]] * 2 and ran == [[[{"x": 2}], None], [[{"control": 1, "x": 2}], None]]


def test_the_source_is_shown_with_noise_where_the_sampler_adds_none(host, monkeypatch):
    """The second of two samplers of one schedule."""
    import comfy.sample
    from attention_loom.core import source_call

    shown, look = [], source_call._look
    monkeypatch.setattr(
        source_call, "_look", lambda owner, notes, model, conds, x, sigma, options: (shown.append((float(sigma[0]), x)), look(owner, notes, model, conds, x, sigma, options))[1]
    )
    model, drawn = model_of("sd15"), picture("sd15")
    for fresh in (True, False):
        patched = attach(model.patcher, method("sd15", vacate=False, source=Source(drawn, Buckets(0, 5, fresh))))
        clean = patched.model.process_latent_in(drawn)
        shown.clear()
        nothing = torch.zeros(1, *SIZE["sd15"])
        comfy.sample.sample(
            patched, nothing, 6, 3.0, "euler", "simple", model.positive, model.negative, drawn, disable_noise=True, start_step=3, disable_pbar=True, seed=1,
        )  # fmt: skip
        assert len(shown) == 3 and all(0.7 < float((x - clean).std()) / sigma < 1.3 for sigma, x in shown)


def test_each_conditioning_of_a_guider_has_a_source_of_its_own(host):
    """Positive, negative and a third: a resting object equals its source under every one."""
    import comfy.samplers
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    model = model_of("sd15", 2)
    patched = attach(model.patcher, method("sd15", drag=STILL, source=None))
    seen, calc = [], comfy.samplers.calc_cond_batch

    def watch(inner, conds, x, t, options):
        out = calc(inner, conds, x, t, options)
        seen.append([float((made[0] - made[1]).abs().max()) for made in out])
        return out

    guider = Guider_PerpNeg(patched)
    text, facts = model.negative[0]
    third = [[torch.randn(text.shape, generator=torch.Generator().manual_seed(77)), facts]]
    guider.set_conds(model.positive, model.negative, third)
    guider.set_cfg(3.0, 1.0)
    noise = draw(1, *SIZE["sd15"], seed=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.samplers, "calc_cond_batch", watch)
        sigmas = comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), "normal", 1)
        guider.sample(torch.cat([noise, noise]), torch.zeros(2, *SIZE["sd15"]), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=1)
    assert [len(each) for each in seen] == [3] and seen[0] == [0.0, 0.0, 0.0]
