"""Key-to-query lists: a plan's rows of key blocks read the other way round, for the gradients of keys and values.

Made on the device without waiting for it, at the first backward pass, and kept as long as the lists they come from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import BlockList, BlockPlan, entry_places
from .builders import block_list
from .caching import with_part
from .lists import WorkLists, ragged
from .tiles import EMPTY


def transpose(rows: BlockList, n_k: int) -> BlockList:
    """Per key block the ascending query blocks that list it: ptr int32 [G, nK+1], as many entries as ``rows`` has room for.

    Memory while it is made: one byte per pair of blocks, and eight for one group at a time.
    """

    def make() -> BlockList:
        groups, n_q = rows.ptr.shape[0], rows.ptr.shape[1] - 1
        listed = torch.zeros(groups * n_q * n_k + 1, dtype=torch.bool, device=rows.col.device)
        listed.index_fill_(0, entry_places(rows, n_k), True)
        return block_list(listed[:-1].view(groups, n_q, n_k).transpose(1, 2), rows.col.shape[0])

    return with_part(rows, ("transposed", n_k), make)


def transpose_ids(rows: BlockList, ids: Tensor, n_k: int) -> Tensor:
    """``ids`` int32 [capacity], one per entry of ``rows``, put in the order of the entries of :func:`transpose`."""

    def make() -> Tensor:
        groups, n_q = rows.ptr.shape[0], rows.ptr.shape[1] - 1
        spare = groups * n_q * n_k
        by_place = torch.zeros(spare + 1, dtype=torch.int32, device=ids.device)
        by_place.index_copy_(0, entry_places(rows, n_k), ids.int())
        turned = entry_places(transpose(rows, n_k), n_q)  # (g, key, query); entries past the end read the spare slot
        g, inside = turned // (n_k * n_q), turned % (n_k * n_q)
        place = g * n_q * n_k + inside % n_q * n_k + inside // n_q
        return by_place.index_select(0, torch.where(turned < spare, place, spare))

    return with_part(rows, ("transposed ids", n_k), make)


def transpose_work(lists: WorkLists, n_k: int, blocks: BlockPlan | None) -> WorkLists:
    """``lists`` over ``n_k`` key blocks with rows of key blocks and columns of query blocks, kind by kind; never cut.

    blocks: the block plan they were made from, if any; its partial list is shared by all list sets made from one group.
    """

    def make() -> WorkLists:
        kinds = _kind_map(lists, n_k).transpose(1, 2)
        partial = None
        if lists.partial is not None:
            assert blocks is not None
            assert blocks.partial is not None
            turned = transpose(blocks.partial, n_k)
            partial = BlockList(turned.ptr.repeat(lists.bounds.shape[0] // blocks.groups, 1), turned.col)
        return WorkLists(*ragged(kinds, min(kinds.numel(), lists.col.shape[0])), partial, lists.head_map, lists.block_k, lists.block_q, n_k)

    return with_part(lists, ("transposed", n_k), make)


def longest_first(lists: WorkLists, batch: int, heads: int, group: int, tiles_per_row: int) -> Tensor:
    """int32 [batch * heads/group * rows * tiles_per_row]: programs by descending work, ties in their order.

    A program ``(b * heads/group + g) * tiles + tile`` visits the rows of the ``group`` heads it stands for one after another.
    """

    def make() -> Tensor:
        listed = lists.bounds[..., -1] - lists.bounds[..., 0]
        lengths = listed if lists.partial is None else listed + lists.partial.ptr.diff(dim=-1)
        per_head = lengths[lists.head_map.long()].expand(batch, heads, -1)
        work = per_head.unflatten(1, (heads // group, group)).sum(2).repeat_interleave(tiles_per_row, -1)
        return torch.argsort(work.flatten(), descending=True, stable=True).int()

    return with_part(lists, ("longest first", batch, heads, group, tiles_per_row), make)


def _kind_map(lists: WorkLists, n_k: int) -> Tensor:
    """uint8 [S, nQ, nK]: kind of each block in ``lists.col``, EMPTY where none."""
    sets, n_q, _ = lists.bounds.shape
    ends = lists.bounds[..., 1:].flatten(0, 1)
    at = torch.arange(lists.col.shape[0], device=lists.col.device)
    row = torch.searchsorted(ends[:, -1].contiguous(), at.int(), right=True)
    kind = (at[:, None] >= ends.index_select(0, row.clamp(max=sets * n_q - 1))).sum(-1)
    place = torch.where(row < sets * n_q, row * n_k + lists.col.long(), sets * n_q * n_k)
    out = torch.full((sets * n_q * n_k + 1,), EMPTY, dtype=torch.uint8, device=at.device)
    return out.scatter_(0, place, kind.to(torch.uint8))[:-1].view(sets, n_q, n_k)
