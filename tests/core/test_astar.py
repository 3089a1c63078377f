"""A-STAR: losses, steps and whole runs against formulas and loops written down a second time."""

import math
from dataclasses import replace

import host_inprocess
import pytest
import torch
from attention_loom.core.attach import attach, methods_of, record_of
from attention_loom.core.call import Block
from attention_loom.core.concepts import Concept, Located
from attention_loom.core.differentiable import gradients, plain, thawed
from attention_loom.core.errors import LoomError
from attention_loom.core.methods import astar
from attention_loom.core.methods.astar import AStar
from attention_loom.core.methods.guided import Moment
from attention_loom.core.schedule import BlockSelection, Window
from tiny_models import here, tiny
from tiny_models import sample as run

TWO = Located((Concept("cat", (1,), ("cat",)), Concept("frog", (3,), ("frog",))), (1, 2, 3), 5)
FAMILIES = (
    "sd15",
    "sdxl",
    "sd3",
    "flux",
    "chroma",
    "qwen_image",
    "lumina2",
    "z_image",
    "wan",
    *here("aura_flow", "omnigen2", "boogu", "krea2", "ideogram4", "mage_flow", "joyimage"),
)


# --- losses ----------------------------------------------------------------------------------------------------------


def maps(*rows):
    return torch.tensor(rows, dtype=torch.float64)[None, :, None, :]


def test_units_of_segregation():
    same, apart = maps([0.2, 0.8, 0.4], [0.2, 0.8, 0.4]), maps([1.0, 0.0, 0.0], [0.0, 0.5, 0.5])
    assert float(astar.segregation_loss(same)) == 0.5
    assert float(astar.segregation_loss(apart)) == 0.0
    three = maps([0.2, 0.8], [0.2, 0.8], [0.2, 0.8])
    assert float(astar.segregation_loss(three)) == pytest.approx(1.5)
    some = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    assert torch.allclose(astar.segregation_loss(some), astar.segregation_loss(some.flip(1)))
    assert torch.allclose(astar.segregation_loss(some), astar.segregation_loss(7 * some))


def test_units_of_retention():
    high = maps([0.0, 1.0, 1.0], [1.0, 0.0, 0.0])
    assert float(astar.retention_loss(high, high)) == 1.0  # 0.5 for each of two
    assert float(astar.retention_loss(torch.zeros_like(high), high)) == 2.0
    some = torch.rand(1, 2, 4, 5, dtype=torch.float64)
    assert 1.0 <= float(astar.retention_loss(some, astar.binarise(some, 0.5))) <= 2.0


def test_attend_and_excite_looks_at_the_weakest():
    assert float(astar.excite_loss(maps([0.9, 0.1], [0.2, 0.3]))) == pytest.approx(0.7)


def test_binary_maps_always_hold_a_cell():
    flat = torch.zeros(1, 2, 2, 2)
    flat[0, 1] = torch.tensor([[0.1, 0.2], [0.4, 0.19]])
    assert astar.binarise(flat, 0.5).tolist() == [[[[1, 1], [1, 1]], [[0, 1], [1, 0]]]]


def test_blur_is_the_published_kernel():
    """exp(-((x - mean) / (2 sigma))^2) with sigma 0.5, edges mirrored."""
    dot = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    dot[0, 0, 2, 2] = 1
    out = astar.smooth(dot)[0, 0]
    edge = math.exp(-1) / (1 + 2 * math.exp(-1))
    assert float(out[2, 1]) == pytest.approx(edge * (1 - 2 * edge))
    assert float(out.sum()) == pytest.approx(1.0)
    assert torch.allclose(astar.smooth(torch.ones(1, 1, 4, 3)), torch.ones(1, 1, 4, 3))


def test_sharpened_and_raw_maps_against_the_formula():
    columns = torch.rand(2, 3, 1, 4, 6, dtype=torch.float64) * 0.05
    sharp = AStar(TWO).picture(columns, cross=True)
    p = torch.softmax(100 * columns[:, :, 0], 1)
    assert torch.allclose(sharp, astar.smooth(p[:, [0, 2]]))
    raw = AStar(TWO, maps="raw").picture(columns, cross=False)
    share = columns[:, :2, 0] / (columns[:, 2:, 0] + 1e-6)
    assert torch.allclose(raw, share / share.amax((2, 3), keepdim=True))
    assert raw.max() == 1.0


def test_user_masks_replace_what_is_retained_from_the_first_step_on():
    mask = torch.zeros(1, 8, 12)
    mask[0, :4, :4] = 1
    method = AStar(TWO, masks=mask)
    a = torch.rand(1, 2, 4, 6, dtype=torch.float64)
    target = torch.zeros(4, 6, dtype=torch.float64)
    target[:2, :2] = 1
    first = method.objective(a, None) - astar.segregation_loss(a)
    assert torch.allclose(first, 1 - astar.overlap(a[:, 0], target[None]))
    later = method.objective(a, astar.binarise(a, 0.5)) - astar.segregation_loss(a)
    assert torch.allclose(later, first + 1 - astar.overlap(a[:, 1], astar.binarise(a, 0.5)[:, 1]))
    dot = torch.zeros(1, 80, 120)
    dot[0, 0, 0] = 1
    assert float(astar.cells_of(dot, (4, 6)).sum()) == 1, "a small mask keeps one cell"


# --- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.3, 3.0, 14.6])
def test_paper_step_is_the_one_on_the_unit_variance_latent(sigma):
    """x = z sqrt(1 + sigma^2): the step on z by its own gradient, brought back, is the step on x."""
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64) * sigma
    unit = (1 + sigma**2) ** 0.5
    loss = lambda z: (z.sin() * torch.arange(18.0, dtype=torch.float64).view(1, 2, 3, 3)).sum()  # noqa: E731
    z = (x / unit).requires_grad_(True)
    (dz,) = torch.autograd.grad(loss(z), z)
    leaf = x.clone().requires_grad_(True)
    (dx,) = torch.autograd.grad(loss(leaf / unit), leaf)
    at = Moment(2, 5, sigma, flow=False)
    alpha = 20 * math.sqrt(1 - 0.5 * 2 / 4)
    assert torch.allclose(AStar(TWO).moved(x, dx, at), (z.detach() - alpha * dz) * unit)
    assert torch.allclose(AStar(TWO).moved(x, dx, replace(at, flow=True)), x - alpha * dx)


def test_normalised_step_has_the_asked_for_size():
    x, g = torch.randn(2, 4, 8, 8) * torch.tensor([1.0, 5.0]).view(2, 1, 1, 1), torch.randn(2, 4, 8, 8) * 1e-6
    method = AStar(TWO, step_mode="normalised", eta=0.05, strength=0.5)
    moved = method.moved(x, g, Moment(0, 9, 0.8, flow=True)) - x
    assert torch.allclose(astar.rms(moved), 0.5 * 0.05 * 0.8 * astar.rms(x))
    eps = method.moved(x, g, Moment(0, 9, 3.0, flow=False)) - x
    assert torch.allclose(astar.rms(eps), 0.5 * 0.05 * 3 / 10**0.5 * astar.rms(x))


# --- which maps ------------------------------------------------------------------------------------------------------


def test_default_blocks_are_those_of_the_papers():
    from attention_loom.core.families import families
    from attention_loom.core.families.base import number

    known = {family.name: family for family in families()}
    sd15 = [Block("input", i, n, 16, 0, lv) for n, (i, lv) in enumerate([(1, 0), (2, 0), (4, 1), (5, 1), (7, 2), (8, 2)])]
    sd15 += [Block("middle", 0, 6, 16, 0, 3)] + [Block("output", i, 4 + i, 16, 0, 2 - (i // 3 - 1)) for i in range(3, 12)]
    picked = astar.read_blocks(known["SD 1.5 / SDXL"], sd15, BlockSelection(), (1, 64, 64), 0)
    assert [str(b) for b in picked] == ["input 7.0", "input 8.0", "output 3.0", "output 4.0", "output 5.0"]
    assert {b.level for b in astar.read_blocks(known["SD 1.5 / SDXL"], sd15, BlockSelection(), (1, 64, 64), 32)} == {1}
    for family, groups, expected in (
        ("SD3", {"double": 24}, range(5, 15)),
        ("FLUX", {"double": 19, "single": 38}, range(10, 19)),
        ("Qwen-Image", {"double": 60}, range(20, 46)),
        ("Lumina 2 / Z-Image", {"block": 26}, range(8, 21)),
        ("Wan", {"block": 40}, range(0, 40, 4)),
        ("Krea 2", {"single": 30}, range(10, 20)),
    ):
        picked = astar.read_blocks(known[family], number(groups), BlockSelection(), (1, 64, 64), 0)
        assert [b.index for b in picked] == list(expected) and len({b.kind for b in picked}) == 1
    assert [b.index for b in astar.read_blocks(known["SD3"], number({"double": 24}), BlockSelection.parse("3-4"), (1, 8, 8), 0)] == [3, 4]


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"strength": 0.0},
        {"alpha": 0.0},
        {"lambda_seg": 0.0, "lambda_ret": 0.0},
        {"step_mode": "normalised", "eta": 0.0},
        {"loss": "seg only", "lambda_seg": 0.0},
        {"window": Window(0.5, 0.5)},
    ],
)
def test_settings_that_say_nothing_are_off(settings):
    assert AStar(TWO, **settings).off
    assert not AStar(TWO).off


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"masks": torch.ones(3, 4, 4)}, "at most 2 masks"),
        ({"masks": torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])}, "mask 2 is empty"),
        ({"concepts": replace(TWO, concepts=TWO.concepts[:1])}, "segregation needs two"),
        ({"concepts": replace(TWO, concepts=())}, "no concept"),
        ({"concepts": replace(TWO, words=tuple(range(300)))}, "set maps to raw"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(LoomError, match=words):
        AStar(**{"concepts": TWO, **settings})
    assert not AStar(replace(TWO, concepts=TWO.concepts[:1]), loss="ret only").off


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    host_inprocess.import_host()
    with torch.inference_mode():
        yield


def settings(name):
    return {} if name in ("sd15", "sdxl") else {"step_mode": "normalised", "maps": "raw", "eta": 0.1}


@pytest.mark.host
@pytest.mark.parametrize("name", FAMILIES)
def test_one_step_lowers_the_loss_in_every_family(server, name, monkeypatch):
    model = tiny(name)
    method = AStar(TWO, repeats=6, window=Window(0.0, 0.4), **({"alpha": 2.0} if name.startswith("sd1") or name == "sdxl" else settings(name)))
    kept = []
    original = AStar.before

    def before(self, step):
        original(self, step)
        kept.append(list(step.memory["losses"]))

    monkeypatch.setattr(AStar, "before", before)
    patched = attach(model.patcher, method)
    run(patched, model)
    assert record_of(patched).last.touched[AStar.owner] == 6 * len(kept)
    assert kept[0][-1] < kept[0][0], kept[0]
    assert all(math.isfinite(x) for x in kept[0])


@pytest.mark.host
@pytest.mark.parametrize("off", [{"strength": 0.0}, {"window": Window(0.999, 1.0)}], ids=["off", "outside the window"])
def test_off_and_outside_the_window_no_bit_changes_and_no_gradient_is_taken(server, off, monkeypatch):
    from attention_loom.core import latent

    model = tiny("sd15")
    monkeypatch.setattr(latent.LatentStep, "gradient", lambda *a: pytest.fail("a gradient was taken"))
    patched = attach(model.patcher, AStar(TWO, **off))
    assert torch.equal(run(model.patcher, model), run(patched, model))
    assert bool(methods_of(patched)) == ("window" in off)


@pytest.mark.host
def test_retention_without_a_past_changes_nothing_and_later_follows_the_step_before(server):
    model = tiny("sd15")
    one = attach(model.patcher, AStar(TWO, loss="ret only"))
    assert torch.equal(run(model.patcher, model, steps=1), run(one, model, steps=1))
    assert not torch.equal(run(model.patcher, model, steps=3), run(one, model, steps=3))
    assert record_of(one).last.touched[AStar.owner] == 2


@pytest.mark.host
@pytest.mark.parametrize("cfg", [3.0, 1.0])
def test_a_run_equals_a_loop_written_by_hand(server, cfg):
    """Two Euler steps with every part written down again: maps by an explicit softmax, losses cell by cell, the latent in unit variance."""
    import comfy.sample
    from comfy.samplers import simple_scheduler

    model = tiny("sd15")
    base = model.patcher.model
    states = []
    run(attach(model.patcher, AStar(TWO, alpha=2.0)), model, cfg=cfg, callback=lambda i, denoised, x, total: states.append(x.clone()))
    context = [plain(side[0][0]) for side in (model.positive, model.negative)]
    sigmas = simple_scheduler(base.model_sampling, 2)
    x = base.model_sampling.noise_scaling(sigmas[0], comfy.sample.prepare_noise(model.latent, 20), model.latent, True)

    def read(x, sigma, which):
        found = []

        def override(func, q, k, v, heads, *args, **kwargs):
            if k.shape[1] == 5 and q.shape[1] == 24:
                a, b = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
                found.append((a @ b.mT / a.shape[-1] ** 0.5).softmax(-1).mean(1))
            from comfy.ldm.modules.attention import attention_pytorch

            return attention_pytorch.__wrapped__(q, k, v, heads, *args, **kwargs)

        denoised = base.apply_model(x, sigma.expand(1), c_crossattn=context[which], transformer_options={"optimized_attention_override": override})
        p = (100 * torch.stack(found).mean(0)[:, :, 1:4]).softmax(-1).mT.unflatten(2, (4, 6))
        return denoised, astar.smooth(p)[0, [0, 2]]

    def loss(cat, frog, past):
        total = torch.minimum(cat, frog).sum() / (cat + frog).sum()
        for now, before in zip((cat, frog), past, strict=True) if past is not None else ():
            high = (before >= 0.5 * before.max()).float()
            total = total + 1 - torch.minimum(now, high).sum() / (now + high).sum()
        return total

    past = None
    with gradients(), thawed(base):
        for i in range(2):
            sigma, unit = sigmas[i].clone(), (1 + float(sigmas[i]) ** 2) ** 0.5
            z = (plain(x) / unit).detach().requires_grad_(True)
            (dz,) = torch.autograd.grad(loss(*read(z * unit, sigma, 0)[1], past), z)
            x = ((z - 2.0 * math.sqrt(1 - 0.5 * i) * dz) * unit).detach()
            assert torch.allclose(x, states[i], rtol=1e-3, atol=2e-3 * float(x.std())), i
            with torch.no_grad():
                denoised, past = read(x, sigma, 0)
                other = read(x, sigma, 1)[0]
            x = x + (x - (other + cfg * (denoised - other))) / sigma * (sigmas[i + 1] - sigma)


@pytest.mark.host
@pytest.mark.parametrize("name", ["wan_ti2v", "ltx", "mochi"])
def test_families_without_known_words_are_refused_and_wan_is_not(server, name):
    model = tiny(name)
    if name == "wan_ti2v":
        assert methods_of(attach(model.patcher, AStar(TWO, **settings(name))))
    else:
        with pytest.raises(LoomError, match="does not know where the words"):
            attach(model.patcher, AStar(TWO, **settings(name)))


@pytest.mark.host
@pytest.mark.parametrize("eta", [1.0, 0.9, 0.0])
def test_an_ancestral_sampler_with_other_noise_is_guided_at_every_step(server, eta):
    """With eta 1 its middle evaluation lies on the next level, otherwise it does not."""
    import comfy.samplers

    model = tiny("sd15")
    patched = attach(model.patcher, AStar(TWO, alpha=2.0))
    sampler = comfy.samplers.ksampler("dpmpp_2s_ancestral", {"eta": eta, "s_noise": 1.0})
    sigmas = comfy.samplers.calculate_sigmas(model.patcher.get_model_object("model_sampling"), "simple", 5)
    noise = torch.randn(model.latent.shape, generator=torch.Generator().manual_seed(1))
    comfy.samplers.sample(patched, noise, model.positive, model.negative, 3.0, torch.device("cpu"), sampler, sigmas, latent_image=model.latent, disable_pbar=True, seed=1)
    assert record_of(patched).last.touched[AStar.owner] == 5


@pytest.mark.host
def test_a_sampler_that_steps_onto_the_next_level_first_is_guided_in_its_own_state(server, monkeypatch):
    """seeds_2 with r = 1, which later hosts also call exp_heun_2_x0."""
    import comfy.samplers

    model, moved, states = tiny("sd15"), [], []
    patched = attach(model.patcher, AStar(TWO, alpha=2.0))
    original = AStar.before
    monkeypatch.setattr(AStar, "before", lambda self, step: (original(self, step), moved.append(step.x.data_ptr()))[0])
    sampler = comfy.samplers.ksampler("seeds_2", {"r": 1.0, "eta": 0.0, "s_noise": 0.0})
    sigmas = comfy.samplers.calculate_sigmas(model.patcher.get_model_object("model_sampling"), "simple", 4)
    noise = torch.randn(model.latent.shape, generator=torch.Generator().manual_seed(1))
    comfy.samplers.sample(
        patched, noise, model.positive, model.negative, 3.0, torch.device("cpu"), sampler, sigmas, latent_image=model.latent, disable_pbar=True, seed=1,
        callback=lambda i, denoised, x, total: states.append(x.data_ptr()),
    )  # fmt: skip
    assert len(moved) == 4 and moved == states


@pytest.mark.host
def test_among_several_prompts_the_one_of_the_words_is_read(server):
    """Conditioning (Combine) in either order; none of them known; and a prompt that gives way to another."""
    from attention_loom.core.concepts import tagged

    model = tiny("sd15")
    text, facts = model.positive[0]
    other = [[torch.randn(text.shape, generator=torch.Generator().manual_seed(9)), facts]]
    named = replace(TWO, prompt="a cat and a frog")
    own = tagged(model.positive, "a cat and a frog")

    def first(positive, steps=2):
        states, patched = [], attach(model.patcher, AStar(named, alpha=2.0))
        run(patched, model._replace(positive=positive), steps=steps, callback=lambda i, denoised, x, total: states.append(x.clone()))
        return states[0], record_of(patched).last

    alone = first(own)[0]
    assert torch.allclose(first([*own, *other])[0], alone, atol=1e-4) and torch.allclose(first([*other, *own])[0], alone, atol=1e-4)
    assert not torch.allclose(first(other)[0], alone, atol=1e-2)
    with pytest.raises(LoomError, match="2 positive prompts for the whole picture, and none is known"):
        first([*other, *model.positive])
    early = [[c, f | {"start_percent": 0.0, "end_percent": 0.5}] for c, f in own] + [[c, f | {"start_percent": 0.5, "end_percent": 1.0}] for c, f in other]
    record = first(early, steps=4)[1]
    assert record.touched[AStar.owner] == 2 and any("left some steps alone" in w for w in record.warnings)


@pytest.mark.host
def test_blocks_without_maps_are_refused(server):
    model = tiny("flux")
    with pytest.raises(LoomError, match="selects no block"):
        run(attach(model.patcher, AStar(TWO, blocks=BlockSelection.parse("d7"), **settings("flux"))), model)


@pytest.mark.host
def test_text_the_model_pads_inside_is_refused_not_guessed(server):
    model = tiny("flux2")  # the host puts 507 empty tokens before the prompt
    with pytest.raises(LoomError, match="where its words stand cannot be told"):
        run(attach(model.patcher, AStar(TWO, **settings("flux2"))), model)
