"""Subject-aware attention and self-recurrent guidance in endless clips: exact properties, gradients, memory."""

import math

import host_inprocess
import pytest
import torch

pytestmark = pytest.mark.host
host_inprocess.import_host()

from attention_loom.core.attach import attach, methods_of  # noqa: E402
from attention_loom.core.call import Block, QueueWindow  # noqa: E402
from attention_loom.core.concepts import Concept, Located  # noqa: E402
from attention_loom.core.errors import LoomError  # noqa: E402
from attention_loom.core.methods import endless_subject  # noqa: E402
from attention_loom.core.methods.endless_subject import EndlessSubject, mean_key, otsu, subject  # noqa: E402
from attention_loom.core.samplers import per_frame, recurrent  # noqa: E402
from endless import clip_of, guider_of, make, schedule  # noqa: E402
from tiny_models import tiny  # noqa: E402

FOUND = Located((Concept("cat", (1, 2), ("c", "at")),), (0, 1, 2, 3), 5)
SCENES = ((0, FOUND),)


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def on(model, **settings):
    return attach(model.patcher, EndlessSubject(SCENES, **({"which": "all"} | settings)))


# --- pure parts -----------------------------------------------------------------------------------------------------


def test_one_more_copy_of_a_key_is_log_2_on_its_logit():
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 7, 8, generator=g, dtype=torch.float64)
    logits, j = q @ k.T / 8**0.5, 3
    twice = torch.cat([k, k[j : j + 1]]), torch.cat([v, v[j : j + 1]])
    extended = (q @ twice[0].T / 8**0.5).softmax(-1) @ twice[1]
    biased = logits.clone()
    biased[:, j] += math.log1p(1.0)
    assert torch.allclose(biased.softmax(-1) @ v, extended, atol=1e-12, rtol=0)


def test_the_bias_stands_on_the_subjects_keys_of_the_positive_rows_only():
    from types import SimpleNamespace

    from attention_loom.core.call import Span, TokenLayout

    layout = TokenLayout((Span("reference", 2), Span("video", 4, (2, 1, 2))))
    call = SimpleNamespace(batch=2, rows=(1, 0), k=layout, q=layout, device="cpu")
    mask = torch.tensor([[[[True, False]], [[False, True]]]])
    out = endless_subject.bias(call, mask, 1.0)
    assert out[0].abs().sum() == 0
    assert out[1, 0].tolist() == pytest.approx([0, 0, math.log(2), 0, 0, math.log(2)])


def test_otsu_parts_two_groups():
    values = torch.cat([torch.full((50,), 0.1), torch.full((20,), 0.8)]) + 0.02 * torch.randn(70, generator=torch.Generator().manual_seed(0))
    assert 0.2 < float(otsu(values.clamp(0, 1))) < 0.7


def test_a_flat_map_has_no_subject():
    assert not bool(subject(torch.full((1, 2, 3, 3), 0.4)).any())
    maps = torch.zeros(1, 2, 3, 3)
    maps[0, 1, 2, 2], maps[0, 0, 0, 0] = 1.0, 0.5
    assert subject(maps).sum() >= 1 and subject(maps, 0.4).sum() == 2 and subject(maps, 0.6).sum() == 1


def test_mean_key_counts_only_the_mask():
    k = torch.arange(24.0).view(1, 2, 4, 3)
    mask = torch.tensor([[[[True, False]], [[False, True]]]])
    assert torch.equal(mean_key(k, mask), ((k[:, :, 0] + k[:, :, 3]) / 2).flatten(1))


@pytest.mark.parametrize(("lam", "expected"), [(1.0, [1.0, 1.0, 1.0]), (0.0, [1.0, 5.0, 9.0]), (0.5, [1.0, 3.0, 6.0])])
def test_memory_keeps_replaces_or_averages(lam, expected):
    memory, got = {}, []
    for value in (1.0, 5.0, 9.0):
        memory = recurrent.remembered(memory, {Block("block", 0, 0, 1): torch.tensor([[value]])}, lam)
        got.append(float(memory["subject.0"]))
    assert got == expected


def test_a_step_is_the_formula_and_its_gradient_is_clipped_per_slot():
    g = torch.ones(1, 2, 2, 1, 1) * torch.tensor([0.5, 8.0]).view(1, 1, 2, 1, 1)
    sigma, target, unit = torch.tensor([1.0, 0.5]), torch.tensor([0.5, 0.25]), torch.ones(2)
    out = recurrent.change(g, sigma, target, unit, 2.0, False)
    assert out[0, 0].flatten().tolist() == pytest.approx([2 * 0.5 * 1.0 * 0.5, 2 * 0.25 * 0.5 * 1.0])
    fixed = recurrent.change(g, sigma, target, unit, 1.0, True)[0, 0].flatten()
    assert fixed.tolist() == pytest.approx([0.05 * 0.5, 0.05 * 0.125])
    assert torch.equal(recurrent.change(torch.zeros_like(g), sigma, target, unit, 1.0, True), torch.zeros_like(g))


def test_windows_and_blocks():
    def acts(which):
        return [EndlessSubject(SCENES, which=which).acts(QueueWindow(i, 5, (), 0, 0)) for i in range(5)]

    assert acts("noisier half") == [False, False, False, True, True]
    assert acts("cleaner half") == [True, True, True, False, False]
    assert all(acts("all"))
    blocks = [Block("block", i, i, 8) for i in range(8)]
    assert [b.index for b in EndlessSubject(SCENES).used(blocks)] == [4, 5, 6, 7]
    assert [b.index for b in EndlessSubject(SCENES).read(blocks)] == [2, 3]


# --- keys without their rotation ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "path"), [("wan", "blocks.1.self_attn.norm_k"), ("cosmos_predict2", "blocks.1.self_attn.k_norm"), ("ltx", "transformer_blocks.1.attn1.k_norm")])
def test_unrotated_keys_are_those_before_the_rotary_embedding(name, path, monkeypatch):
    """Up to one rotation for all tokens: inner products between tokens are those of the model's own keys."""
    from attention_loom.core.unrotated import unrotated

    model = tiny(name)
    norm = model.patcher.model.diffusion_model.get_submodule(path)
    layer = model.patcher.model.diffusion_model.get_submodule(path.rpartition(".")[0])
    raw, mine = [], []

    def own(module, args, out):
        heads = 1 if norm.weight.numel() == out.shape[-1] else out.shape[-1] // norm.weight.numel()
        raw.append(norm(out.detach().unflatten(-1, (heads, -1))).clone())

    hook = getattr(layer, "k" if name == "wan" else "to_k" if name == "ltx" else "k_proj").register_forward_hook(own)

    def keep(self, call, reading, seen):
        mine.append((unrotated(call, seen.k), seen.k.shape))

    monkeypatch.setattr(EndlessSubject, "_keep", keep)
    monkeypatch.setattr(EndlessSubject, "mask", lambda self, reading: torch.ones(1, *model.facts.grid, dtype=torch.bool))
    try:
        make(model, 1, patcher=on(model, copies=0.0, gamma=1.0), cfg=1.0, latent=clip_of(model))
    finally:
        hook.remove()
    assert mine and raw
    last, (b, h, n, d) = mine[-1]  # the head's window is the last call of an iteration
    keys = next(r for r in reversed(raw) if r.numel() == last.numel()).reshape(b, n, h, d).movedim(1, 2)
    got, want = (x[0] @ x[0].mT for x in (last.double(), keys.double()))
    assert torch.allclose(got, want, atol=1e-3 * float(want.abs().max()))


# --- attention ------------------------------------------------------------------------------------------------------


def test_without_copies_and_guidance_nothing_is_attached():
    model = tiny("wan")
    assert methods_of(on(model, copies=0.0)) == ()


@pytest.mark.parametrize("name", ["wan", "ltx", "cosmos_predict2"])
def test_it_changes_the_clip(name):
    model = tiny(name)
    out = make(model, 3, patcher=on(model))
    assert bool(out.isfinite().all()) and not torch.equal(out, make(model, 3))


@pytest.mark.parametrize("how", ["empty", "other sampler"])
def test_an_empty_mask_and_other_samplers_are_stock(how, monkeypatch):
    from tiny_models import sample

    model = tiny("wan")
    if how == "empty":
        monkeypatch.setattr(endless_subject, "subject", lambda maps, threshold=0.0: torch.zeros_like(maps, dtype=torch.bool))
        assert torch.equal(make(model, 3, patcher=on(model, gamma=1.0)), make(model, 3))
    else:
        assert torch.equal(sample(on(model), model), sample(model.patcher, model))


def test_every_key_alike_changes_nothing(monkeypatch):
    """A full mask adds one number to all logits of a row."""
    model = tiny("wan")
    monkeypatch.setattr(endless_subject, "subject", lambda maps, threshold=0.0: torch.ones_like(maps, dtype=torch.bool))
    assert torch.allclose(make(model, 2, patcher=on(model)), make(model, 2), atol=1e-3)


def test_only_the_chosen_windows_act(monkeypatch):
    model = tiny("wan")
    acted = []
    original = endless_subject.bias
    monkeypatch.setattr(endless_subject, "bias", lambda call, mask, copies: (acted.append(call.queue.number), original(call, mask, copies))[1])
    make(model, 2, patcher=on(model, which="noisier half"))
    assert set(acted) == {2, 3}


def test_words_are_read_from_the_prompt_that_holds():
    first, second = SCENES[0][1], Located((Concept("cat", (3,), ("cat",)),), (0, 1, 2, 3), 5)
    method = EndlessSubject(((0, first), (6, second)))
    assert [method.located(frame) is second for frame in (0, 5, 6, 60)] == [False, False, True, True]


@pytest.mark.parametrize("name", ["svd", "hunyuan_video", "sd15"])
def test_models_without_words_of_their_own_are_refused(name):
    with pytest.raises(LoomError, match="connect Wan, LTX-Video or Cosmos Predict2"):
        on(tiny(name))


@pytest.mark.parametrize(("settings", "words"), [({"lam": 2.0}, "lam 2"), ({"which": "some"}, "choose one of"), ({"gamma": -1.0}, "guidance -1")])
def test_settings_are_checked(settings, words):
    with pytest.raises(LoomError, match=words):
        EndlessSubject(SCENES, **settings)


# --- guidance -------------------------------------------------------------------------------------------------------


def probe(model, patcher, work):
    """Run ``work(calls, guidance, x, sigma, conds)`` inside a sampling run."""
    out = []

    class Probe:
        def sample(self, wrap, sigmas, extra, callback, noise, *rest):
            from attention_loom.core.families import family_of

            diffusion = wrap.model_patcher.get_model_object("diffusion_model")
            calls = per_frame.Frames(wrap, extra["model_options"], extra["seed"])
            guidance = recurrent.Guidance(calls, methods_of(wrap.model_patcher)[0], family_of(diffusion), diffusion)
            out.append(work(calls, guidance, noise, sigmas[:3].flip(0).contiguous(), wrap.conds))
            return noise

    guider_of(model, patcher).sample(
        torch.randn(model.latent.shape, generator=torch.Generator().manual_seed(3)), model.latent, Probe(), schedule(model.patcher, 6), disable_pbar=True, seed=0
    )
    return out[0]


WINDOW = QueueWindow(0, 4, (0, 1, 2), 0, 0)


def value(calls, guidance, x, sigma, conds, memory):
    """L at x through the ordinary forward: the head's window is read there."""
    window = QueueWindow(0, 4, (0, 1, 2), 0, 0)
    calls.denoised(x, sigma, conds, window.frames, window)
    return recurrent.loss(window.notes[guidance.method.owner].keys, memory)


@pytest.mark.parametrize("name", ["wan", "ltx", "cosmos_predict2"])
def test_the_gradient_is_that_of_the_loss_and_a_step_lowers_it(name, monkeypatch):
    """Against finite differences of the ordinary forward, with the mask held: it is no part of the gradient."""
    model = tiny(name)
    grid = model.facts.grid
    held = torch.rand(1, *grid, generator=torch.Generator().manual_seed(9)) > 0.5
    monkeypatch.setattr(EndlessSubject, "mask", lambda self, reading: reading.__setattr__("mask", held) or held)

    def work(calls, guidance, x, sigma, conds):
        g = torch.Generator().manual_seed(4)
        start = QueueWindow(0, 4, (0, 1, 2), 0, 0)
        calls.denoised(torch.randn(x.shape, generator=g), sigma, conds, start.frames, start)
        memory = recurrent.learned(guidance.method, start, {})
        gradient = guidance.gradient(x, sigma, conds, WINDOW, memory).clone()
        direction = gradient / gradient.norm()
        eps = 1e-2 * float(x.norm()) / x.numel() ** 0.5
        ahead, behind = (float(value(calls, guidance, x + s * eps * direction, sigma, conds, memory)) for s in (1, -1))
        here = float(value(calls, guidance, x, sigma, conds, memory))
        down = float(value(calls, guidance, x - 0.1 * here / float(gradient.norm()) * direction, sigma, conds, memory))
        return (ahead - behind) / (2 * eps), float(gradient.norm()), here, down

    slope, norm, here, down = probe(model, on(model, copies=0.0, gamma=1.0), work)
    assert norm > 0 and slope == pytest.approx(norm, rel=2e-2)
    assert down < here


def test_gamma_0_builds_no_graph(monkeypatch):
    model = tiny("wan")
    monkeypatch.setattr(recurrent.Guidance, "gradient", lambda *a: pytest.fail("a gradient was taken"))
    make(model, 2, patcher=on(model, gamma=0.0))


def test_guidance_acts_and_leaves_the_model_as_it_was():
    model = tiny("wan")
    weights = {name: (p.is_inference(), p.data_ptr()) for name, p in model.patcher.model.named_parameters()}
    stock = make(model, 4)
    out = make(model, 4, patcher=on(model, copies=0.0, gamma=1.0, normalised=True))
    assert bool(out.isfinite().all()) and not torch.equal(out, stock)
    assert {name: (p.is_inference(), p.data_ptr()) for name, p in model.patcher.model.named_parameters()} == weights
    assert torch.equal(make(model, 4), stock)


def test_nothing_is_guided_before_something_is_remembered(monkeypatch):
    model = tiny("wan")
    at = []
    original = recurrent.Guidance.gradient
    monkeypatch.setattr(
        recurrent.Guidance, "gradient", lambda self, x, s, c, window, memory: (at.append((window.iteration, window.number)), original(self, x, s, c, window, memory))[1]
    )
    make(model, 1, patcher=on(model, copies=0.0, gamma=1.0, which="noisier half"), latent=clip_of(model))
    assert at == [(i, n) for i in (1, 2, 3) for n in (3, 2)]


def test_what_is_remembered_goes_into_the_queue_file(tmp_path):
    model = tiny("wan")
    file = tmp_path / "q.safetensors"
    patcher = on(model, gamma=1.0, normalised=True, lam=0.5)
    whole = make(model, 5, patcher=patcher)
    first = make(model, 2, patcher=patcher, save=file)
    rest = make(model, 3, patcher=patcher, resume=file)
    assert torch.equal(torch.cat([first, rest], 2), whole)


def test_a_model_without_gradients_is_named(monkeypatch):
    model = tiny("wan")
    monkeypatch.setattr(recurrent, "loss", lambda keys, memory: (_ for _ in ()).throw(RuntimeError("no backward here")))
    with pytest.raises(LoomError, match="could not take a gradient through this model \\(no backward here\\)"):
        make(model, 2, patcher=on(model, gamma=1.0))


# --- keys of the head -----------------------------------------------------------------------------------------------


def test_a_segment_holds_the_subject_of_the_frame_that_leaves():
    k = torch.arange(2 * 1 * 6 * 2.0).view(2, 1, 6, 2)
    mask = torch.zeros(2, 3, 1, 2, dtype=torch.bool)
    mask[0, 1, 0, 1] = mask[1, 1, 0, 0] = mask[1, 0, 0, 0] = True
    found = endless_subject.segment(k, -k, mask, 1)
    assert torch.equal(found["k"], k[:, :, 2:4]) and torch.equal(found["v"], -k[:, :, 2:4])
    assert found["b"].tolist() == [[endless_subject.NEVER, 0.0], [0.0, endless_subject.NEVER]]
    assert endless_subject.segment(k, k, torch.zeros_like(mask), 1) is None


@pytest.mark.parametrize("lookahead", [True, False])
def test_the_frame_that_leaves_is_the_one_remembered(lookahead, monkeypatch):
    """Without lookahead the first slot of the window at the clean end leaves, with it the middle one."""
    model, kept = tiny("wan"), []
    original = endless_subject.segment
    monkeypatch.setattr(endless_subject, "segment", lambda k, v, mask, leaves: (kept.append(leaves), original(k, v, mask, leaves))[1])
    make(model, 2, patcher=on(model, copies=2.0, source="the head", which="all"), lookahead=lookahead)
    assert kept and set(kept) == {1 if lookahead else 0}


def test_a_queue_of_one_window_is_both_halves():
    """One partition without lookahead: the default half would otherwise never act."""
    assert EndlessSubject(SCENES, copies=2.0).acts(QueueWindow(0, 1, (0, 1, 2), 0, 0))
    assert not EndlessSubject(SCENES, copies=2.0).acts(QueueWindow(0, 2, (0, 1, 2), 0, 0))


def test_a_key_moved_before_the_window_is_that_of_a_frame_standing_there():
    """On Wan: the same content in frames 0 and 1 of a window; frame 1 moved back by 2 stands where frame 0 moved back by 1 does."""
    from types import SimpleNamespace

    from attention_loom.core.call import Span, TokenLayout
    from attention_loom.core.families import family_of

    diffusion = tiny("wan").patcher.model.diffusion_model
    axis = family_of(diffusion).rope(diffusion)
    layout = TokenLayout((Span("video", 3, (3, 1, 1)),))
    call = SimpleNamespace(rope=axis, q=layout)
    raw = torch.randn(1, 1, 1, 128, generator=torch.Generator().manual_seed(0))
    spectrum = endless_subject.spectrum(axis, 64)[None]
    at = [endless_subject.rotate(raw, torch.tensor([[float(t)]]), spectrum, axis.pairing) for t in (-1.0, 0.0, 1.0)]
    for frame in (0, 1):
        assert torch.allclose(endless_subject.before_first(call, at[frame + 1], frame), at[0], atol=1e-5)


@pytest.mark.parametrize("name", ["wan", "ltx", "cosmos_predict2"])
def test_the_head_is_attended_to_from_the_second_iteration_on(name):
    model = tiny(name)
    stock, out = make(model, 3), make(model, 3, patcher=on(model, source="the head"))
    assert bool(out.isfinite().all()) and not torch.equal(out, stock)


def test_the_heads_keys_go_into_the_queue_file_and_do_not_pile_up(tmp_path):
    from safetensors.torch import load_file

    model = tiny("wan")
    patcher, files = on(model, source="the head"), [tmp_path / f"{i}.safetensors" for i in range(2)]
    whole = make(model, 6, patcher=patcher)
    first = make(model, 2, patcher=patcher, save=files[0])
    rest = make(model, 4, patcher=patcher, resume=files[0], save=files[1])
    assert torch.equal(torch.cat([first, rest], 2), whole)
    names = [sorted(load_file(f)) for f in files]
    assert names[0] == names[1] and "memory.segment.1.k" in names[0]


def test_no_copy_of_the_head_is_stock_and_a_negative_row_reads_none(monkeypatch):
    """A segment that no row may read leaves the result as it was."""
    model = tiny("wan")
    stock = make(model, 3)
    monkeypatch.setattr(endless_subject, "_positive", lambda call: slice(0, 1))
    original = endless_subject.segment
    monkeypatch.setattr(
        endless_subject, "segment", lambda k, v, mask, leaves: None if (s := original(k, v, mask, leaves)) is None else s | {"b": torch.full_like(s["b"], endless_subject.NEVER)}
    )
    assert torch.allclose(make(model, 3, patcher=on(model, source="the head")), stock, atol=1e-4)


def test_guidance_goes_through_the_heads_keys():
    model = tiny("wan")
    patcher = on(model, source="the head", gamma=1.0, normalised=True)
    assert bool(make(model, 1, patcher=patcher, cfg=1.0, latent=clip_of(model)).isfinite().all())
