"""Selectors against sorting and arithmetic written out: exact counts, exact thresholds, ties, per-head settings."""

import math

import pytest
import torch
from attention_loom.kernels import raster
from attention_loom.kernels import selection as module
from attention_loom.kernels.blocks import EMPTY
from attention_loom.kernels.builders import _most_entries as most_entries
from attention_loom.kernels.builders import from_global, from_sigma, from_topk, from_topp
from attention_loom.kernels.selection import global_mask, kth_smallest, sigma_mask, topk_mask, topp_mask


def a_map(seed: int, shape=(2, 3, 9, 13)) -> torch.Tensor:
    """Random scores: by turns normal, softmax rows, few distinct values (heavy ties), bf16, half, all of one value."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g)
    kinds = (x, x.softmax(-1), x.round(), x.bfloat16(), x.half().softmax(-1), (x * 2).round().bfloat16(), torch.full(shape, 0.25), -x.abs() * 0)
    return kinds[seed % len(kinds)]


def best_first(scores: torch.Tensor) -> list[int]:
    """Columns of one row, best first, lower column first among equals."""
    return sorted(range(scores.shape[-1]), key=lambda c: (-float(scores[c]), c))


# --- by count ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(16))
def test_topk_keeps_exactly_the_best_with_ties_to_the_lower_column(seed):
    scores, counts = a_map(seed), [4, 1, 0]
    mask = topk_mask(scores, counts)
    for b in range(2):
        for h, count in enumerate(counts):
            for row in range(9):
                assert mask[b, h, row].nonzero()[:, 0].tolist() == sorted(best_first(scores[b, h, row])[:count])


def test_topk_takes_one_count_a_list_or_a_tensor():
    scores = a_map(2)
    assert torch.equal(topk_mask(scores, 5), topk_mask(scores, [5, 5, 5]))
    assert torch.equal(topk_mask(scores, [5, 2, 13]), topk_mask(scores, torch.tensor([5, 2, 13])))
    assert torch.equal(topk_mask(scores, torch.tensor([[5], [2]]))[1], topk_mask(scores[1], 2))
    assert topk_mask(scores, 99).all()
    assert topk_mask(torch.full((3, 4), -math.inf), 2).sum() == 6


def test_a_setting_that_fits_no_head_is_refused():
    with pytest.raises(ValueError, match="one number or one per head"):
        topk_mask(a_map(0), [1, 2])


# --- by mass -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 4, 6, 9])
def test_topp_keeps_the_fewest_that_reach_the_mass(seed):
    scores = a_map(seed).float()
    scores = scores / scores.sum(-1, keepdim=True)
    masses = [0.5, 0.9, 0.05]
    mask = topp_mask(scores, masses, min_k=2)
    for h, mass in enumerate(masses):
        for row in range(9):
            order, total, wanted = best_first(scores[1, h, row]), 0.0, []
            for c in order:
                if total >= mass - 1e-6 and len(wanted) >= 2:
                    break
                wanted.append(c)
                total += float(scores[1, h, row, c])
            assert mask[1, h, row].nonzero()[:, 0].tolist() == sorted(wanted)


def test_topp_of_one_keeps_all():
    assert topp_mask(a_map(1), 1.0).all()


# --- by one threshold ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(100))
def test_the_threshold_is_that_of_sorting_bit_for_bit(seed):
    scores = a_map(seed)
    share = (0.0, 0.3, 0.5, 0.9, 1.0, 0.29)[seed % 6]
    n = 9 * 13
    m = math.floor(share * n + 1e-6)
    ordered = scores.float().flatten(2).sort(-1).values
    want = torch.ones_like(scores, dtype=torch.bool) if m == 0 else scores.float() >= ordered[..., m - 1, None, None]
    assert torch.equal(global_mask(scores, share), want)
    for rank in (1, n // 2, n):
        found = kth_smallest(scores.flatten(0, 1).flatten(1), torch.full((6,), rank))
        assert torch.equal(found, ordered.flatten(0, 1)[:, rank - 1])


def test_kept_counts_of_the_published_cases():
    g = torch.Generator().manual_seed(0)
    for side, share, kept in ((990, 0.9, 98_011), (630, 0.75, 99_226), (4, 0.5, 9)):
        scores = torch.randperm(side * side, generator=g).view(side, side).float()  # no ties: below 2^24 exact
        assert int(global_mask(scores, share).sum()) == kept


def test_each_map_has_its_own_threshold_whatever_the_batch(monkeypatch):
    scores = a_map(0)
    at_once = global_mask(scores, [0.2, 0.5, 0.8])
    assert torch.equal(at_once[1], global_mask(scores[1], [0.2, 0.5, 0.8]))
    monkeypatch.setattr(module, "AT_ONCE", 1)
    assert torch.equal(global_mask(scores, [0.2, 0.5, 0.8]), at_once)


# --- by deviation --------------------------------------------------------------------------------------------------------


def test_sigma_keeps_what_stands_out():
    scores = a_map(0)
    wide = scores.double()
    want = wide > wide.mean(-1, keepdim=True) + 1.2 * wide.std(-1, keepdim=True, unbiased=False)
    assert torch.equal(sigma_mask(scores, 1.2), want)
    normal = torch.randn(40, 5000, generator=torch.Generator().manual_seed(1))
    for tau, share in ((1.0, 0.159), (1.5, 0.067), (2.0, 0.0228)):
        assert abs(float(sigma_mask(normal, tau).float().mean()) - share) < 3e-3


def test_sigma_leaves_blocks_that_may_not_be_chosen_out_of_the_statistics():
    scores = a_map(0)
    masked = torch.cat([scores, torch.full_like(scores[..., :4], -math.inf)], -1)
    mask = sigma_mask(masked, 1.0)
    assert not mask[..., 13:].any()
    assert torch.equal(mask[..., :13], sigma_mask(scores, 1.0))


def test_sigma_of_equal_scores_keeps_none():
    assert not sigma_mask(torch.full((5, 7), 0.1), 1.0).any()


# --- plans ---------------------------------------------------------------------------------------------------------------


def test_builders_read_what_the_masks_keep_and_no_row_is_empty():
    order = raster(70, 8)
    scores = a_map(1, (2, 3, 9, 9))
    for plan, mask in (
        (from_topk(scores, 3, order, order), topk_mask(scores, 3)),
        (from_topk(scores, [3, 1, 0], order, order), topk_mask(scores, [3, 1, 0])),
        (from_topp(scores, 0.6, order, order, min_k=2), topp_mask(scores, 0.6, 2)),
        (from_global(scores, 0.8, order, order), global_mask(scores, 0.8)),
        (from_sigma(scores, 1.5, order, order), sigma_mask(scores, 1.5)),
    ):
        empty = ~mask.any(-1, keepdim=True)
        want = mask | (empty & torch.eye(9, dtype=torch.bool))
        assert torch.equal((plan.kinds() != EMPTY).view(mask.shape), want)
        assert plan.head_map.shape == (2, 3)


def test_forced_blocks_are_added():
    order = raster(70, 8)
    forced = torch.zeros(9, 9, dtype=torch.bool)
    forced[:, 8] = True
    plan = from_topk(a_map(1, (2, 3, 9, 9)), 2, order, order, forced=forced)
    assert bool((plan.kinds()[..., 8] != EMPTY).all())


def test_edges_of_the_settings():
    row = torch.tensor([[0.25, 0.5, 0.25]])
    assert topp_mask(row, 0.5).tolist() == [[False, True, False]]  # reached, not passed
    scores = torch.randperm(100, generator=torch.Generator().manual_seed(0)).view(10, 10).float()
    assert int(global_mask(scores, 0.29).sum()) == 72  # 0.29 * 100 is 28.999... in floating point
    masked = torch.tensor([[1.0, -math.inf, 2.0, 3.0]])
    assert sigma_mask(masked, -9.0).tolist() == [[True, False, True, True]]


def test_the_room_kept_for_top_k_is_enough():
    order = raster(70, 8)
    for count in ([3, 1, 0], 2, 99):
        plan = from_topk(a_map(1, (2, 3, 9, 9)), count, order, order)
        assert int(plan.full.ptr[-1, -1]) == most_entries(torch.empty(2, 3, 9, 9), count)
