"""Draft attention: tiles, kept counts, what the draft means, and what must not change it."""

import itertools
import math

import pytest
import torch
from attention_loom.kernels import AttentionPlan, best_tile, by_tile, reference_attend
from attention_loom.kernels.patterns import draft as module
from attention_loom.kernels.patterns import pooled
from attention_loom.kernels.patterns.base import Tokens
from attention_loom.kernels.patterns.draft import Draft, draft
from kernel_cases import assert_close
from pattern_tools import NO_GRID, PICTURE, TEXT_FIRST, VIDEO, assert_batch_does_not_matter, assert_runs_like_reference, call, counted_density, run


def grid_kinds(plan):
    return plan.kinds()[:, : plan.q.grid_blocks, : plan.q.grid_blocks]


def selected(pattern: Draft, s):
    """What the draft itself selects, before anything is forced."""
    tile = best_tile(s.tokens.grid, pattern.block) if pattern.tile is None else (1, *pattern.tile)
    return pattern._select(s, by_tile(s.tokens.count, pattern.block, s.tokens.grid, s.tokens.start, tile))


def test_order_of_tiles():
    order = by_tile(16, 4, (1, 4, 4), 0, (1, 2, 2))
    assert order.perm.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert order.inverse[order.perm.long()].tolist() == list(range(16))
    ragged = by_tile(15, 4, (1, 5, 3), 0, (1, 2, 2))
    assert ragged.valid.tolist() == [4, 2, 4, 2, 2, 1]


@pytest.mark.parametrize(
    ("rows", "cols", "block", "tile", "area"),
    [
        (48, 80, 64, (8, 8), 1.0), (48, 80, 128, (8, 16), 1.0), (32, 48, 128, (8, 16), 1.0), (128, 128, 64, (8, 8), 1.0),
        (45, 80, 64, (8, 8), 1.067), (45, 80, 128, (9, 14), 1.067), (30, 52, 64, (10, 6), 1.108), (30, 52, 128, (15, 8), 1.149),
        (34, 60, 64, (7, 9), 1.098), (34, 60, 128, (12, 10), 1.129), (60, 104, 128, (15, 8), 1.067), (40, 72, 128, (10, 12), 1.067),
    ],
)  # fmt: skip
def test_the_tile_that_wastes_least(rows, cols, block, tile, area):
    assert best_tile((1, rows, cols), block) == (1, *tile)
    assert round(math.ceil(rows / tile[0]) * math.ceil(cols / tile[1]) * block / (rows * cols), 3) == area


@pytest.mark.parametrize(("grid", "sparsity", "kept"), [((33, 5, 6), 0.9, 98_011), ((21, 5, 6), 0.75, 99_226), ((1, 2, 2), 0.5, 9)])
def test_number_of_kept_tiles(grid, sparsity, kept):
    tokens = Tokens(math.prod(grid), grid)
    s = call(tokens, heads=1, width=16)
    assert int(selected(Draft(block=1, tile=(1, 1), sparsity=sparsity), s).sum()) == kept
    per_row = selected(Draft(block=1, tile=(1, 1), sparsity=sparsity, scope="row"), s).sum(-1)
    assert (per_row == tokens.count - math.floor(sparsity * tokens.count)).all()


@pytest.mark.parametrize("scope", ["head", "row"])
def test_nothing_dropped_is_dense(scope):
    s = call(VIDEO)
    pattern = Draft(block=32, sparsity=0.0, scope=scope)
    assert (pattern.blocks(s).kinds() == 2).all()
    assert_close("o", run(pattern, s), reference_attend(s.q, s.k, s.v, AttentionPlan()), 3e-6)


def test_the_draft_is_the_attention_where_tiles_are_constant():
    """Constant q and k per tile: the draft equals the share of attention each tile of keys gets, ragged tiles included."""
    s = call(VIDEO, heads=2)
    order = by_tile(VIDEO.count, 16, VIDEO.grid, 0, (1, 4, 4))
    assert order.valid.unique().numel() > 3, "ragged tiles are what this is about"
    tiles = order.grid_blocks
    home = order.inverse[: VIDEO.inside].long() // 16
    for x in (s.q, s.k):
        means = pooled.block_means(x, order, tiles)
        x[:, :, : VIDEO.inside] = means[:, :, home]
    q, k = s.q[:, :, : VIDEO.inside].double(), s.k[:, :, : VIDEO.inside].double()
    p = torch.softmax(s.scale * q @ k.transpose(-1, -2), -1)
    first = order.perm.view(-1, 16)[:tiles, 0].long()
    mass = torch.zeros(*p.shape[:2], tiles, tiles, dtype=p.dtype).index_add_(3, home, p[:, :, first])
    got = draft(pooled.block_means(s.q, order, tiles), pooled.block_means(s.k, order, tiles), order.valid[:tiles], s.scale)
    assert torch.allclose(got.double(), mass, rtol=1e-4)


@pytest.mark.parametrize("scope", ["head", "row"])
def test_what_does_not_change_the_choice(scope):
    pattern = Draft(block=16, scope=scope, sparsity=0.6)
    s = call(TEXT_FIRST, heads=3)
    want = pattern.blocks(s).kinds()
    shifted = call(TEXT_FIRST, heads=3)
    shifted.k += 0.5
    assert torch.equal(pattern.blocks(shifted).kinds(), want), "the same vector on all keys"
    swapped = call(TEXT_FIRST, heads=3)
    swapped.q, swapped.k = s.q[:, [2, 0, 1]], s.k[:, [2, 0, 1]]
    assert torch.equal(pattern.blocks(swapped).kinds(), want[[2, 0, 1]]), "heads in another order"
    poisoned = call(TEXT_FIRST, heads=3)
    for x in (poisoned.q, poisoned.k):
        x[:, :, : TEXT_FIRST.start] = torch.nan
    assert torch.equal(pattern.blocks(poisoned).kinds(), want), "free tokens"


def test_heads_and_batch_rows_choose_for_themselves():
    s = call(VIDEO, batch=2, heads=2)
    kinds = Draft(block=16).blocks(s).kinds()
    assert len({k.numpy().tobytes() for k in kinds}) == 4
    other = call(VIDEO, batch=2, heads=2)
    other.k[0] = 0
    assert torch.equal(Draft(block=16).blocks(other).kinds()[2:], kinds[2:])


def test_grouped_key_heads():
    s = call(VIDEO, heads=4, key_heads=2)
    grouped = Draft(block=16).blocks(s).kinds()
    s.k = s.k.repeat_interleave(2, 1)
    assert torch.equal(Draft(block=16).blocks(s).kinds(), grouped)


def test_few_heads_at_a_time_give_the_same(monkeypatch):
    s = call(VIDEO, batch=2, heads=3)
    want = Draft(block=16).blocks(s).kinds()
    monkeypatch.setattr(module, "BYTES", 1)
    monkeypatch.setattr(pooled, "BYTES", 1)
    assert torch.equal(Draft(block=16).blocks(s).kinds(), want)


@pytest.mark.parametrize("tokens", [VIDEO, TEXT_FIRST, PICTURE])
@pytest.mark.parametrize("scope", ["head", "row"])
def test_what_is_always_read(tokens, scope):
    kinds = Draft(block=16, sparsity=0.99, scope=scope).blocks(call(tokens)).kinds()
    own = kinds.shape[1] - math.ceil(tokens.free / 16)
    assert (kinds.diagonal(dim1=1, dim2=2) == 2).all()
    assert (kinds[:, own:] == 2).all()
    assert (kinds[:, :, own:] == 2).all()


@pytest.mark.parametrize("scope", ["head", "row"])
def test_sparser_reads_less(scope):
    s = call(VIDEO)
    plans = [grid_kinds(Draft(block=16, sparsity=p, scope=scope).blocks(s)) == 2 for p in (0.0, 0.3, 0.6, 0.9)]
    for more, less in itertools.pairwise(plans):
        assert not (less & ~more).any()
        assert less.sum() < more.sum()


@pytest.mark.parametrize(
    "pattern", [Draft(block=32), Draft(block=16, scope="row"), Draft(block=32, tile=(3, 5), sparsity=0.9), Draft(block=32, tail="centroid")], ids=lambda p: p.label
)
def test_runs_like_the_reference(pattern):
    assert_runs_like_reference(pattern, VIDEO, heads=4, key_heads=2)
    assert_runs_like_reference(pattern, TEXT_FIRST, heads=2, batch=2)


def test_batch_does_not_matter():
    assert_batch_does_not_matter(Draft(block=16), VIDEO)


def test_half_precision():
    s = call(VIDEO)
    s.q, s.k, s.v = (x.bfloat16() for x in (s.q, s.k, s.v))
    o = run(Draft(block=16), s)
    assert o.dtype == torch.bfloat16
    assert o.isfinite().all()


@pytest.mark.parametrize("tokens", [VIDEO, TEXT_FIRST])
def test_density_is_the_counted_one(tokens):
    plan = Draft(block=16).blocks(call(tokens, batch=2, heads=2))
    assert float(plan.density()) == pytest.approx(counted_density(plan), rel=1e-6)


def test_the_choice_records_no_gradient():
    s = call(TEXT_FIRST)
    s.q.requires_grad_()
    o = run(Draft(block=16), s)
    o.sum().backward()
    assert s.q.grad.isfinite().all()


@pytest.mark.parametrize(
    ("bad", "words"), [({"sparsity": 1.0}, "sparsity"), ({"sparsity": -0.1}, "sparsity"), ({"scope": "all"}, "'all'"), ({"tile": (12, 12)}, "12 x 12"), ({"tile": (0, 4)}, "0 x 4")]
)
def test_bad_settings_are_refused(bad, words):
    with pytest.raises(ValueError, match=words):
        Draft(**bad)


def test_no_grid_is_refused():
    with pytest.raises(ValueError, match="draft needs a grid"):
        Draft().blocks(call(NO_GRID))


def test_labels_tell_settings_apart():
    assert Draft().label == "draft_b128_s0.75"
    assert Draft(block=64, sparsity=0.9, tile=(8, 8), scope="row").label == "draft_b64_s0.90_t8x8_row"
