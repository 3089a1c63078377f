"""The arithmetic of guidance by an extra prediction."""

import math

import pytest
import torch
from attention_loom.core.errors import LoomError
from attention_loom.core.guidance import Guidance, salient

G = torch.Generator().manual_seed(3)


def latents(*shape):
    return [torch.randn(*shape, generator=G) for _ in range(4)]


def test_plain_guidance_is_the_papers_formula():
    cond, uncond, extra, _ = latents(2, 4, 5, 6)
    result = uncond + 4.0 * (cond - uncond)
    assert torch.equal(Guidance(3.0).join(3.0, result, cond, uncond, extra), result + (cond - extra) * 3.0)
    with_cfg = uncond + 4 * (cond - uncond) + 3 * (cond - extra)
    assert torch.allclose(Guidance(3.0).join(3.0, result, cond, uncond, extra), with_cfg, atol=1e-5)
    assert torch.allclose(Guidance(3.0).join(3.0, cond, cond, None, extra), (1 + 3) * cond - 3 * extra, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 4, 5, 6), (2, 4, 3, 5, 6)], ids=["picture", "video"])
@pytest.mark.parametrize("mode", ["full", "partial"])
def test_rescaling_matches_the_spread_of_each_sample(shape, mode):
    cond, uncond, extra, result = latents(*shape)
    for amount in (0.3, 1.0):
        ours = Guidance(3.0, rescale=amount, mode=mode).join(3.0, result, cond, uncond, extra)
        for b in range(shape[0]):
            push = 3 * (cond[b] - extra[b])
            factor = cond[b].std() / ((result if mode == "full" else cond)[b] + push).std()
            assert torch.allclose(ours[b], result[b] + push * (amount * factor + 1 - amount), atol=1e-5)
    assert torch.equal(Guidance(3.0, mode=mode).join(3.0, result, cond, uncond, extra), result + (cond - extra) * 3.0)


def test_snf_keeps_what_stands_out_more():
    cond, uncond, extra = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    result, cond[..., 1, 1], extra[..., 6, 6] = torch.zeros_like(cond), 1.0, -1.0
    result[..., 1, 1] = 5.0  # CFG stands out at one place, this guidance at another
    ours = Guidance(2.0, mode="snf").join(2.0, result, cond, uncond, extra)
    assert ours[0, 0, 1, 1] == 5.0
    assert ours[0, 0, 6, 6] == 2.0
    assert torch.equal(Guidance(2.0, mode="snf").join(2.0, cond, cond, None, extra), cond + 2 * (cond - extra)), "nothing to choose from without CFG"
    a, b, *_ = latents(2, 3, 2, 5, 6)
    chosen = salient(a, b)
    assert torch.equal((chosen == a) | (chosen == b), torch.ones_like(a, dtype=torch.bool))


def test_no_spread_gives_numbers():
    flat = torch.zeros(1, 4, 5, 6)
    assert torch.isfinite(Guidance(3.0, rescale=1.0).join(3.0, flat, flat, flat, flat)).all()


def test_sigma_limits_and_their_absence():
    g = Guidance(3.0, sigma_start=5.0, sigma_end=1.0)
    assert [g.at(s, 500) for s in (6.0, 5.0, 1.5, 1.0, 0.1)] == [0, 3, 3, 0, 0]
    assert Guidance(3.0).at(1e6, 999) == Guidance(3.0).at(0.0, 0) == 3.0
    assert Guidance(3.0, sigma_start=5.0).at(0.0, 0) == 3.0
    assert Guidance(3.0, sigma_start=1.0, sigma_end=1.0).off


def test_adaptive_scale_fades_and_stops():
    g = Guidance(2.0, adaptive=0.2)
    assert g.at(1.0, 999) == pytest.approx(2 - 2 * 0.2**4 * 1)
    assert g.at(1.0, 500) == pytest.approx(2 - 2 * 0.2**4 * 500)
    assert g.at(1.0, 100) == 0.0
    assert Guidance(2.0, adaptive=0.0).at(1.0, 100) == 2.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scale": math.nan}, "scale nan was given"),
        ({"scale": math.inf}, "scale inf was given"),
        ({"scale": -1.0}, "scale -1 was given"),
        ({"rescale": 1.5}, "rescale 1.5 was given"),
        ({"adaptive": -0.1}, "adaptive -0.1 was given"),
        ({"mode": "half"}, "rescale mode 'half' was given"),
        ({"sigma_end": math.nan}, "sigma_start and sigma_end must be numbers"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(LoomError, match=words):
        Guidance(**settings)
