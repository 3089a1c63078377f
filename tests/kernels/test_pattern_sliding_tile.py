"""Sliding tile attention: the window written a second time, equal rows, borders, and the published density."""

import itertools
import math

import pytest
import torch
from attention_loom.kernels.block_mask import admitted
from attention_loom.kernels.patterns.base import Tokens
from attention_loom.kernels.patterns.sliding_tile import SlidingTile, compact_tile
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import assert_close
from pattern_tools import NO_GRID, PICTURE, TEXT_FIRST, VIDEO, assert_batch_does_not_matter, assert_runs_like_reference, call, counted_density, listed, masked_attention, run


def axis_reads(i: int, j: int, n: int, tile: int, window: int) -> bool:
    """Does token i read token j along one axis of n tokens: windows of whole tiles, moved inwards at the ends."""
    tiles = math.ceil(n / tile)
    window = min(window, tiles)
    first = i // tile - window // 2
    while first < 0:
        first += 1
    while first + window > tiles:
        first -= 1
    return first <= j // tile < first + window


def literal(tokens: Tokens, tile, window) -> torch.Tensor:
    """bool [N, N], the definition token by token."""
    out = torch.ones(tokens.count, tokens.count, dtype=torch.bool)
    places = list(enumerate(itertools.product(*map(range, tokens.grid)), tokens.start))
    for (a, at), (b, to) in itertools.product(places, places):
        out[a, b] = all(axis_reads(i, j, n, size, w) for i, j, n, size, w in zip(at, to, tokens.grid, tile, window, strict=True))
    return out


@pytest.mark.parametrize("tokens", [VIDEO, TEXT_FIRST, PICTURE])
@pytest.mark.parametrize(("tile", "window"), [((1, 4, 4), (3, 1, 3)), ((2, 2, 4), (1, 3, 2)), ((2, 3, 2), (9, 9, 9)), ((1, 1, 16), (1, 1, 1))])
def test_the_plan_is_the_definition(tokens, tile, window):
    plan = SlidingTile(block=16, tile=tile, window=window).plan(tokens)
    assert plan.partial is None
    every = torch.arange(tokens.count)
    mask = literal(tokens, tile, window)
    assert torch.equal(admitted(plan, 0, every, every), mask)
    s = call(tokens)
    assert_close("o", run(SlidingTile(block=16, tile=tile, window=window), s), masked_attention(s, mask), 3e-6)


axis = st.tuples(st.integers(1, 12), st.integers(1, 4), st.integers(1, 5))


@given(axis, axis, axis, st.integers(0, 20))
@settings(deadline=None, max_examples=60)
def test_every_tile_reads_equally_many(t, y, x, free):
    grid, tile, window = zip(t, y, x, strict=True)
    tokens = Tokens(math.prod(grid) + free, grid)
    plan = SlidingTile(block=64, tile=tile, window=window).plan(tokens)
    rows = listed(plan)
    behind = plan.q.blocks - plan.q.grid_blocks
    want = math.prod(min(w, math.ceil(n / size)) for n, size, w in (t, y, x)) + behind
    assert all(len(row) == want for row in rows[: plan.q.grid_blocks])
    assert all(a in row for a, row in enumerate(rows))
    assert all(row == set(range(plan.q.blocks)) for row in rows[plan.q.grid_blocks :])
    assert float(plan.density()) == pytest.approx(counted_density(plan), rel=1e-5)


def test_density_of_the_published_window():
    """HunyuanVideo, 117 frames at 768p: tiles of 6 x 8 x 8 tokens, a window of 18 x 24 x 24 tokens, 9 percent."""
    plan = SlidingTile(block=384, tile=(6, 8, 8), window=(3, 3, 3)).plan(Tokens(30 * 48 * 80, (30, 48, 80)))
    assert float(plan.density()) == pytest.approx(0.09)


def test_a_window_beyond_the_grid_takes_all_of_it():
    whole = SlidingTile(block=16, tile=(1, 4, 4), window=(99, 99, 99)).plan(VIDEO)
    assert (whole.kinds() == 2).all()


@pytest.mark.parametrize(("grid", "block", "tile"), [((30, 48, 80), 64, (4, 4, 4)), ((16, 24, 40), 64, (4, 4, 4)), ((1, 64, 64), 64, (1, 8, 8)), ((1, 1, 500), 64, (1, 1, 64))])
def test_the_tile_it_chooses(grid, block, tile):
    chosen = compact_tile(grid, block)
    assert sorted(chosen) == sorted(tile) or math.prod(-(-n // s) for n, s in zip(grid, chosen, strict=True)) * block <= 1.1 * math.prod(grid)
    assert math.prod(chosen) <= block
    assert all(size <= n for size, n in zip(chosen, grid, strict=True))


def test_the_tile_it_chooses_wastes_no_more_than_a_cube():
    for grid in itertools.product((1, 5, 21, 33), (30, 45, 48), (52, 80)):
        padded = [math.prod(-(-n // s) for n, s in zip(grid, tile, strict=True)) * 64 for tile in (compact_tile(grid, 64), (4, 4, 4))]
        assert padded[0] <= padded[1] * 1.05


@pytest.mark.parametrize(
    "pattern", [SlidingTile(block=32), SlidingTile(block=16, tile=(2, 2, 4), window=(1, 3, 1)), SlidingTile(block=16, window=(1, 2, 2), tail="row")], ids=lambda p: p.label
)
def test_runs_like_the_reference(pattern):
    assert_runs_like_reference(pattern, VIDEO, heads=4, key_heads=2)
    assert_runs_like_reference(pattern, TEXT_FIRST, batch=2)


def test_batch_does_not_matter():
    assert_batch_does_not_matter(SlidingTile(block=16, window=(1, 2, 2)), VIDEO)


@pytest.mark.parametrize(
    ("bad", "words"), [({"window": (0, 3, 3)}, "0 x 3 x 3 tiles"), ({"window": (3, 3)}, "3 x 3 tiles"), ({"tile": (4, 8, 8)}, "4 x 8 x 8"), ({"tile": (0, 8, 8)}, "0 x 8 x 8")]
)
def test_bad_settings_are_refused(bad, words):
    with pytest.raises(ValueError, match=words):
        SlidingTile(**bad)


def test_no_grid_is_refused():
    with pytest.raises(ValueError, match="sliding_tile needs a grid"):
        SlidingTile().plan(NO_GRID)


def test_labels_tell_settings_apart():
    assert SlidingTile().label == "sliding_tile_b128_w3x3x3"
    assert SlidingTile(block=64, window=(1, 5, 5), tile=(4, 4, 4)).label == "sliding_tile_b64_w1x5x5_t4x4x4"
