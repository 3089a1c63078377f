"""Executable lists: what a kernel visits, per row of query blocks, made from a plan's blocks and the kinds of its tables.

A visited block is one of four kinds: plain, uniform (one factor for all pairs, noted beside its entry), mixed (the rules look
at each pair), and partial (so does the element test of the plan). The kernel runs one loop over the first two and one over
each of the others. The first three share one ragged list in that order; the fourth is the plan's own, as the ids of its packed
bits are aligned with it.

All of it is made on the device without waiting for it and is kept as long as the plan parts it was made from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks import FULL, SMALL, BlockList, BlockPlan, TokenOrder
from .caching import with_part, with_parts
from .plan import AttentionPlan, DistanceTable, FrameTable, Labels
from .tiles import EMPTY, MIXED, factor_map, table_kinds

SPLIT_ABOVE = 256
"""Rows of free tokens with more blocks than this are cut along the keys."""


@dataclass(frozen=True, eq=False)
class WorkLists:
    """What is visited. S list sets, nQ rows of ``block_q`` queries, columns of ``block_k`` keys.

    bounds int32 [S, nQ, K+1]: where the row starts in ``col``, then where each of the K kinds (1: plain only, or 3) ends.
    col int16|int32. partial: the plan's own list, its ``ptr`` repeated to S rows. head_map int32 [B|1, H|1] -> [0, S).
    split_from: rows from here on are free tokens, read everything, and are cut into ``splits`` parts along the keys of
    ``chunk`` int32 [S] blocks each (the last ones may be empty); nQ and 1 where none is cut. gains fp32, one per entry of
    ``col``: the factor of a uniform block; None where no table has factors.
    """

    bounds: Tensor
    col: Tensor
    partial: BlockList | None
    head_map: Tensor
    block_q: int
    block_k: int
    split_from: int
    splits: int = 1
    chunk: Tensor | None = None
    gains: Tensor | None = None

    @property
    def kinds(self) -> int:
        """Kinds of block in ``col``: 1 or 3."""
        return self.bounds.shape[-1] - 1

    @property
    def rows(self) -> int:
        """nQ."""
        return self.bounds.shape[1]

    def lengths(self) -> Tensor:
        """int32 [S, nQ]: blocks visited by each row."""
        listed = self.bounds[..., -1] - self.bounds[..., 0]
        return listed if self.partial is None else listed + self.partial.ptr.diff(dim=-1)


def work_lists(plan: AttentionPlan, n_q: int, n_k: int, block_m: int, block_n: int) -> WorkLists | None:
    """Lists for the blocks and tables of ``plan``; None where there are neither and all of Nq x Nk is read as it stands.

    block_m, block_n: tile of the kernel, used where no block plan sets the sizes.
    """
    blocks = plan.blocks if isinstance(plan.blocks, BlockPlan) else None
    tables = rule_parts(plan)
    if blocks is None:
        if not tables:
            return None
        return with_parts(tables, ("lists", n_q, n_k, block_m, block_n), lambda: _of_tables(tables, n_q, n_k, block_m, block_n))
    if not tables:
        return with_part(blocks, ("lists", SPLIT_ABOVE), lambda: _of_blocks(blocks))
    return with_parts((blocks, *tables), ("lists", SPLIT_ABOVE), lambda: _of_both(blocks, tables))


def rule_parts(plan: AttentionPlan) -> tuple[FrameTable | DistanceTable | Labels, ...]:
    """The parts of a plan that look at single pairs and are known per block."""
    mod = plan.modulation
    found = (mod.frames if mod else None, mod.distance if mod else None, plan.labels)
    return tuple(p for p in found if p is not None)


def readable(order: TokenOrder) -> Tensor:
    """int64 [places]: the token at each place; at a dead place the first token of its block.

    Vectors of token properties taken in this order describe the live tokens of a block and nothing else, whatever is asked
    of the block as a whole.
    """

    def make() -> Tensor:
        perm = order.perm.view(order.blocks, order.block)
        return torch.where(perm >= 0, perm, perm[:, :1].clamp(min=0)).flatten().long()

    return with_part(order, "readable", make)


def launch_order(lists: WorkLists, batch: int, heads: int, tiles_per_row: int) -> Tensor:
    """int32 [items]: programs, longest first, so that no long one is left over at the end.

    An item is ``(b * heads + h) * n + i``. The first ``split_from * tiles_per_row`` values of i are tiles of queries, the
    others parts of tiles: ``splits`` in a row for each. Equal lengths keep their order: neighbours share keys in the cache.
    """

    def make() -> Tensor:
        lengths = lists.lengths()
        if lists.chunk is not None:
            part = torch.arange(lists.splits, dtype=torch.int32, device=lengths.device) * lists.chunk[:, None, None]
            cut = torch.minimum((lengths[:, lists.split_from :, None] - part).clamp(min=0), lists.chunk[:, None, None])
            tiled = cut[:, :, None, :].expand(-1, -1, tiles_per_row, -1).flatten(1)
            lengths = torch.cat([lengths[:, : lists.split_from].repeat_interleave(tiles_per_row, 1), tiled], 1)
        else:
            lengths = lengths.repeat_interleave(tiles_per_row, 1)
        per_head = lengths[lists.head_map.long()].expand(batch, heads, -1)
        return torch.argsort(per_head.flatten(), descending=True, stable=True).int()

    return with_part(lists, ("order", batch, heads, tiles_per_row), make)


def imbalance(lists: WorkLists, batch: int, heads: int, units: int) -> float:
    """Greatest load of one of ``units`` processors over the mean load, longest first and each to the least loaded (1 = even).

    For reports and benchmarks: waits for the device.
    """
    import heapq

    lengths = lists.lengths()[lists.head_map.long()].expand(batch, heads, -1)
    if lists.chunk is not None:
        size = int(lists.chunk.max())
        parts = torch.arange(lists.splits, device=lengths.device) * size
        cut = (lengths[..., lists.split_from :, None] - parts).clamp(0, size)
        lengths = torch.cat([lengths[..., : lists.split_from], cut.flatten(-2)], -1)
    loads = [0] * units
    for cost in lengths.flatten().sort(descending=True).values.tolist():
        heapq.heapreplace(loads, loads[0] + cost)
    return max(loads) * units / max(sum(loads), 1)


def _of_blocks(blocks: BlockPlan) -> WorkLists:
    bounds = torch.stack([blocks.full.ptr[:, :-1], blocks.full.ptr[:, 1:]], -1).contiguous()
    return _cut(WorkLists(bounds, blocks.full.col, blocks.partial, blocks.head_map, blocks.q.block, blocks.k.block, blocks.q.blocks), blocks)


def _of_tables(tables: tuple[FrameTable | DistanceTable | Labels, ...], n_q: int, n_k: int, block_m: int, block_n: int) -> WorkLists:
    kinds = table_kinds(tables, block_m, block_n)
    sets = torch.arange(kinds.shape[0], dtype=torch.int32, device=kinds.device)
    bounds, col = ragged(kinds, kinds.numel())
    gains = entry_gains(bounds, col, factor_map(tables, block_m, block_n))
    return WorkLists(bounds, col, None, sets[:, None], block_m, block_n, kinds.shape[1], gains=gains)


def _of_both(blocks: BlockPlan, tables: tuple[FrameTable | DistanceTable | Labels, ...]) -> WorkLists:
    """Full blocks take the kinds of the tables; partial ones look at each pair anyway and stay as they are."""
    placed = tuple(in_place_order(t, blocks.q, blocks.k) for t in tables)
    by_table = table_kinds(placed, blocks.q.block, blocks.k.block)
    full = blocks.kinds() == FULL
    sets, groups = by_table.shape[0], blocks.groups
    kinds = torch.where(full[None], by_table[:, None], EMPTY).flatten(0, 1)
    head_map, partial = blocks.head_map, blocks.partial
    if sets > 1:
        head_map = head_map + groups * torch.arange(sets, dtype=torch.int32, device=head_map.device)[:, None]
        partial = None if partial is None else BlockList(partial.ptr.repeat(sets, 1), partial.col)
    bounds, col = ragged(kinds, min(kinds.numel(), sets * blocks.full.col.shape[0]))
    gains = entry_gains(bounds, col, factor_map(placed, blocks.q.block, blocks.k.block))
    return _cut(WorkLists(bounds, col, partial, head_map, blocks.q.block, blocks.k.block, blocks.q.blocks, gains=gains), blocks)


def _cut(lists: WorkLists, blocks: BlockPlan) -> WorkLists:
    """Cut the rows that are known to be heavy without asking the device: those of free tokens beside a grid.

    They read every block, so the number of parts follows from nK; their size, at least twice the mean length of a row and
    never below :data:`SPLIT_ABOVE`, is worked out on the device from the list set alone. Neither depends on the batch.
    """
    rows, columns = blocks.q.blocks, blocks.k.blocks
    if blocks.q.grid is None or blocks.q.grid_blocks == rows or columns <= SPLIT_ABOVE:
        return lists
    chunk = (2 * lists.lengths().float().mean(-1)).ceil().int().clamp(min=SPLIT_ABOVE)
    splits = -(-columns // SPLIT_ABOVE)
    return WorkLists(
        lists.bounds, lists.col, lists.partial, lists.head_map, lists.block_q, lists.block_k, blocks.q.grid_blocks, splits, chunk, lists.gains
    )  # fmt: skip


def ragged(kinds: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """(bounds int32 [S,nQ,4], col) listing the columns of ``kinds`` uint8 [S,nQ,nK] of each row by kind, EMPTY ones left out.

    capacity: the most entries there can be over all sets; on the CPU exactly as many as there are.
    """
    sets, n_q, n_k = kinds.shape
    ends = torch.stack([(kinds <= kind).sum(-1, dtype=torch.int32) for kind in range(MIXED + 1)], -1)
    last = ends[..., -1].flatten().cumsum(0, dtype=torch.int32).view(sets, n_q)
    start = (last - ends[..., -1])[..., None]
    if kinds.device.type == "cpu":  # nothing to wait for
        capacity = int(last[-1, -1])
    col = torch.zeros(capacity + 1, dtype=torch.int16 if n_k <= SMALL else torch.int32, device=kinds.device)
    rank = torch.arange(n_k, device=kinds.device)
    for s in range(sets):  # one set at a time: the places of all at once would be eight bytes per block
        _, columns = torch.sort(kinds[s], dim=-1, stable=True)
        place = torch.where(rank < ends[s, :, -1:], start[s].long() + rank, capacity)
        col.scatter_(0, place.flatten(), columns.flatten().to(col.dtype))
    return torch.cat([start, start + ends], -1).contiguous(), col[:capacity]


def entry_gains(bounds: Tensor, col: Tensor, factors: Tensor | None) -> Tensor | None:
    """fp32, one per entry of ``col``: ``factors`` [nQ, nK] at its row and column; what lies behind the last row is of no use."""
    if factors is None:
        return None
    ends, rows = bounds[..., -1].flatten().contiguous(), bounds.shape[1]
    at = torch.arange(col.shape[0], dtype=torch.int32, device=col.device)
    row = torch.searchsorted(ends, at, right=True).remainder_(rows)
    return factors[row, col.long()]


def in_place_order(part: FrameTable | DistanceTable | Labels, q: TokenOrder, k: TokenOrder) -> FrameTable | DistanceTable | Labels:
    """The same part with its per-token vectors in place order, see :func:`readable`."""

    def make() -> FrameTable | DistanceTable | Labels:
        rows, keys = readable(q), readable(k)
        if isinstance(part, FrameTable):
            return FrameTable(part.ids_q[rows], part.ids_k[keys], part.classes, part.factors)
        if isinstance(part, DistanceTable):
            return DistanceTable(part.pos_q[rows], part.pos_k[keys], part.classes, part.factors)
        return Labels(part.label_k[:, keys], part.allow_q[:, rows], part.count)

    return with_parts((part, q, k), "placed", make)
