"""DiffUHaul in one attention call: sharing, anchoring, copying and captions against fp64 arithmetic written out."""

import math

import pytest
import tiny_models
import torch
from attention_loom.core.anchoring import Anchoring
from attention_loom.core.attach import attach
from diffuhaul_runs import CUT, MOVED, SIZE, draw, method, model_of, picture, run, scene

pytestmark = pytest.mark.host


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
            allowed[rows, lo : hi - 7] = False  # the prompt names the object
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
