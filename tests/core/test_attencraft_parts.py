"""AttenCraft's training, part by part: divergence, likeness of masks, which concepts a step shows, losses, the start token."""

import math

import host_inprocess
import numpy as np
import pytest
import torch
from attention_loom.core.attencraft import losses, masks, subsets
from attention_loom.core.attencraft.divergence import from_masks, jensen_shannon
from attention_loom.core.attencraft.likeness import ssim
from attention_loom.core.attencraft.plan import Plan
from attention_loom.core.attencraft.progress import smoothed
from attention_loom.core.attencraft.trainer import starts_held
from attention_loom.core.attencraft.words import parse
from attention_loom.core.errors import LoomError
from attention_loom.core.families.base import MARK, Mark
from attention_loom.core.methods.attencraft import start_held

HALF = torch.zeros(1, 32, 32, dtype=torch.float64)
HALF[:, :16] = 1


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- attention loss --------------------------------------------------------------------------------------------------


def test_the_divergence_has_the_sources_values():
    assert float(from_masks(torch.zeros(1, 32, 32, dtype=torch.float64), HALF)) == pytest.approx(0.028535, abs=5e-7)
    assert float(from_masks(1 - HALF, HALF)) == pytest.approx(0.110944, abs=5e-7)
    assert float(from_masks(HALF.clone(), HALF)) == pytest.approx(0, abs=1e-12)


def test_the_divergence_is_symmetric_and_that_of_its_definition():
    p, q = seeded(3, 50).softmax(-1), seeded(3, 50, seed=1).softmax(-1)
    r = (p + q) / 2
    wanted = 0.5 * ((p * (p / r).log()).sum(-1) + (q * (q / r).log()).sum(-1))
    assert torch.allclose(jensen_shannon(p, q), wanted, atol=1e-14) and torch.equal(jensen_shannon(p, q), jensen_shannon(q, p))


def test_the_attention_losss_gradient_goes_through_the_scaling_and_not_into_the_mask():
    maps, mask = seeded(2, 4, 4).requires_grad_(True), torch.rand(2, 8, 8, dtype=torch.float64).requires_grad_(True)
    (from_masks(maps, mask) * torch.tensor([1.0, 2.0])).sum().backward()
    assert mask.grad is None
    assert torch.autograd.gradcheck(lambda m: from_masks(m, mask.detach()), maps.detach().requires_grad_(True))
    assert maps.grad.abs().min() >= 0 and maps.grad.abs().max() > 0
    shifted = (3 * maps.detach() + 5).requires_grad_(True)
    assert torch.allclose(from_masks(shifted, mask), from_masks(maps, mask)), "maps are scaled to 0..1 first"


# --- likeness of masks -----------------------------------------------------------------------------------------------


def slow_ssim(a, b):
    """Window by window, with numpy's sample covariance."""
    found = []
    for y in range(3, a.shape[0] - 3):
        for x in range(3, a.shape[1] - 3):
            u, v = a[y - 3 : y + 4, x - 3 : x + 4].ravel(), b[y - 3 : y + 4, x - 3 : x + 4].ravel()
            (vu, cov), (_, vv) = np.cov(u, v)
            found.append((2 * u.mean() * v.mean() + 1e-4) * (2 * cov + 9e-4) / ((u.mean() ** 2 + v.mean() ** 2 + 1e-4) * (vu + vv + 9e-4)))
    return np.mean(found)


def test_likeness_is_that_of_the_definition():
    a, b = torch.rand(2, 12, 17, generator=torch.Generator().manual_seed(0)), torch.rand(2, 12, 17, generator=torch.Generator().manual_seed(1))
    b[1] = (a[1] > 0.5).float()
    for i in range(2):
        assert float(ssim(a, b)[i]) == pytest.approx(slow_ssim(a[i].double().numpy(), b[i].double().numpy()), abs=1e-6)
    assert torch.allclose(ssim(a, a), torch.ones(2))


# --- subsets ---------------------------------------------------------------------------------------------------------


def chi_square(chances, draws=30000):
    generator = torch.Generator().manual_seed(5)
    counts = dict.fromkeys(chances, 0)
    for _ in range(draws):
        counts[tuple(sorted(subsets.draw(chances, generator)))] += 1
    return sum((counts[s] - draws * p) ** 2 / (draws * p) for s, p in chances.items())


def test_uniform_sampling_shows_every_combination_alike():
    chances = subsets.probabilities("uniform", 2, ())
    assert chances == pytest.approx({(0,): 1 / 3, (1,): 1 / 3, (0, 1): 1 / 3})
    assert chi_square(chances) < 13.8  # 0.1 % of true thirds lie above
    assert len(subsets.subsets(5)) == 5 + 10 + 10, "at most three at once"


def test_reweighted_sampling_shows_the_weaker_more_often():
    for n in (1, 2, 3, 5):
        assert subsets.probabilities("reweighted", n, [0.2] * n) == pytest.approx(subsets.probabilities("uniform", n, ()))
    chances = subsets.probabilities("reweighted", 2, [0.1, 0.3])
    assert chances == pytest.approx({(0,): 0.5, (1,): 1 / 6, (0, 1): 1 / 3}) and sum(chances.values()) == pytest.approx(1)
    assert subsets.probabilities("all", 3, ()) == {(0, 1, 2): 1.0}
    assert math.isfinite(sum(subsets.probabilities("reweighted", 2, [0.0, 0.3]).values()))


def test_several_are_shown_in_random_order():
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(40):
        seen.add(subsets.draw({(0, 1): 1.0}, generator))
    assert seen == {(0, 1), (1, 0)}


# --- losses ----------------------------------------------------------------------------------------------------------


def test_the_masked_loss_is_divided_by_the_cells_of_the_frame():
    error = seeded(1, 4, 6, 8)
    assert float(losses.masked(error, torch.ones(6, 8))) == pytest.approx(4 * float(error.square().mean()))
    half = torch.zeros(6, 8)
    half[:3] = 1
    assert float(losses.masked(error, half)) == pytest.approx(float(error[:, :, :3].square().sum()) / 48)
    assert float(losses.prior(error)) == pytest.approx(float(error.square().mean()))


def test_the_union_of_masks_is_enlarged_as_the_source_does():
    stack = torch.zeros(3, 4, 4, dtype=torch.bool)
    stack[0, :2], stack[1, 2:, :2] = True, True
    wanted = torch.nn.functional.interpolate((stack[0] | stack[1]).float()[None, None], (8, 8), mode="bicubic", align_corners=False)[0, 0]
    assert torch.equal(losses.union(stack, (1, 0), (8, 8)), wanted) and wanted.max() > 1.01
    assert losses.union(stack, (0, 1), (8, 8), clamp=True).max() == 1
    assert torch.equal(losses.union(stack, (0,), (4, 4)), stack[0].float())


@pytest.mark.host
def test_errors_are_those_of_the_models_own_output():
    """A wrong output of the model, through the host's own arithmetic to a clean latent and back."""
    host_inprocess.import_host()
    import comfy.model_sampling as kinds

    for kind, flow in ((kinds.EPS, False), (kinds.V_PREDICTION, False), (kinds.CONST, True), (kinds.X0, False)):

        class Sampling(kind):
            sigma_data = 1.0

        sampling, sigma = Sampling(), torch.tensor([0.7], dtype=torch.float64)
        noised, right, wrong = seeded(1, 4, 3, 3), seeded(1, 4, 3, 3, seed=1), seeded(1, 4, 3, 3, seed=2)
        error = (sampling.calculate_denoised(sigma, wrong, noised) - sampling.calculate_denoised(sigma, right, noised)) * losses.error_scale(sampling)(0.7)
        assert (error.abs() - (wrong - right).abs()).abs().max() < 1e-12, (kind, flow)
    with pytest.raises(LoomError, match="EDM"):
        losses.error_scale(type("Sampling", (kinds.EDM,), {})())


# --- the start token -------------------------------------------------------------------------------------------------


def attend(q, k, v, heads=2):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return ((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


def test_the_start_tokens_keys_and_values_are_constants_of_the_gradient():
    q, text = seeded(1, 6, 8), seeded(1, 154, 5, seed=1)  # two stretches of text: two start tokens
    weights = [seeded(8, 5, seed=i) for i in (2, 3)]
    starts = [0, 77]

    def gradients(ours):
        wk, wv = (w.clone().requires_grad_(True) for w in weights)
        k, v = text @ wk.T, text @ wv.T
        if ours:
            override = starts_held(lambda func, q, k, v, heads, *a, **kw: attend(q, k, v, heads))
            mark = Mark(None, hint="cross")
            out = override(None, q, k, v, 2, transformer_options={MARK: mark})
        else:
            fixed = torch.zeros(1, 154, 1, dtype=torch.float64)
            fixed[:, starts] = 1
            constant = [(text @ w.T).detach() for w in weights]
            out = attend(q, k * (1 - fixed) + constant[0] * fixed, v * (1 - fixed) + constant[1] * fixed)
        out.square().sum().backward()
        return out.detach(), wk.grad, wv.grad

    held, reference = gradients(True), gradients(False)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(held, reference, strict=True))
    assert torch.equal(held[0], attend(q, text @ weights[0].T, text @ weights[1].T)), "values are the same"
    k = text @ weights[0].clone().requires_grad_(True).T
    mine = start_held(k, 1)
    assert torch.equal(mine, k)
    keep = torch.zeros(1, 154, 1, dtype=torch.float64)
    keep[:, starts] = 1
    (gradient,) = torch.autograd.grad((mine * keep).sum(), k, allow_unused=True)
    assert gradient is None or not gradient.any()
    self_attention = starts_held(lambda func, q, k, v, heads, *a, **kw: k)(None, q, k, k, 2, transformer_options={MARK: Mark(None, hint="self")})
    assert self_attention is k, "self-attention is left alone"


# --- what users write ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"), [("", "0 concepts"), ("cat", "'cat' is not a concept"), ("my cat = cat", "not a concept"), ("a = ", "not a concept"), ("a/b = cat", "not a concept"), ("a = cat\nA = dog", "same name"), ("\n".join(f"c{i} = cat" for i in range(9)), "9 concepts")]
)  # fmt: skip
def test_concepts_are_names_and_words(text, words):
    with pytest.raises(LoomError, match=words):
        parse(text)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "steps 0"),
        ({"rate": -1.0}, "learning_rate -1"),
        ({"attention": -1.0}, "attention_weight -1"),
        ({"kind": "ia3"}, "adapter 'ia3'"),
        ({"scheme": "adaptive"}, "sampling 'adaptive'"),
        ({"keys": False, "values": False, "words": False}, "nothing would be trained"),
        ({"likeness": 2.0}, "ssim 2"),
    ],
)
def test_plans_that_cannot_be_are_refused(settings, words):
    with pytest.raises(LoomError, match=words):
        Plan(**settings)


def test_masks_from_elsewhere_are_brought_to_the_grid_or_refused():
    painted = torch.zeros(2, 64, 96)
    painted[0, :32, :32], painted[1, 40:, 40:] = 1, 1
    found = masks.given(painted, (8, 12), ["a", "b"])
    assert torch.equal(found[0], painted[0, ::8, ::8] > 0) and torch.equal(found[2], ~(found[0] | found[1]))
    overlapping = painted.clone()
    overlapping[1, :40, :40] = 1
    for bad, words in (
        (painted[:1], "1 masks and 2 concepts"),
        (overlapping, "overlap"),
        (torch.ones(2, 64, 64), "64 x 64 and the picture has 12 x 8"),
        (torch.stack([painted[0], torch.zeros(64, 96)]), "'b' covers 0.00 %"),
    ):
        with pytest.raises(LoomError, match=words):
            masks.given(bad, (8, 12), ["a", "b"])


def test_curves_are_smoothed_without_a_bias_at_their_beginning():
    assert smoothed([3.0] * 5) == pytest.approx([3.0] * 5)
