"""Grad-SAM: derivatives, scores and masks against definitions written out, and whole runs against the formula of the blend."""

import math
from dataclasses import replace

import host_inprocess
import pytest
import torch
from attention_loom.core import subject_mask
from attention_loom.core.attach import attach, methods_of, record_of
from attention_loom.core.call import AttentionCall, Block, Seen, Span, TokenLayout
from attention_loom.core.columns import Columns
from attention_loom.core.concepts import Concept, Located
from attention_loom.core.errors import LoomError
from attention_loom.core.families.base import number
from attention_loom.core.influence import Influence, Taps
from attention_loom.core.methods import gradsam
from attention_loom.core.methods.astar import AStar
from attention_loom.core.methods.gradsam import Findings, GradSAM
from attention_loom.core.schedule import BlockSelection
from attention_loom.core.subject_mask import MaskRule
from tiny_models import here, tiny
from tiny_models import sample as run

CAT = Located((Concept("cat", (1, 2), ("cat", "s")),), (1, 2, 3), 5)
BOTH = Located((Concept("cat", (1, 2), ("cat", "s")), Concept("frog", (3,), ("frog",))), (1, 2, 3), 5)
FAMILIES = ("sd15", "sdxl", "sd3", "flux", "qwen_image", "lumina2", "z_image", *here("aura_flow", "omnigen2", "boogu", "krea2", "ideogram4", "mage_flow", "joyimage"))
WIDE = MaskRule(dilate=0)
"""Tiny latents have 24 cells: three cells of growth would cover them."""


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- derivatives -----------------------------------------------------------------------------------------------------


def test_the_derivative_with_respect_to_a_probability_is_that_of_an_explicit_softmax():
    """Joint attention, keys shared by heads, two layers of which the second depends on the first."""
    grid, text, heads, width = (1, 2, 3), 4, 4, 8
    layout = TokenLayout((Span("text", text), Span("image", 6, grid)))
    weights = [seeded(4, heads * width, heads * width, seed=i) * 0.3 for i in (1, 2)]
    x = seeded(2, text + 6, heads * width)
    tokens = (1, 3)

    def qkv(x, w):
        q, k, v = (t.unflatten(-1, (heads, width)).transpose(1, 2) for t in (x @ w[0], x @ w[1], x @ w[2]))
        return q, k[:, :2], v[:, :2]

    def explicit():
        h, leaves = x, []
        for w in weights:
            q, k, v = qkv(h, w)
            p = (q @ k.repeat_interleave(2, 1).mT * 0.4).softmax(-1)
            leaves.append(p if p.requires_grad else p.requires_grad_(True))
            p.retain_grad()
            h = h + torch.tanh((p @ v.repeat_interleave(2, 1)).transpose(1, 2).flatten(2) @ w[3])
        s = (h.sin() * seeded(*h.shape, seed=9)).sum()
        s.backward()
        return [(p.detach()[:, :, text:, list(tokens)].mT, p.grad[:, :, text:, list(tokens)].mT) for p in leaves]

    taps, h = Taps(Columns(frozenset(number({"double": 2})), tuple((t,) for t in tokens)), text), x
    for block, w in zip(number({"double": 2}), weights, strict=True):
        q, k, v = qkv(h, w)
        call = AttentionCall("toy", block, "joint", heads, width, layout, layout, 1.0, 0.0, (0,), 2, q.device, q.dtype)
        assert taps.wants(call)
        out = (q @ k.repeat_interleave(2, 1).mT * 0.4).softmax(-1) @ v.repeat_interleave(2, 1)
        out = out + taps.nudge(call, Seen(q, k, v, None, 0.4, None))
        h = h + torch.tanh(out.transpose(1, 2).flatten(2) @ w[3])
    found = taps.influences((h.sin() * seeded(*h.shape, seed=9)).sum()[None], scale=8.0)
    for one, (share, slope) in zip(found, explicit(), strict=True):
        assert one.grid == grid
        assert (one.share - share).abs().max() < 1e-10
        assert (one.slope[0] - slope).abs().max() < 1e-10
        assert slope.abs().max() > 1e-3


def tail(normed):
    """What follows the last cross-attention of a U-Net, small: projection per place, GroupNorm or not, 3 x 3 convolution."""
    project, kernel = seeded(8, 16, seed=3), seeded(2, 16, 3, 3, seed=4) * 0.2

    def after(out, size):  # [B, H, N, D] -> [B, 2, h, w]
        cells = torch.tanh(torch.einsum("bhnd,dc->bcn", out, project)).unflatten(-1, size)
        return torch.nn.functional.conv2d(torch.nn.functional.group_norm(cells, 4) if normed else cells, kernel, padding=1)

    return after


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("name", ["abs", "relu"])
def test_coloured_sums_give_the_score_of_every_output_element(normed, name):
    size, heads, text = ((16, 16) if normed else (7, 8)), 2, 5
    n = size[0] * size[1]
    p = (seeded(1, heads, n, text) * 2).softmax(-1).requires_grad_(True)
    y = tail(normed)(p @ seeded(1, heads, text, 8, seed=5), size)
    tokens = [1, 4]

    def slope(s):
        return torch.autograd.grad(s, p, retain_graph=True)[0][..., tokens].mT

    share = p.detach()[..., tokens].mT
    found = Influence(Block("output", 11), (1, *size), share, torch.stack([slope(s) for s in subject_mask.coloured_sums(y)]))
    score = subject_mask.exact_score(found, [range(2)], name)
    whole = torch.stack([(share * subject_mask.phi(slope(e), name)).sum((1, 2, 3)) for e in y.flatten()]).view(1, 1, *y.shape[1:])
    if normed:
        # the statistics couple all places a little; what becomes the mask hardly sees it
        for ours, theirs, least in ((score, whole, 0.97), (MaskRule().heat(score), MaskRule().heat(whole), 0.99)):
            assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > least
    else:
        assert (score - whole).abs().max() < 1e-12
        assert whole.max() > 1e-3


def toy_influences(values=None, order=None, name="abs"):
    """Two layers of different sizes, one number."""
    found = []
    for i, size in enumerate([(4, 6), (2, 3)]):
        v = seeded(2, 2, 5, 8, seed=20 + i) if values is None else values
        q, k = seeded(2, 2, size[0] * size[1], 8, seed=30 + i), seeded(2, 2, 5, 8, seed=40 + i)
        order_ = list(range(5)) if order is None else order
        k, v = k[:, :, order_], v[:, :, order_]
        p = (q @ k.mT).softmax(-1).requires_grad_(True)
        (slope,) = torch.autograd.grad(((p @ v).tanh() * seeded(2, 2, 1, 8, seed=50)).sum(), p)
        found.append(Influence(Block("input", i), (1, *size), p.detach()[..., 1:2].mT, slope[None][..., 1:2].mT))
    return found


def test_scores_are_never_negative_and_abs_is_the_larger():
    found = toy_influences()
    for block in found:
        absolute, positive = ((block.share * subject_mask.phi(block.slope, name)) for name in ("abs", "relu"))
        assert (absolute >= positive).all() and (positive >= 0).all() and (absolute > positive).any()
    score = subject_mask.fast_score(found, [range(1)], "abs", (4, 6))
    assert score.shape == (2, 1, 1, 4, 6) and (score >= 0).all()
    assert torch.allclose(score.sum((2, 3, 4)), torch.ones(2, 1, dtype=torch.float64))


def test_a_word_without_values_scores_nothing_and_the_others_order_is_no_matter():
    v = seeded(2, 2, 5, 8, seed=20)
    v[:, :, 1] = 0
    assert not subject_mask.fast_score(toy_influences(v), [range(1)], "abs", (4, 6)).any()
    moved = subject_mask.fast_score(toy_influences(order=[4, 1, 0, 2, 3]), [range(1)], "abs", (4, 6))
    assert torch.allclose(moved, subject_mask.fast_score(toy_influences(), [range(1)], "abs", (4, 6)), atol=1e-12)


def test_blocks_weigh_by_the_size_of_their_derivatives():
    big, small = toy_influences()
    small = replace(small, slope=small.slope * 1e-9)
    alone = subject_mask.fast_score([big], [range(1)], "abs", (4, 6))
    assert torch.allclose(subject_mask.fast_score([big, small], [range(1)], "abs", (4, 6)), alone, atol=1e-7)


# --- masks -----------------------------------------------------------------------------------------------------------


def test_a_mask_follows_its_rule_step_by_step():
    score = seeded(2, 2, 3, 9, 11).abs()
    rule = MaskRule(threshold=0.5, blur=3, sigma=6.0, dilate=2)
    scaled = (score - score.amin((3, 4), keepdim=True)) / (score.amax((3, 4), keepdim=True) - score.amin((3, 4), keepdim=True))
    heat = rule.heat(score)
    box = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(scaled.mean(2), (1,) * 4, mode="replicate"), 3, 1)
    assert (heat[:, :, 0] - box).abs().max() < 0.02, "sigma 6 is nearly a box"
    binary = heat[:, :, 0] > (heat.mean((2, 3, 4)) + 0.5 * heat.std((2, 3, 4), correction=0))[..., None, None]
    for _ in range(2):
        binary = torch.nn.functional.max_pool2d(binary.double(), 3, 1, 1)
    assert torch.equal(rule.mask(heat), binary.amax(1, keepdim=True))
    assert rule.mask(heat).shape == (2, 1, 9, 11)
    assert replace(rule, per_channel=True).mask(replace(rule, per_channel=True).heat(score)).shape == (2, 3, 9, 11)
    assert not rule.mask(torch.ones(1, 1, 1, 4, 4)).any(), "a flat score has no subject"


def test_a_soft_mask_is_full_where_the_hard_one_is_and_falls_off_below():
    heat = MaskRule().heat(seeded(1, 1, 1, 12, 12).abs())
    hard, soft = MaskRule(dilate=0).mask(heat), MaskRule(dilate=0, soft=True).mask(heat)
    assert (soft[hard == 1] == 1).all() and (soft[hard == 0] < 1).all() and float(soft.min()) == 0.0
    with pytest.raises(LoomError, match="switch one off"):
        MaskRule(soft=True, tidy=True)


def test_tidying_fills_holes_and_drops_specks():
    mask = torch.zeros(1, 1, 30, 30)
    mask[..., 4:12, 4:12] = 1
    mask[..., 7:9, 7:9] = 0
    mask[..., 20, 20] = 1
    mask[..., 0:5, 25] = 1
    expected = mask.clone()
    expected[..., 7:9, 7:9] = 1
    expected[..., 20, 20] = 0
    expected[..., 0:5, 25] = 0
    assert torch.equal(subject_mask.tidied(mask), expected)


# --- the blend -------------------------------------------------------------------------------------------------------


def test_blending_is_exact_at_the_ends_and_inverting_swaps_them():
    x, other = seeded(2, 4, 3, 5), seeded(1, 4, 3, 5, seed=1)
    share = torch.zeros(2, 1, 3, 5, dtype=torch.float64)
    share[:, :, :, 2:] = 1
    out = gradsam.blend(x, other, share)
    assert torch.equal(out[..., :2], x[..., :2]) and torch.equal(out[..., 2:], other.expand(2, -1, -1, -1)[..., 2:])
    mask = (seeded(2, 1, 3, 5, seed=2) > 0).double()
    keep, turned = (GradSAM(CAT, invert=i)._share(mask) for i in (False, True))
    assert torch.equal(keep, 1 - turned) and torch.equal(turned, mask)
    assert torch.equal(gradsam.blend(x.unsqueeze(2), other.unsqueeze(2), share)[:, :, 0], out), "latents with a frame axis"


def test_a_reference_is_cut_to_the_shape_of_the_latent():
    said = []
    wide = torch.arange(40.0).expand(1, 4, 20, 40)
    cut = gradsam.fitted(wide, (3, 4, 1, 10, 10), said.append)
    assert cut.shape == (1, 4, 1, 10, 10) and len(said) == 1
    assert abs(float(cut.mean()) - 19.5) < 0.1, "the middle is kept"
    assert gradsam.fitted(wide, (1, 4, 20, 40), said.append) is wide
    with pytest.raises(LoomError, match="4 channels and the latent of this model 16"):
        gradsam.fitted(wide, (1, 16, 10, 10), said.append)
    with pytest.raises(LoomError, match="2 references were given for 3 pictures"):
        gradsam.fitted(wide.expand(2, -1, -1, -1), (3, 4, 20, 40), said.append)


def test_default_blocks():
    from attention_loom.core.families import families

    known = {family.name: family for family in families()}
    unet = [Block("input", i, i, 4, 0, level) for i, level in enumerate((0, 1, 2, 3))]
    assert [b.level for b in gradsam.read_blocks(known["SD 1.5 / SDXL"], unet, BlockSelection(), 64)] == [1, 2, 3]
    assert [b.level for b in gradsam.read_blocks(known["SD 1.5 / SDXL"], unet, BlockSelection(), 512)] == [3]
    assert [b.index for b in gradsam.read_blocks(known["SD3"], number({"double": 24}), BlockSelection(), 64)] == list(range(8, 17))
    assert [b.index for b in gradsam.read_blocks(known["FLUX"], number({"double": 19, "single": 38}), BlockSelection(), 64)] == list(range(10, 19))
    assert [b.index for b in gradsam.read_blocks(known["FLUX"], number({"double": 19, "single": 38}), BlockSelection.parse("s2-3"), 64)] == [2, 3]


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    host_inprocess.import_host()
    with torch.inference_mode():
        yield


def reference_for(model, batch=1):
    shape = model.latent.shape
    return torch.randn(batch, *shape[1:], generator=torch.Generator().manual_seed(7))


@pytest.mark.host
@pytest.mark.parametrize(("name", "how"), [(name, "fast") for name in FAMILIES] + [("sd15", "exact")])
def test_every_family_takes_the_reference_outside_the_mask(server, name, how):
    """At entry of the step: the subject's cells as Euler left them, the rest the noised reference to the last bit."""
    model, states, into = tiny(name), [], Findings()
    base, reference = model.patcher.model, reference_for(model)
    method = GradSAM(BOTH, reference, at=(0.5,), how=how, rule=WIDE, into=into, noise_seed=3)
    patched = attach(model.patcher, method)
    values = {k: p.clone() for k, p in base.named_parameters()}
    stock = run(model.patcher, model, steps=4)
    out = run(patched, model, steps=4, callback=lambda i, denoised, x, total: states.append((x.clone(), denoised.clone())))
    assert not torch.equal(out, stock)
    assert record_of(patched).last.touched[GradSAM.owner] == 1
    (look,) = into.looks
    assert (look.step, look.steps) == (1, 4) and look.heat.shape[:2] == (1, 2) and 0 < float(look.mask.mean()) < 1
    from comfy.samplers import simple_scheduler

    sigmas = simple_scheduler(base.model_sampling, 4)
    (x, denoised), (entry, _) = states[1], states[2]
    free = x + (x - denoised) / sigmas[1] * (sigmas[2] - sigmas[1])
    noise = torch.randn((1, *model.latent.shape[1:]), generator=torch.Generator().manual_seed(3))
    noised = base.model_sampling.noise_scaling(sigmas[2], noise, base.process_latent_in(reference))
    mask = look.mask.view(1, 1, *[1] * (x.ndim - 4), *x.shape[-2:]).expand_as(x) == 1
    assert torch.equal(entry[~mask], noised[~mask])
    assert torch.allclose(entry[mask], free[mask], rtol=1e-4, atol=1e-4 * float(x.std()))
    assert all(torch.equal(values[k], p) for k, p in base.named_parameters())
    assert torch.equal(stock, run(model.patcher, model, steps=4)), "the model is left as it was"


@pytest.mark.host
@pytest.mark.parametrize("name", ["sd15", "sd3", "flux"])
def test_slopes_equal_finite_differences_in_whole_models(server, name, monkeypatch):
    """In fp64: the prediction with a little more attention to a word at one layer, on either side."""
    from comfy.model_management import InterruptProcessingException
    from test_latent import doubled

    model, pairs, network = doubled(name), [], {}
    # the host hands predictions on in fp32; the network's own output is in fp64
    model.patcher.model.diffusion_model.register_forward_hook(lambda module, given, out: network.update(out=out))

    def numbers(y, other):
        out = network["out"]
        return (out.sin() * torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)).sum()[None]

    def before(self, step):
        step.x, step._sigma = step.x.double(), step._sigma.double()
        wanted = step.memory["wanted"]
        found = step.influence(wanted, numbers)
        nudge = Taps.nudge
        for place in (0, len(found) - 1):
            direction, values = seeded(*found[place].share.shape, seed=place), []
            for h in (1e-4, -1e-4):

                def shifted(taps, call, seen, h=h, place=place, direction=direction):
                    term = nudge(taps, call, seen)
                    if len(taps._reads) == place + 1:
                        offset, span = call.q.grid_span
                        with torch.no_grad():
                            more = torch.einsum("bhgn,bhgd->bhnd", h * direction, taps._values(call, seen.v))
                        term = term + torch.nn.functional.pad(more, (0, 0, offset, call.q.length - offset - span.length))
                    return term

                monkeypatch.setattr(Taps, "nudge", shifted)
                kept = []
                step.influence(wanted, lambda y, other, kept=kept: kept.append(numbers(y, other)) or kept[0])
                monkeypatch.setattr(Taps, "nudge", nudge)
                values.append(float(kept[0].detach()))
            pairs.append(((values[0] - values[1]) / 2e-4, float((found[place].slope[0] * direction).sum())))
        raise InterruptProcessingException

    monkeypatch.setattr(GradSAM, "before", before)
    with pytest.raises(InterruptProcessingException):
        run(attach(model.patcher, GradSAM(CAT, reference_for(model), how="fast")), model, steps=3)
    table = torch.tensor(pairs)
    assert table.abs().max() > 1e-6, "the prediction must depend on the attention, or this proves nothing"
    assert ((table[:, 0] - table[:, 1]).abs() <= 1e-6 * table.abs().max()).all(), table


@pytest.mark.host
@pytest.mark.parametrize("scalar", gradsam.SCALARS)
def test_looking_changes_no_bit(server, scalar):
    model, into = tiny("sd15"), Findings()
    patched = attach(model.patcher, GradSAM(BOTH, how="fast", scalar=scalar, rule=WIDE, into=into))
    assert torch.equal(run(patched, model, steps=5), run(model.patcher, model, steps=5))
    assert [look.step for look in into.looks] == [0, 1, 2] and into.subjects == ("cat", "frog")
    report = record_of(patched).last
    assert report.passes[GradSAM.owner] == (6 if scalar == "text_effect" else 3)
    assert "changed nothing" not in report.text() and not report.state


@pytest.mark.host
@pytest.mark.parametrize("settings", [{"strength": 0.0}, {"at": ()}], ids=["strength", "no steps"])
def test_off_takes_no_gradient_and_changes_no_bit(server, settings, monkeypatch):
    from attention_loom.core import latent

    model = tiny("sd15")
    monkeypatch.setattr(latent.LatentStep, "influence", lambda *a, **k: pytest.fail("a gradient was taken"))
    patched = attach(model.patcher, GradSAM(CAT, reference_for(model), **settings))
    assert methods_of(patched) == ()
    assert torch.equal(run(patched, model), run(model.patcher, model))


@pytest.mark.host
@pytest.mark.parametrize("rule", [MaskRule(threshold=50.0), MaskRule(threshold=-50.0)], ids=["empty", "full"])
def test_a_mask_of_nothing_or_everything_is_left_out_with_a_warning(server, rule):
    model = tiny("sd15")
    patched = attach(model.patcher, GradSAM(CAT, reference_for(model), rule=rule, paste=True))
    assert torch.equal(run(patched, model, steps=4), run(model.patcher, model, steps=4))
    assert "left 1 of 1 pictures alone at step 3 of 4" in record_of(patched).last.text()


@pytest.mark.host
def test_the_noise_of_the_reference_matters_only_outside_the_mask_and_pasting_puts_the_reference_there(server):
    model = tiny("sd3")
    reference, entries = reference_for(model), []
    for seed in (1, 2):
        into, states = Findings(), []
        out = run(
            attach(model.patcher, GradSAM(CAT, reference, at=(0.5,), rule=WIDE, into=into, noise_seed=seed, paste=True)),
            model,
            steps=3,
            callback=lambda i, denoised, x, total, states=states: states.append(x.clone()),
        )
        entries.append(states[2])
        outside = (into.looks[0].mask == 0).expand_as(out[0])[None]
        assert torch.equal(out[outside], reference[outside])
        assert not torch.equal(out, reference)
    assert torch.equal((entries[0] != entries[1]).any(1), into.looks[0].mask == 0)


@pytest.mark.host
def test_locking_keeps_the_first_mask_and_looks_once(server):
    model, into = tiny("sd15"), Findings()
    patched = attach(model.patcher, GradSAM(CAT, reference_for(model), rule=WIDE, lock=True, into=into))
    run(patched, model, steps=5)
    assert len(into.looks) == 1
    assert record_of(patched).last.touched[GradSAM.owner] == 3


@pytest.mark.host
@pytest.mark.parametrize("how", ["exact", "fast"])
def test_a_batch_is_its_samples_apart(server, how):
    import comfy.sample

    model = tiny("sd15")
    reference = reference_for(model)
    noise = comfy.sample.prepare_noise(torch.zeros(2, 4, 4, 6), 1)

    def go(part):
        into = Findings()
        patched = attach(model.patcher, GradSAM(BOTH, reference, at=(0.5,), how=how, rule=WIDE, into=into))
        out = comfy.sample.sample(patched, part, 4, 3.0, "euler", "simple", model.positive, model.negative, torch.zeros_like(part), disable_pbar=True, seed=1)
        return out, into.looks[0]

    both, look = go(noise)
    for i in range(2):
        one, alone = go(noise[i : i + 1])
        assert torch.allclose(look.heat[i], alone.heat[0], rtol=1e-3, atol=1e-3 * float(alone.heat.max()))
        assert torch.equal(look.mask[i], alone.mask[0])
        assert torch.allclose(both[i], one[0], rtol=1e-3, atol=1e-3 * float(one.std()))


@pytest.mark.host
@pytest.mark.parametrize(("name", "sampler", "cfg"), [("sd15", "dpmpp_2m", 3.0), ("sd3", "heun", 3.0), ("sd3", "euler_ancestral", 1.0)])
def test_samplers_take_the_reference_once_a_step(server, name, sampler, cfg):
    model, into = tiny(name), Findings()
    patched = attach(model.patcher, GradSAM(CAT, reference_for(model), rule=WIDE, into=into))
    run(patched, model, steps=5, sampler=sampler, cfg=cfg)
    assert [look.step for look in into.looks] == [0, 1, 2]
    assert record_of(patched).last.touched[GradSAM.owner] == 3


@pytest.mark.host
@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_the_noised_reference_has_the_variance_of_its_step(server, name):
    """eps: data + sigma noise; flow: (1 - sigma) data + sigma noise."""
    from attention_loom.core import latent

    model = tiny(name)
    base = model.patcher.model
    data = 2.0 * torch.randn(1, model.latent.shape[1], 64, 64, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(2))
    for sigma in (0.3, 0.9):
        step = object.__new__(latent.LatentStep)
        step.x, step._sigma, step._guider = data, torch.tensor([sigma]), type("G", (), {"inner_model": base})
        out, clean = step.noised(data, noise), base.process_latent_in(data)
        share = 1 - sigma if name == "sd3" else 1.0
        assert float(out.std()) == pytest.approx(math.sqrt((share * float(clean.std())) ** 2 + sigma**2), rel=0.02)


@pytest.mark.host
def test_it_acts_after_a_star_in_one_run(server):
    model, into = tiny("sd15"), Findings()
    first = attach(model.patcher, GradSAM(CAT, reference_for(model), rule=WIDE, into=into))
    patched = attach(first, AStar(BOTH, alpha=2.0))
    out = run(patched, model, steps=4)
    touched = record_of(patched).last.touched
    assert touched[AStar.owner] == 4 and touched[GradSAM.owner] == len(into.looks)
    swapped = attach(attach(model.patcher, AStar(BOTH, alpha=2.0)), GradSAM(CAT, reference_for(model), rule=WIDE))
    assert torch.equal(out, run(swapped, model, steps=4)), "the order of the nodes is no matter"


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"subjects": replace(CAT, concepts=())}, "no subject was given"),
        ({"at": (0.1,) * 11}, "at most 10 points"),
        ({"at": (1.5,)}, "from 0 to 1"),
        ({"how": "exact", "blocks": BlockSelection.parse("3")}, "empty blocks, or choose fast"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(LoomError, match=words):
        GradSAM(**{"subjects": CAT, **settings})


@pytest.mark.host
def test_models_and_runs_that_cannot_be_are_refused(server):
    for name, how, words in (("wan", "auto", "does not know where the words of Wan"), ("sd3", "exact", "exact needs a U-Net"), ("sdxl", "exact", "exact needs a U-Net")):
        with pytest.raises(LoomError, match=words):
            attach(tiny(name).patcher, GradSAM(CAT, how=how))
    model = tiny("sd15")
    for settings, how, words in (
        ({}, {"steps": 2}, "at least 3 sampling steps"),
        ({"reference": torch.zeros(1, 16, 4, 6)}, {}, "16 channels and the latent of this model 4"),
        ({}, {"noise_mask": torch.ones(1, 1, 4, 6)}, "noise mask"),
        ({}, {"sampler": "uni_pc"}, "uni_pc"),
        ({"how": "fast", "blocks": BlockSelection.parse("m7")}, {}, "selects no block"),
    ):
        with pytest.raises(LoomError, match=words):
            run(attach(model.patcher, GradSAM(CAT, **({"reference": reference_for(model)} | settings))), model, **({"steps": 4} | how))
