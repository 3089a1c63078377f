"""Transposed lists against the dense map of the same plan."""

import torch
from attention_loom.kernels import AttentionPlan, BlockList, FrameTable, Labels, Modulation, Window, block_list, by_tile, from_bool, raster
from attention_loom.kernels.bits import to_bits
from attention_loom.kernels.lists import work_lists
from attention_loom.kernels.transpose import longest_first, transpose, transpose_ids, transpose_work
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor


def dense(rows: BlockList, columns: int) -> Tensor:
    """int [G, rows, columns]: number of times each is listed."""
    out = torch.zeros(*rows.ptr[:, 1:].shape, columns, dtype=torch.int)
    for g, ptr in enumerate(rows.ptr.tolist()):
        for a in range(len(ptr) - 1):
            for at in range(ptr[a], ptr[a + 1]):
                out[g, a, rows.col[at]] += 1
    return out


def kinds(lists, columns: int) -> Tensor:
    """int [S, rows, columns]: 1 + kind of each listed block."""
    out = torch.zeros(*lists.bounds.shape[:2], columns, dtype=torch.int)
    for s, rows in enumerate(lists.bounds.tolist()):
        for a, bounds in enumerate(rows):
            for kind in range(len(bounds) - 1):
                for at in range(bounds[kind], bounds[kind + 1]):
                    out[s, a, lists.col[at]] += 1 + kind
    return out


masks = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31), st.floats(0, 1)).map(
    lambda x: torch.rand(*x[:3], generator=torch.Generator().manual_seed(x[3])) < x[4]
)


@settings(max_examples=60, deadline=None)
@given(masks, st.integers(0, 5))
def test_lists_read_the_other_way_round(mask, slack):
    rows = block_list(mask)
    # room for more entries than there are, with rubbish in it: what builders that may not wait for the device leave behind
    rows = BlockList(rows.ptr, torch.cat([rows.col, torch.full((slack,), mask.shape[-1] - 1, dtype=rows.col.dtype)]))
    turned = transpose(rows, mask.shape[-1])
    assert torch.equal(dense(turned, mask.shape[1]), mask.transpose(1, 2).int())
    for lo, hi in zip(turned.ptr.flatten().tolist(), turned.ptr.flatten().tolist()[1:], strict=False):
        assert (turned.col[lo:hi].diff() > 0).all(), "ascending in each row"
    assert transpose(rows, mask.shape[-1]) is turned, "kept with the list"


@settings(max_examples=30, deadline=None)
@given(masks, st.integers(0, 5))
def test_ids_go_with_their_entries(mask, slack):
    rows = block_list(mask)
    count = rows.col.shape[0]
    rows = BlockList(rows.ptr, torch.cat([rows.col, torch.zeros(slack, dtype=rows.col.dtype)]))
    ids = torch.arange(count + slack, dtype=torch.int32) * 7 + 3
    moved, turned = transpose_ids(rows, ids, mask.shape[-1]), transpose(rows, mask.shape[-1])
    where = {}
    for g, ptr in enumerate(rows.ptr.tolist()):
        where |= {(g, a, int(rows.col[at])): int(ids[at]) for a in range(len(ptr) - 1) for at in range(ptr[a], ptr[a + 1])}
    for g, ptr in enumerate(turned.ptr.tolist()):
        for key in range(len(ptr) - 1):
            for at in range(ptr[key], ptr[key + 1]):
                assert int(moved[at]) == where[g, int(turned.col[at]), key]


def test_kinds_and_list_sets_are_kept():
    order = by_tile(70, 32, (1, 7, 9), 5, (1, 4, 4))
    g = torch.Generator().manual_seed(0)
    draw = torch.rand(2, order.blocks, order.blocks, generator=g)
    blocks = to_bits(from_bool(draw < 0.3, order, order, partial=draw > 0.6, test=Window(2.5)))
    ids = (torch.arange(70) // 20).to(torch.int16)
    table = FrameTable(ids, ids, (torch.rand(4, 4, generator=g) < 0.5).to(torch.uint8), torch.tensor([1.0, 0.5]))
    words = Labels(torch.arange(70).remainder(2).to(torch.int8).expand(3, -1), torch.randint(0, 4, (3, 70), generator=g), 2)
    lists = work_lists(AttentionPlan(blocks=blocks, labels=words, modulation=Modulation(frames=table)), 70, 70, 32, 32)
    turned = transpose_work(lists, order.blocks, blocks)
    assert torch.equal(kinds(turned, order.blocks), kinds(lists, order.blocks).transpose(1, 2))
    assert turned.partial.ptr.shape[0] == 6
    assert torch.equal(dense(BlockList(turned.partial.ptr[4:], turned.partial.col), order.blocks), dense(blocks.partial, order.blocks).transpose(1, 2))


def test_programs_are_sorted_by_the_work_of_all_their_heads():
    order = raster(96, 32)
    mask = torch.tensor([[[1, 0, 0], [1, 1, 0], [1, 1, 1]], [[1, 1, 1], [1, 0, 0], [1, 0, 0]]], dtype=torch.bool)
    lists = work_lists(AttentionPlan(blocks=from_bool(mask, order, order)), 96, 96, 32, 32)
    assert longest_first(lists, 1, 2, 1, 1).tolist() == [2, 3, 1, 0, 4, 5]
    turned = transpose_work(lists, 3, None)  # columns: 3, 2, 1 blocks for one head and 3, 1, 1 for the other
    assert longest_first(turned, 1, 2, 2, 1).tolist() == [0, 1, 2]
    assert longest_first(turned, 1, 2, 1, 2).tolist() == [0, 1, 6, 7, 2, 3, 4, 5, 8, 9, 10, 11]
