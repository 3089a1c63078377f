"""DiffUHaul: the exact invariants on tiny models of every family, one call against fp64 arithmetic written out, and what is refused."""

import math
from dataclasses import replace

import host_inprocess
import pytest
import tiny_models
import torch
from attention_loom.core.anchoring import Anchoring
from attention_loom.core.attach import attach, record_of
from attention_loom.core.blob import Blob
from attention_loom.core.buckets import Buckets
from attention_loom.core.drag import Drag, Scene
from attention_loom.core.errors import ConflictError, LoomError
from attention_loom.core.methods.diffuhaul import DiffUHaul
from attention_loom.core.methods.sourced import Source

pytestmark = pytest.mark.host
OWNER = DiffUHaul.owner
SIZE = {"sd15": (4, 8, 12), "sdxl": (4, 8, 12), "sd3": (16, 8, 12), "flux": (16, 16, 24), "qwen_image": (16, 1, 16, 24)}
FRAME = (64, 96)
STILL, MOVED = Drag(0, 0), Drag(40, 8)
CUT = Anchoring("constant", end=1.0, level=0.0)
"""Neither anchoring nor copying."""


@pytest.fixture(scope="module")
def host():
    host_inprocess.import_host()
    with torch.inference_mode():
        yield


def scene(drag=MOVED, *others, shape="box"):
    blobs = (Blob.of_edges((8, 16, 40, 48), FRAME, shape), *(Blob.of_edges(e, FRAME, shape) for e in others))
    return Scene(blobs, tuple("abcd"[: len(blobs)]), drag)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model_of(name, batch=1):
    return tiny_models.tiny(name, latent=(batch, *SIZE[name]))


def picture(name, seed=9):
    return draw(1, *SIZE[name], seed=seed)


def method(name, drag=MOVED, latent=None, buckets=0, **settings):
    given = dict(scene=scene(drag), vacate=False, scope="all", source=Source(picture(name) if latent is None else latent, Buckets(buckets)))
    return DiffUHaul(**given | settings)


def run(patcher, model, noise, latent, steps=2, cfg=3.0, **more):
    import comfy.sample

    more = dict(sampler="euler", seed=1) | more
    sampler = more.pop("sampler")
    return comfy.sample.sample(patcher, noise, steps, cfg, sampler, "simple", model.positive, model.negative, latent, disable_pbar=True, **more)


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


# --- one attention, written out -------------------------------------------------------------------------------------------


class Watched:
    """Every attention of one model call on which a method acts: its tensors, the source's, and what came out."""

    def __init__(self, monkeypatch):
        from attention_loom.core import woven

        self.calls, real = [], woven.Woven._execute

        def execute(mine, sig, call, draft):
            out = real(mine, sig, call, draft)
            if not draft.parts:
                self.calls.append((call, sig.q, sig.k, sig.v, sig.take(out).clone(), type(call.extra).__name__))
            return out

        monkeypatch.setattr(woven.Woven, "_execute", execute)

    def pairs(self, kind):
        """(source, result) of the same attention."""
        aside = {(c.block, c.turn, c.rows): rest for c, *rest, extra in self.calls if c.kind == kind and extra == "SidePass"}
        return [(c, aside[c.block, c.turn, c.rows], rest) for c, *rest, extra in self.calls if c.kind == kind and extra != "SidePass"]


def once(name, model, monkeypatch, watched=True, **settings):
    """One evaluation, on a latent that is not the source's."""
    seen = Watched(monkeypatch) if watched else None
    patched = attach(model.patcher, method(name, latent=picture(name, 10), **settings))
    run(patched, model, draw(1, *SIZE[name], seed=2), picture(name), steps=2, start_step=1, force_full_denoise=True)
    return seen


def softmax(q, k, v, allowed=None):
    logits = q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
    logits = logits if allowed is None else logits.masked_fill(~allowed, -math.inf)
    return logits.softmax(-1) @ v.double()


def close(a, b):
    return (a - b).abs().max() < 2e-5 * b.abs().max()


def test_sharing_reads_the_sources_keys_and_values(host, monkeypatch):
    seen = once("sd15", model_of("sd15"), monkeypatch, anchoring=CUT, copy=0.0)
    pairs = seen.pairs("self")
    assert len(pairs) == 10
    for _, (_, k, v, _), (q, own, _, out) in pairs:
        assert close(out, softmax(q, k, v)) and not torch.equal(own, k)


def test_full_anchoring_is_the_sources_output_bit_for_bit(host, monkeypatch):
    for name, kind in (("sd15", "self"), ("flux", "joint"), ("sd3", "joint")):
        seen = once(name, model_of(name), monkeypatch, anchoring=Anchoring("constant", 1.0, 1.0), copy=0.0)
        acting = [p for p in seen.pairs(kind) if kind == "self" or p[0].block.ordinal >= 1]
        assert acting
        for call, (*_, source), (*_, out) in acting:
            offset, span = call.q.grid_span
            assert torch.equal(out[:, :, offset : offset + span.length], source[:, :, offset : offset + span.length])


def test_auto_anchors_joint_models_outside_moved_regions(host):
    for name, same in (("sd15", "all"), ("flux", "outside moved regions")):
        model, own = model_of(name), picture(name)
        given = dict(anchoring=Anchoring("constant", 1.0, 0.8), copy=0.0)
        made = {
            scope: run(attach(model.patcher, method(name, scope=scope, **given)), model, draw(1, *SIZE[name], seed=2), own) for scope in ("auto", "all", "outside moved regions")
        }
        assert torch.equal(made["auto"], made[same]) and not torch.equal(made["all"], made["outside moved regions"])


def test_anchoring_outside_moved_regions(host, monkeypatch):
    seen = once("sd15", model_of("sd15"), monkeypatch, anchoring=Anchoring("constant", 1.0, 1.0), copy=0.0, scope="outside moved regions")
    for call, (_, k, v, source), (q, _, _, out) in seen.pairs("self"):
        first = scene().on(*call.q.grid[1:])[0]
        moved = first.old | first.new
        assert torch.equal(out[:, :, ~moved], source[:, :, ~moved]) and close(out[:, :, moved], softmax(q, k, v)[:, :, moved])


def test_copied_rows_are_rows_of_the_source_object(host, monkeypatch):
    others = ((56, 0, 88, 16),)
    given = dict(scene=scene(MOVED, *others), share_to=0.0, anchoring=Anchoring("constant", 0.0, 0.0))
    seen = once("sd15", model_of("sd15"), monkeypatch, **given)
    for call, (*_, source), (q, own_k, own_v, out) in seen.pairs("self"):
        before = softmax(q, own_k, own_v)
        objects = scene(MOVED, *others).on(*call.q.grid[1:])
        for e in range(len(out)):
            rows, from_, sure = (x[e].transpose(0, 1).flatten(1) for x in (out, source, before))
            for found in objects:
                old = found.old.nonzero()[:, 0]
                for p in (found.new & ~(objects[0].new if found is not objects[0] else torch.zeros_like(found.new))).nonzero()[:, 0].tolist():
                    same = [q for q in old.tolist() if torch.equal(rows[p], from_[q])]
                    assert same, "bit-equal to a row of the object's old place"
                    cosine = torch.nn.functional.cosine_similarity(sure[p][None], from_[old].double())
                    picked = cosine[[old.tolist().index(q) for q in same]].max()
                    assert picked >= cosine.max() - 3e-4
        free = ~torch.stack([o.new for o in objects]).any(0)
        assert close(out[:, :, free], before[:, :, free]), "rows outside all objects stay"


def test_half_a_copy_is_half_way(host, monkeypatch):
    given = dict(share_to=0.0, anchoring=Anchoring("constant", 0.0, 0.0))
    whole = once("sd15", model_of("sd15"), monkeypatch, **given).pairs("self")[0]
    half = once("sd15", model_of("sd15"), monkeypatch, copy=0.5, **given).pairs("self")[0]
    (q, k, v, out), plain = half[2], whole[2]
    assert close(out, (softmax(q, k, v) + plain[3]) / 2)


def test_tokens_that_were_left_do_not_see_the_object(host, monkeypatch):
    seen = once("sd15", model_of("sd15"), monkeypatch, anchoring=CUT, copy=0.0, vacate=True)
    cut = 0
    for call, (_, k, v, _), (q, _, _, out) in seen.pairs("self"):
        first = scene().on(*call.q.grid[1:])[0]
        allowed = ~(first.vacated[:, None] & first.old[None])
        cut += int((~allowed).sum())
        assert close(out, softmax(q, k, v, allowed))
    assert cut > 0


# --- texts of their own ---------------------------------------------------------------------------------------------------


def test_captions_are_read_in_their_places(host, monkeypatch):
    texts = (draw(1, 4, 768, seed=5), draw(1, 7, 768, seed=6))
    given = dict(scene=scene(MOVED, (56, 0, 88, 16)), texts=texts)
    model = model_of("sd15")
    seen = once("sd15", model, monkeypatch, **given)
    modules = {}
    from attention_loom.core.families.unet import UNet

    diffusion = model.patcher.get_model_object("diffusion_model")
    for block in UNet().blocks(diffusion):
        modules[block] = UNet().text_reader(diffusion, block, 0)
    found = [entry for entry in seen.calls if entry[0].kind == "cross" and entry[0].batch == 1]
    assert len(found) == 4 * 10, "positive and negative, source and result"
    checked = 0
    for number, (call, q, k, v, out, extra) in enumerate(found):
        # of each attention the part with the captions, the positive half, runs first
        if number % 2:
            assert close(out, softmax(q, k, v)), "the negative prompt is read as it is"
            continue
        objects = given["scene"].on(*call.q.grid[1:])
        keys, values, allowed = [k], [v], [torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)]
        for text, o in zip(texts, objects, strict=True):
            own = [x.unflatten(-1, (call.heads, -1)).transpose(1, 2) for x in modules[call.block](text)]
            rows = o.old if extra == "SidePass" else o.new
            keys.append(own[0]), values.append(own[1]), allowed.append(rows[:, None].expand(-1, text.shape[1]))
        assert close(out, softmax(q, torch.cat(keys, 2), torch.cat(values, 2), torch.cat(allowed, 1)))
        checked += 1
    assert checked == 20


@pytest.mark.parametrize("name", ["flux", "sd3", "qwen_image"])
def test_captions_behind_the_prompt_are_read_in_their_places(host, monkeypatch, name):
    model = tiny_models.tiny(name, latent=(1, *SIZE[name]), prompts=(12, 5))
    given = dict(scene=scene(MOVED, (56, 0, 88, 16)), spans=(3, 4), vacate=True, anchoring=CUT, copy=0.0, share_to=1.0)
    seen = once(name, model, monkeypatch, **given)
    checked = 0
    for call, (_, k, v, _), (q, own_k, own_v, out) in seen.pairs("joint"):
        if call.rows != (0,):
            continue
        lo, hi = call.q.range("text")
        offset, span = call.q.grid_span
        image = slice(offset, offset + span.length)
        objects = given["scene"].on(*call.q.grid[1:])
        acts = call.block.ordinal >= round(call.block.total / 3)
        keys, values = own_k.clone(), own_v.clone()
        if acts:
            keys[:, :, image], values[:, :, image] = turned(call, objects[0].moves, k[:, :, image]), v[:, :, image]
        n = call.q.length
        allowed = torch.ones(n, n, dtype=torch.bool)
        spans = [range(hi - 7, hi - 4), range(hi - 4, hi)]
        for text, o in zip(spans, objects, strict=True):
            shown = o.old if acts else o.new
            for t in text:
                allowed[:, t] = False
                allowed[t] = False
                allowed[t, lo : hi - 7] = True
                allowed[t, image] = shown
                allowed[image, t] = o.new
            for t in text:
                allowed[t, text[0] : text[-1] + 1] = True
        if acts:
            rows = torch.zeros(n, dtype=torch.bool)
            rows[image] = objects[0].vacated
            gone = torch.zeros(n, dtype=torch.bool)
            gone[image] = objects[0].old
            allowed &= ~(rows[:, None] & gone[None])
        assert close(out, softmax(q, keys, values, allowed)), call.block
        checked += 1
    assert checked >= 2


def turned(call, moves, k):
    """Keys with their rotary angle moved, in complex numbers; as they are on models without."""
    if call.plane is None:
        return k
    angle = torch.einsum("na,ahc->hnc", moves.double(), call.plane.freqs.double())
    pairs = k.double().unflatten(-1, (-1, 2)) if call.plane.pairing == "interleaved" else torch.stack(k.double().chunk(2, -1), -1)
    spun = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angle), angle))
    return (spun.flatten(-2) if call.plane.pairing == "interleaved" else torch.cat(spun.unbind(-1), -1)).to(k.dtype)


def test_a_turn_and_back_restores_keys(host):
    from attention_loom.core.families.flux import Flux
    from attention_loom.kernels.stages import rotate

    plane = Flux().plane(model_of("flux").patcher.get_model_object("diffusion_model"), {})
    k, moves = draw(1, 2, 96, 32), scene().on(8, 12)[0].moves
    there = rotate(k, moves, plane.freqs.float(), plane.pairing)
    back = rotate(there, -moves, plane.freqs.float(), plane.pairing)
    assert (back - k).abs().max() < 1e-6 and (there - k).abs().max() > 0.1
    still = moves.abs().sum(1) == 0
    assert torch.equal(there[:, :, still], k[:, :, still])


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

    looked, ran = [], []
    monkeypatch.setattr(source_call, "_look", lambda owner, notes, model, conds, *rest: looked.append(conds))
    for control in (False, True):
        given, conds = replace(method("sd15"), control=control), [[{"control": 1, "x": 2}], None]
        source_call.with_source(given, RunNow(), 0.0, 4, lambda model, conds, *rest: ran.append(conds), Model, conds, torch.zeros(1, 4, 8, 12), torch.ones(1), {})
    assert looked == [[[{"control": 1, "x": 2}], None]] * 2 and ran == [[[{"x": 2}], None], [[{"control": 1, "x": 2}], None]]
