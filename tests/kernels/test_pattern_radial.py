"""Radial attention: the published block counts, the rule written a second time, and what every mask must hold."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from attention_loom.kernels.block_mask import admitted
from attention_loom.kernels.patterns.base import Tokens
from attention_loom.kernels.patterns.radial import Radial
from hypothesis import given, settings
from hypothesis import strategies as st
from pattern_tools import NO_GRID, TEXT_FIRST, VIDEO, assert_batch_does_not_matter, assert_runs_like_reference, call, counted_density, listed, nnz


def video(frames: int, per_frame: int) -> Tokens:
    return Tokens(frames * per_frame, (frames, 1, per_frame))


def entries(plan) -> int:
    return int(plan.full.ptr[0, -1])


def grid_mask(plan) -> torch.Tensor:
    own = plan.q.grid_blocks
    return plan.kinds()[0, :own, :own] == 2


@pytest.mark.parametrize(
    ("frames", "per_frame", "block", "decay", "sink", "blocks"),
    [
        (18, 3840, 128, 0.2, True, 83_728),
        (18, 3840, 128, 0.5, True, 98_824),
        (18, 3840, 128, 1.0, True, 125_656),
        (6, 2304, 128, 0.2, True, 7_312),
        (6, 1536, 64, 0.3, True, 13_168),
        (6, 1536, 64, 1.0, True, 16_336),
        (9, 512, 128, 1.0, True, 1_098),
        (40, 256, 64, 1.0, True, 8_058),
        (30, 3840, 128, 0.95, False, 222_452),
    ],
)
def test_exact_number_of_blocks(frames, per_frame, block, decay, sink, blocks):
    assert entries(Radial(block=block, decay=decay, sink=sink).plan(video(frames, per_frame))) == blocks


@pytest.mark.parametrize(
    ("grid", "block", "decay", "sink", "blocks", "sparsity", "cost"),
    [
        ((21, 30, 52), 128, 0.2, True, 26_507, 0.6443, 0.4047),
        ((21, 30, 52), 128, 0.5, True, 28_091, 0.6231, None),
        ((21, 30, 52), 128, 1.0, True, 33_467, 0.5510, None),
        ((21, 30, 52), 64, 0.2, True, 75_623, 0.7256, 0.2886),
        ((21, 45, 80), 128, 0.2, True, 97_965, 0.7359, 0.2808),
        ((21, 45, 80), 128, 0.5, True, 115_677, 0.6881, None),
        ((21, 45, 80), 128, 1.0, True, 148_653, 0.5992, None),
        ((21, 45, 80), 64, 0.2, True, 336_625, 0.7651, 0.2412),
        ((33, 45, 80), 128, 0.5, False, 196_809, 0.7851, 0.2285),
        ((33, 45, 80), 128, 0.95, False, 243_661, 0.7340, 0.2829),
    ],
)
def test_statistics_of_real_videos(grid, block, decay, sink, blocks, sparsity, cost):
    """sparsity and cost count padded blocks whole; density counts live tokens and so lies a little below the cost."""
    tokens = Tokens(math.prod(grid), grid)
    plan = Radial(block=block, decay=decay, sink=sink).plan(tokens)
    assert entries(plan) == blocks
    assert round(1 - blocks / plan.q.blocks**2, 4) == sparsity
    padded = blocks * block**2 / tokens.count**2
    if cost is not None:
        assert round(padded, 4) == cost
    assert 0.85 * padded < float(plan.density()) < padded


def test_far_frames_of_a_480p_video():
    plan = Radial().plan(video(21, 1560))
    mask = grid_mask(plan).view(21, 13, 21, 13)[20]  # [block of frame 20, key frame, key block]
    steps = (torch.arange(13)[:, None] - torch.arange(13)[None, :]).abs()
    for d in (17, 19):
        assert not mask[:, 20 - d].any()
    for d in (16, 18):
        assert torch.equal(mask[:, 20 - d], steps <= 1)
    no_sink = grid_mask(Radial(sink=False).plan(video(21, 1560))).view(21, 13, 21, 13)
    assert torch.equal(no_sink[20, :, 0], steps <= 1)  # d = 20, which the sink covers otherwise
    assert mask[:, 0].all()


def by_the_rule(frames: int, per_frame: int, block: int, decay: float, sink: bool) -> torch.Tensor:
    """The rule once more, block by block, in exact arithmetic."""
    n = -(-per_frame // block)
    out = torch.zeros(frames * n, frames * n, dtype=torch.bool)
    for i, j, a, b in itertools.product(range(frames), range(frames), range(n), range(n)):
        d = abs(i - j)
        length = Fraction(2 ** len(f"{per_frame:b}"), 2 ** (len(f"{d:b}") if d else 0))
        if (sink and j == 0) or d <= 1:
            keep = True
        elif length < 128 and d % int(128 / length):
            keep = False
        else:
            keep = abs(a - b) <= math.floor(max(Fraction(decay) * length, Fraction(block)) / block + Fraction(1, 6))
        out[i * n + a, j * n + b] = keep
    return out


@given(st.integers(1, 9), st.integers(1, 700), st.sampled_from([32, 64, 128]), st.sampled_from([0.05, 0.2, 0.5, 0.75, 1.0, 2.0]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_the_rule_at_any_size(frames, per_frame, block, decay, sink):
    mask = grid_mask(Radial(block=block, decay=decay, sink=sink).plan(video(frames, per_frame)))
    assert torch.equal(mask, by_the_rule(frames, per_frame, block, decay, sink))
    n = -(-per_frame // block)
    by_frame = mask.view(frames, n, frames, n)
    assert all(by_frame[i, :, j].all() for i in range(frames) for j in range(frames) if abs(i - j) <= 1 or (sink and j == 0))
    without = by_frame[:, :, 1:] if sink else by_frame
    symmetric = without[1:] if sink else without
    assert torch.equal(symmetric, symmetric.permute(2, 3, 0, 1))
    assert frames > 2 or mask.all()


@pytest.mark.parametrize("spatial", ["raster", "tiles"])
def test_wider_bands_read_more(spatial):
    plans = [Radial(block=64, decay=d, spatial=spatial).plan(Tokens(9 * 600, (9, 20, 30))) for d in (0.1, 0.2, 0.4, 0.7, 1.0, 4.0, 16.0)]
    for less, more in itertools.pairwise(plans):
        assert not (grid_mask(less) & ~grid_mask(more)).any()
    # frames that a far band skips stay skipped, however wide the band
    assert float(plans[0].density()) < float(plans[4].density()) < float(plans[-1].density())


@pytest.mark.parametrize("tokens", [VIDEO, TEXT_FIRST])
@pytest.mark.parametrize("spatial", ["raster", "tiles"])
def test_free_tokens_are_read_and_read_everything(tokens, spatial):
    plan = Radial(block=32, spatial=spatial).plan(tokens)
    kinds = plan.kinds()[0]
    own = plan.q.grid_blocks
    assert own < plan.q.blocks
    assert (kinds[own:] == 2).all()
    assert (kinds[:, own:] == 2).all()
    inside = set(range(tokens.start, tokens.start + tokens.inside))
    assert {t for t in plan.q.perm[: own * 32].tolist() if t >= 0} == inside
    assert (plan.q.frame[:own] >= 0).all()


def test_tiles_spend_what_the_raster_spends_on_nearer_tokens():
    tokens = Tokens(9 * 32 * 64, (9, 32, 64))  # 16 tiles of 8 x 16, 16 runs of 128
    raster, tiles = (Radial(decay=0.5, spatial=s).plan(tokens) for s in ("raster", "tiles"))
    assert nnz(raster) == nnz(tiles)
    assert [len(row) for row in listed(raster)] == [len(row) for row in listed(tiles)]
    assert not torch.equal(raster.kinds(), tiles.kinds())

    def mean_distance(plan) -> float:
        """Of the tokens that frame 4 reads in frame 1, to the tokens that read them."""
        rows, keys = torch.arange(4 * 2048, 5 * 2048), torch.arange(2048, 2 * 2048)
        read = admitted(plan, 0, rows, keys)
        at = torch.stack([torch.arange(2048) // 64, torch.arange(2048) % 64], 1).float()
        return float(torch.cdist(at, at)[read].mean())

    assert mean_distance(tiles) < 0.9 * mean_distance(raster)


@pytest.mark.parametrize(
    "pattern", [Radial(block=32), Radial(block=32, sink=False, decay=1.0), Radial(block=32, spatial="tiles"), Radial(block=32, tail="row")], ids=lambda p: p.label
)
def test_runs_like_the_reference(pattern):
    for tokens in (VIDEO, TEXT_FIRST):
        assert_runs_like_reference(pattern, tokens, heads=2)


def test_batch_does_not_matter():
    assert_batch_does_not_matter(Radial(block=32), VIDEO)


@pytest.mark.parametrize("tokens", [VIDEO, TEXT_FIRST, video(7, 130)])
def test_density_is_the_counted_one(tokens):
    plan = Radial(block=32).plan(tokens)
    assert float(plan.density()) == pytest.approx(counted_density(plan), rel=1e-6)


def test_one_plan_per_geometry():
    pattern = Radial(block=32)
    assert pattern.blocks(call(VIDEO)) is pattern.blocks(call(VIDEO, seed=1))
    assert pattern.plan(TEXT_FIRST) is not pattern.plan(VIDEO)
    assert Radial(block=32, decay=1.0).plan(VIDEO) is not pattern.plan(VIDEO)


def test_a_long_video_fits_in_little_memory():
    """HunyuanVideo at 720p, 119,056 tokens: the lists are small, two bytes an entry, and nothing is per pair of tokens."""
    plan = Radial(decay=0.95, sink=False).plan(Tokens(33 * 3600 + 256, (33, 45, 80)))
    assert plan.groups == 1
    assert plan.full.col.element_size() * plan.full.col.numel() + 4 * plan.full.ptr.numel() < 0.6 * 2**20
    text = 2  # blocks
    assert entries(plan) == 243_661 + 2 * text * plan.q.grid_blocks + text**2


@pytest.mark.parametrize(("bad", "words"), [({"decay": 0.0}, "decay"), ({"decay": -1.0}, "decay"), ({"decay": math.nan}, "decay"), ({"spatial": "hex"}, "'hex'")])
def test_bad_settings_are_refused(bad, words):
    with pytest.raises(ValueError, match=words):
        Radial(**bad)


def test_no_grid_is_refused():
    with pytest.raises(ValueError, match="radial needs a grid"):
        Radial().plan(NO_GRID)


def test_labels_tell_settings_apart():
    assert Radial().label == "radial_b128_d0.20_sink"
    assert Radial(block=64, decay=1.0, sink=False, spatial="tiles").label == "radial_b64_d1.00_tiles"
