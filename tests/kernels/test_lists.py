"""Executable lists: what they visit, in which kind and order, how heavy rows are cut, and how long they are kept."""

import pytest
import torch
from attention_loom.kernels import MASKED, AttentionPlan, FrameTable, Labels, Modulation, by_frame, from_bool, raster
from attention_loom.kernels import lists as lists_module
from attention_loom.kernels.lists import imbalance, in_place_order, launch_order, ragged, readable, work_lists
from attention_loom.kernels.tiles import EMPTY, MIXED, PLAIN, UNIFORM, table_kinds
from hypothesis import given, settings
from hypothesis import strategies as st


def test_without_blocks_and_tables_there_is_no_list():
    assert work_lists(AttentionPlan(key_bias=torch.zeros(1, 1, 5)), 5, 5, 64, 64) is None


@given(st.integers(0, 2**20), st.integers(1, 3), st.integers(1, 6), st.integers(1, 9))
@settings(deadline=None, max_examples=60)
def test_ragged_rows_hold_each_column_once_by_kind(seed, sets, n_q, n_k):
    kinds = torch.randint(0, 4, (sets, n_q, n_k), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    bounds, col = ragged(kinds, kinds.numel())
    assert bounds[0, 0, 0] == 0
    assert col.shape[0] == int((kinds != EMPTY).sum()) == int(bounds[-1, -1, -1])
    for s in range(sets):
        for a in range(n_q):
            for kind, (lo, hi) in enumerate(zip(bounds[s, a, :-1].tolist(), bounds[s, a, 1:].tolist(), strict=True)):
                assert col[lo:hi].tolist() == torch.nonzero(kinds[s, a] == kind).flatten().tolist()


def test_a_device_that_is_not_waited_for_gets_the_same_list_in_a_larger_buffer():
    kinds = torch.randint(0, 4, (2, 3, 5), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    exact, col = ragged(kinds, 0)

    class Elsewhere(torch.Tensor):
        @property
        def device(self):
            class Name(str):
                type = "elsewhere"

            return Name("cpu")

    bounds, wide = ragged(kinds.as_subclass(Elsewhere), 30)
    assert wide.shape[0] == 30
    assert torch.equal(bounds.as_subclass(torch.Tensor), exact)
    assert torch.equal(wide[: col.shape[0]].as_subclass(torch.Tensor), col)


def test_blocks_alone_are_used_as_they_are():
    order = raster(100, 32)
    mask = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.6
    plan = from_bool(mask, order, order)
    found = work_lists(AttentionPlan(blocks=plan), 100, 100, 64, 64)
    assert found.col is plan.full.col
    assert torch.equal(found.lengths(), mask.sum(-1).int())
    assert work_lists(AttentionPlan(blocks=plan), 100, 100, 64, 64) is found


def frames_of(order) -> FrameTable:
    ids = torch.full((order.tokens,), -1, dtype=torch.int16)
    at = order.inverse.long()
    ids[:] = torch.where(order.pos[at] >= 0, order.pos[at] // (order.grid[1] * order.grid[2]), -1)
    classes = torch.tensor([[0, 1, MASKED], [1, 0, 1], [1, 1, 0]], dtype=torch.uint8)
    return FrameTable(ids, ids, classes, torch.tensor([1.0, 0.8]))


def test_tables_are_read_in_place_order_and_dead_places_have_no_say():
    """Whole frames in one block each: every tile of the grid has one class although most of its places are dead."""
    order = by_frame(3 * 20 + 5, 32, (3, 4, 5), 5)
    table = frames_of(order)
    assert (order.valid[:3] == 20).all()
    kinds = table_kinds((in_place_order(table, order, order),), 32, 32)[0, :3, :3]
    want = torch.tensor([[PLAIN, UNIFORM, EMPTY], [UNIFORM, PLAIN, UNIFORM], [UNIFORM, UNIFORM, PLAIN]], dtype=torch.uint8)
    assert torch.equal(kinds, want)
    live = order.perm >= 0
    assert torch.equal(readable(order)[live], order.perm[live].long())
    assert (readable(order).view(-1, 32)[:, 0] == order.perm.view(-1, 32)[:, 0]).all()


def test_blocks_and_tables_meet():
    order = by_frame(65, 32, (3, 4, 5), 5)
    table = frames_of(order)
    some = torch.ones(1, 4, 4, dtype=torch.bool)
    some[0, 0, 1] = False
    blocks = from_bool(some, order, order)
    found = work_lists(AttentionPlan(blocks=blocks, modulation=Modulation(frames=table)), 65, 65, 64, 64)
    plain, uniform, mixed = found.bounds.diff(dim=-1).unbind(-1)
    assert plain[0].tolist() == [2, 2, 2, 4]  # own frame and the free block; the free block reads all as it is
    assert uniform[0].tolist() == [0, 2, 2, 0]  # a block not listed and a masked one are gone
    assert mixed[0].tolist() == [0, 0, 0, 0]


def test_labels_of_a_batch_make_a_list_set_for_each_element():
    order = raster(64, 32)
    label = torch.zeros(2, 64, dtype=torch.int8)
    label[1, 32:] = 1
    labels = Labels(label, torch.ones(2, 64, dtype=torch.int64), 2)
    head_map = torch.tensor([[0, 1]], dtype=torch.int32)
    blocks = from_bool(torch.ones(2, 2, 2, dtype=torch.bool), order, order, head_map=head_map)
    found = work_lists(AttentionPlan(blocks=blocks, labels=labels), 64, 64, 64, 64)
    assert found.head_map.tolist() == [[0, 1], [2, 3]]
    assert found.lengths().tolist() == [[2, 2], [2, 2], [1, 1], [1, 1]]


def test_longest_first_and_every_item_once():
    order = raster(160, 32)
    mask = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(4)) < 0.5
    found = work_lists(AttentionPlan(blocks=from_bool(mask, order, order)), 160, 160, 64, 64)
    items = launch_order(found, 2, 3, 2)
    assert items.sort().values.tolist() == list(range(2 * 3 * 10))
    per_item = found.lengths().repeat_interleave(2, 1).repeat(2, 1).flatten()[items.long()]
    assert (per_item.diff() <= 0).all()
    ties = per_item.diff() == 0
    assert (items.diff()[ties] > 0).all(), "equal rows keep their order"


@pytest.fixture
def low(monkeypatch):
    monkeypatch.setattr(lists_module, "SPLIT_ABOVE", 3)


def test_rows_of_free_tokens_are_cut_and_no_others(low):
    order = by_frame(8 * 32 + 40, 32, (8, 4, 8), 0)
    mask = torch.eye(10, dtype=torch.bool)[None].clone()
    mask[:, 8:] = True
    found = work_lists(AttentionPlan(blocks=from_bool(mask, order, order)), 296, 296, 32, 32)
    assert (found.split_from, found.splits) == (8, 4)
    assert found.chunk.tolist() == [6]  # twice the mean length, 28 / 10
    items = launch_order(found, 1, 1, 1)
    assert items.shape[0] == 8 + 2 * 4
    assert items[:4].tolist() == [8, 12, 9, 13], "whole parts first, then what is left of the rows"


def test_a_short_row_of_lists_is_not_cut():
    order = by_frame(8 * 32 + 40, 32, (8, 4, 8), 0)
    found = work_lists(AttentionPlan(blocks=from_bool(torch.ones(1, 10, 10, dtype=torch.bool), order, order)), 296, 296, 32, 32)
    assert (found.split_from, found.splits, found.chunk) == (10, 1, None)


def test_cutting_evens_out_the_work(monkeypatch):
    order = by_frame(8 * 32 + 40, 32, (8, 4, 8), 0)
    mask = torch.eye(10, dtype=torch.bool)[None].clone()
    mask[:, 8:] = True

    def of() -> float:
        return imbalance(work_lists(AttentionPlan(blocks=from_bool(mask, order, order)), 296, 296, 32, 32), 1, 4, 16)

    whole = of()
    monkeypatch.setattr(lists_module, "SPLIT_ABOVE", 3)
    assert of() < whole
    assert whole == pytest.approx(10 * 16 / (4 * 28))


def test_what_is_derived_from_two_parts_goes_with_either():
    from attention_loom.kernels import caching

    order = by_frame(65, 32, (3, 4, 5), 5)
    blocks = from_bool(torch.ones(1, 4, 4, dtype=torch.bool), order, order)
    table = frames_of(order)
    first = work_lists(AttentionPlan(blocks=blocks, modulation=Modulation(frames=table)), 65, 65, 64, 64)
    assert work_lists(AttentionPlan(blocks=blocks, modulation=Modulation(frames=table)), 65, 65, 64, 64) is first
    kept = len(caching._store[blocks])
    table = frames_of(order)
    assert work_lists(AttentionPlan(blocks=blocks, modulation=Modulation(frames=table)), 65, 65, 64, 64) is not first
    assert len(caching._store[blocks]) == kept, "lists of a table that is gone are gone"


def test_kind_numbers_are_list_positions():
    assert (PLAIN, UNIFORM, MIXED, EMPTY) == (0, 1, 2, 3)
