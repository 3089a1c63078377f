"""CLEAR's window: exact counts of keys and pairs, exact kinds of blocks, and the token mask spelled out."""

import itertools
import math

import pytest
import torch
from attention_loom.kernels.block_mask import admitted, analytic
from attention_loom.kernels.blocks import EMPTY, FULL, PARTIAL, BlockPlan
from attention_loom.kernels.patterns.base import Tokens
from attention_loom.kernels.patterns.clear import Clear
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_cases import assert_close
from pattern_tools import NO_GRID, PICTURE, VIDEO, assert_batch_does_not_matter, assert_runs_like_reference, call, counted_density, masked_attention, nnz, run


def image(rows: int, cols: int, text: int = 0, start: int = 0) -> Tokens:
    return Tokens(rows * cols + text, (1, rows, cols), start)


def literal(tokens: Tokens, radius: float, frame_radius: float | None = None) -> torch.Tensor:
    """bool [N, N], the definition token by token."""
    t, y, x = (axis.reshape(-1, 1).double() for axis in torch.meshgrid(*(torch.arange(n) for n in tokens.grid), indexing="ij"))
    dt = (t - t.T) * (0.0 if frame_radius is None else radius / frame_radius)
    out = torch.ones(tokens.count, tokens.count, dtype=torch.bool)
    inside = slice(tokens.start, tokens.start + tokens.inside)
    out[inside, inside] = (y - y.T) ** 2 + (x - x.T) ** 2 + dt**2 < radius**2
    return out


def pairs(plan: BlockPlan) -> int:
    """Admitted pairs of grid tokens: whole blocks by their size, tested blocks by the engine's own test.

    The test sees only differences of positions, so of all pairs of whole tiles that are equally far apart one is tested.
    """
    kinds, order, (_, _, cols) = plan.kinds()[0], plan.q, plan.q.grid
    valid, pos = order.valid.long(), order.pos.view(order.blocks, -1)
    assert (valid == order.block).all(), "for grids that divide into tiles"
    total = int((kinds == FULL).sum()) * order.block**2
    corner = torch.stack([pos[:, 0] // cols, pos[:, 0] % cols], 1)
    a, b = torch.nonzero(kinds == PARTIAL, as_tuple=True)
    apart, count = (corner[b] - corner[a]).unique(dim=0, return_counts=True)
    firsts = {tuple(d): i for i, d in reversed(list(enumerate((corner[b] - corner[a]).tolist())))}
    for d, n in zip(apart.tolist(), count.tolist(), strict=True):
        i = firsts[tuple(d)]
        total += n * int(analytic(plan.mask, pos[a[i]], pos[b[i]], order.grid).sum())
    return total


@pytest.mark.parametrize(("radius", "keys"), [(8, 193), (16, 793), (32, 3205)])
def test_keys_of_a_query_in_the_middle(radius, keys):
    plan = Clear(block=64, radius=radius).plan(image(72, 72))
    assert int(admitted(plan, 0, torch.tensor([36 * 72 + 36]), torch.arange(72 * 72)).sum()) == keys


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize(
    ("rows", "cols", "counts"),
    [
        (64, 64, (710_052, 2_594_880, 8_085_036)),
        (128, 128, (2_999_204, 11_653_696, 41_901_100)),
        (256, 256, (12_320_676, 49_260_096, 188_299_308)),
        (64, 96, (1_084_708, 4_047_552, 13_257_132)),
    ],
)
def test_exact_number_of_pairs(rows, cols, counts, block):
    for radius, count in zip((8, 16, 32), counts, strict=True):
        assert pairs(Clear(block=block, radius=radius).plan(image(rows, cols))) == count


@pytest.mark.parametrize(
    ("side", "block", "printed"),
    [
        (64, 64, ("11.8", "28", "64")), (128, 64, ("3.2", "8.3", "22.6")), (256, 64, ("0.85", "2.3", "6.6")),
        (64, 128, ("21.5", "33", "71")), (128, 128, ("6.2", "9.9", "25.7")), (256, 128, ("1.7", "2.7", "7.7")),
    ],
)  # fmt: skip
def test_computed_area_of_the_published_sizes(side, block, printed):
    """1024, 2048 and 4096 pixels; percent of all pairs, to one unit of the last digit printed or two percent of the number."""
    for radius, text in zip((8, 16, 32), printed, strict=True):
        got = 100 * float(Clear(block=block, radius=radius).plan(image(side, side)).density())
        assert got == pytest.approx(float(text), rel=0.02, abs=10.0 ** -len(text.partition(".")[2]))


TEXT, BOTH_ENDS = image(24, 20, text=7, start=7), image(9, 13, text=30, start=12)


@pytest.mark.parametrize("tokens", [TEXT, BOTH_ENDS, image(1, 50), image(33, 3), image(16, 16)], ids=lambda t: f"{t.grid[1]}x{t.grid[2]}+{t.free}")
@pytest.mark.parametrize("radius", [0.5, 1, 3, 5, 8, 40])
def test_the_plan_is_the_definition(tokens, radius):
    every = torch.arange(tokens.count)
    for block in (16, 64):
        plan = Clear(block=block, radius=radius).plan(tokens)
        assert torch.equal(admitted(plan, 0, every, every), literal(tokens, radius))


@pytest.mark.parametrize(("radius", "frame_radius", "tile"), [(4, 2, None), (6, 1.5, (2, 4, 2)), (5, 100, (1, 3, 5)), (4, None, None), (3, 0.5, (4, 2, 2))])
def test_the_ellipsoid_is_the_definition(radius, frame_radius, tile):
    plan = Clear(block=16, radius=radius, frame_radius=frame_radius, tile=tile).plan(VIDEO)
    every = torch.arange(VIDEO.count)
    assert torch.equal(admitted(plan, 0, every, every), literal(VIDEO, radius, frame_radius))


@given(st.integers(1, 12), st.integers(1, 49))
@settings(deadline=None, max_examples=60)
@example(1, 41)
@example(2, 49)
@example(5, 3)
def test_no_rounding_decides_what_lies_on_the_border(radius, frame_radius):
    """Whole radii meet whole distances exactly; in integers there is no doubt who is inside."""
    tokens = Tokens(50 * 9, (50, 1, 9))
    at = torch.stack([x.flatten() for x in torch.meshgrid(*(torch.arange(n) for n in tokens.grid), indexing="ij")])
    dt, dy, dx = ((axis[:, None] - axis[None, :]) ** 2 for axis in at)
    exact = (dy + dx) * frame_radius**2 + dt * radius**2 < radius**2 * frame_radius**2
    every = torch.arange(tokens.count)
    for tile in ((1, 1, 9), (3, 1, 5)):
        plan = Clear(block=16, radius=radius, frame_radius=frame_radius, tile=tile).plan(tokens)
        assert torch.equal(admitted(plan, 0, every, every), exact)


@pytest.mark.parametrize(
    "pattern", [Clear(block=32, radius=4), Clear(block=16, radius=4, frame_radius=2), Clear(block=16, radius=5, frame_radius=3, tile=(2, 2, 4))], ids=lambda p: p.label
)
def test_kinds_of_blocks_are_exact(pattern):
    """Whole where all live pairs are inside, tested where some are, not read where none is."""
    tokens = VIDEO if pattern.frame_radius else PICTURE
    plan = pattern.plan(tokens)
    mask = literal(tokens, pattern.radius, pattern.frame_radius)
    blocks = [[t for t in row if t >= 0] for row in plan.q.perm.view(plan.q.blocks, -1).tolist()]
    for a, b in itertools.product(range(plan.q.blocks), repeat=2):
        inner = mask[blocks[a]][:, blocks[b]]
        want = FULL if inner.all() else PARTIAL if inner.any() else EMPTY
        assert int(plan.kinds()[0, a, b]) == want, (a, b)


def test_a_circle_around_the_whole_picture_is_dense():
    tokens = image(6, 13, text=9)  # 5 down and 12 across: 13 from corner to corner
    assert (Clear(block=32, radius=13.01).plan(tokens).kinds() == FULL).all()
    assert (Clear(block=32, radius=13).plan(tokens).kinds() == PARTIAL).any(), "strictly less"


@pytest.mark.parametrize(
    "pattern", [Clear(block=32, radius=4), Clear(block=32, radius=4, frame_radius=2), Clear(block=16, radius=5, frame_radius=3, tile=(2, 2, 4)), Clear(block=32, radius=3, tail="row")],
    ids=lambda p: p.label,
)  # fmt: skip
def test_runs_like_the_reference(pattern):
    assert_runs_like_reference(pattern, VIDEO if pattern.frame_radius else PICTURE, heads=2)


@pytest.mark.parametrize(("tokens", "radius"), [(TEXT, 3), (TEXT, 8), (BOTH_ENDS, 5)])
def test_output_is_that_of_the_literal_mask(tokens, radius):
    s = call(tokens, heads=2)
    assert_close("o", run(Clear(block=64, radius=radius), s), masked_attention(s, literal(tokens, radius)), 3e-6)


def test_output_of_the_ellipsoid_is_that_of_the_literal_mask():
    s = call(VIDEO)
    assert_close("o", run(Clear(block=32, radius=4, frame_radius=2), s), masked_attention(s, literal(VIDEO, 4, 2)), 3e-6)


def test_batch_does_not_matter():
    assert_batch_does_not_matter(Clear(block=32, radius=4), PICTURE)


@pytest.mark.parametrize("pattern", [Clear(block=32, radius=4), Clear(block=16, radius=4, frame_radius=2)])
def test_density_is_the_counted_one(pattern):
    plan = pattern.plan(VIDEO)
    assert float(plan.density()) == pytest.approx(counted_density(plan), rel=1e-6)


def test_a_larger_radius_reads_more():
    plans = [Clear(block=64, radius=r).plan(image(40, 56)) for r in (2, 12, 20, 33)]
    for less, more in itertools.pairwise(plans):
        assert not ((less.kinds() != EMPTY) & (more.kinds() == EMPTY)).any()
        assert nnz(less) < nnz(more)


def test_with_trained_weights_dense_is_no_stand_in():
    assert Clear().plan(PICTURE).approximate
    assert not Clear(trained=True).plan(PICTURE).approximate


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"radius": 0}, "the radius of clear is 0"),
        ({"radius": math.inf}, "radius"),
        ({"radius": 8, "frame_radius": -1}, "frame_radius of clear is -1"),
        ({"tile": (2, 8, 16)}, "2 x 8 x 16"),
    ],
)
def test_bad_settings_are_refused(bad, words):
    with pytest.raises(ValueError, match=words):
        Clear(**bad)


def test_no_grid_is_refused():
    with pytest.raises(ValueError, match="clear needs a grid"):
        Clear().plan(NO_GRID)


def test_labels_tell_settings_apart():
    assert Clear().label == "clear_b128_r16"
    assert Clear(block=64, radius=7.5, frame_radius=3, tile=(2, 4, 8), trained=True).label == "clear_b64_r7.5_f3_t2x4x8_trained"
