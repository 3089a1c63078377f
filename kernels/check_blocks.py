"""The invariants of a block plan (:mod:`kernels.blocks`), checked value by value: for debug mode and tests.

Everything is copied to the host and waited for. A ValueError names the invariant and the place of its first breach.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import Bits, BlockList, BlockPlan, TokenOrder


def check_blocks(plan: BlockPlan) -> None:
    """Raise ValueError where ``plan`` breaks I1 to I4 or I7, or where its parts do not fit each other.

    I3, no row without a key, is asked of plans that stand in for dense attention; a complement may have empty rows. A row
    is a row of blocks: what the element test leaves of a partial block is not looked at.
    """
    for name, order in (("q", plan.q), ("k", plan.k)):
        _order(name, order)
    _parts(plan)
    lists = {"full": plan.full} | ({} if plan.partial is None else {"partial": plan.partial})
    entries = [_entries(name, rows, plan) for name, rows in lists.items()]
    row, column = (torch.cat(x) for x in zip(*entries, strict=True))
    _overlap(row * plan.k.blocks + column, plan)
    if plan.approximate:
        _no_empty_row(row, column, plan)
    _density(row, column, plan)


def _fail(invariant: str, what: str) -> None:
    raise ValueError(f"the block plan breaks {invariant}: {what}")


def _order(name: str, order: TokenOrder) -> None:
    perm, inverse, valid, pos = (x.long().cpu() for x in (order.perm, order.inverse, order.valid, order.pos))
    if perm.shape[0] % order.block or inverse.shape[0] != order.tokens or pos.shape != perm.shape or valid.shape[0] * order.block != perm.shape[0]:
        _fail("I4", f"the arrays of {name} do not have the sizes of {order.tokens} tokens in blocks of {order.block}")
    live = perm >= 0
    wrong = (live.view(-1, order.block) != (torch.arange(order.block) < valid[:, None])).any(1)
    if wrong.any():
        _fail("I4", f"the live places of block {_first(wrong)} of {name} are not the first {int(valid[_first(wrong)])}")
    if not torch.equal(perm[live].sort().values, torch.arange(order.tokens)):
        _fail("I4", f"the live places of {name} do not hold each of the {order.tokens} tokens once")
    away = inverse[perm.clamp(min=0)] != torch.arange(perm.shape[0])
    if (away & live).any():
        _fail("I4", f"inverse[perm[i]] of {name} is not i at place {_first(away & live)}")
    if (pos[~live] != -1).any():
        _fail("I4", f"a dead place of {name} has a position in the grid")


def _parts(plan: BlockPlan) -> None:
    groups = plan.head_map.long().cpu()
    if groups.ndim != 2 or ((groups < 0) | (groups >= plan.groups)).any():
        raise ValueError(f"the head map of the block plan names groups outside 0 to {plan.groups - 1}, or is not [B, H]")
    if (plan.partial is None) != (plan.mask is None):
        raise ValueError("partial blocks and their element test go together")
    if isinstance(plan.mask, Bits):
        assert plan.partial is not None
        used = plan.mask.ids[: int(plan.partial.ptr[-1, -1])].long().cpu()
        if used.shape[0] < int(plan.partial.ptr[-1, -1]) or ((used < 0) | (used >= plan.mask.words.shape[0])).any():
            raise ValueError(f"the bits of the block plan name masks outside 0 to {plan.mask.words.shape[0] - 1}")
        if plan.mask.words.shape[1:] != (plan.q.block, plan.k.block // 32):
            raise ValueError(f"the bit masks have shape {list(plan.mask.words.shape)}; expected [masks, {plan.q.block}, {plan.k.block // 32}]")


def _entries(name: str, rows: BlockList, plan: BlockPlan) -> tuple[Tensor, Tensor]:
    """(row among all groups, column) of each list entry, after I1 and I2."""
    groups, n_q, n_k = plan.shape
    ptr, col = rows.ptr.long().cpu(), rows.col.long().cpu()
    if ptr.shape != (groups, n_q + 1):
        _fail("I2", f"ptr of the {name} list has shape {list(ptr.shape)}; expected {[groups, n_q + 1]}")
    begins = torch.cat([torch.zeros(1, dtype=torch.long), ptr[:-1, -1]])
    if (ptr[:, 0] != begins).any():
        _fail("I2", f"ptr of group {_first(ptr[:, 0] != begins)} of the {name} list does not go on where the last group ends")
    falls = ptr.diff(dim=1) < 0
    if falls.any():
        _fail("I2", f"ptr falls in the {name} list, {_where(falls.flatten(), n_q)}")
    if ptr[-1, -1] > col.shape[0]:
        _fail("I2", f"the {name} list has {int(ptr[-1, -1])} entries and room for {col.shape[0]}")
    row = torch.repeat_interleave(torch.arange(groups * n_q), ptr.diff(dim=1).flatten())
    col = col[: row.shape[0]]
    outside = (col < 0) | (col >= n_k)
    if outside.any():
        _fail("I1", f"a column of the {name} list is outside 0 to {n_k - 1}, {_where_row(row[outside], n_q)}")
    unsorted = (row[1:] == row[:-1]) & (col[1:] <= col[:-1])
    if unsorted.any():
        _fail("I1", f"the columns of the {name} list do not rise, {_where_row(row[1:][unsorted], n_q)}")
    return row, col


def _overlap(places: Tensor, plan: BlockPlan) -> None:
    ordered = places.sort().values
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if twice.numel():
        _fail("I1", f"block {int(twice[0]) % plan.k.blocks} is in both lists, {_where_row(twice // plan.k.blocks, plan.q.blocks)}")


def _no_empty_row(row: Tensor, column: Tensor, plan: BlockPlan) -> None:
    groups, n_q, _ = plan.shape
    keys = torch.zeros(groups * n_q, dtype=torch.long).index_add_(0, row, plan.k.valid.long().cpu()[column])
    empty = (keys == 0) & (plan.q.valid.cpu() > 0).repeat(groups)
    if empty.any():
        _fail("I3", f"no key is read, {_where(empty, n_q)}")


def _density(row: Tensor, column: Tensor, plan: BlockPlan) -> None:
    groups, n_q, _ = plan.shape
    area = plan.q.valid.double().cpu()[row % n_q] * plan.k.valid.double().cpu()[column]
    per_group = torch.zeros(groups, dtype=torch.float64).index_add_(0, row // n_q, area) / (plan.q.tokens * plan.k.tokens)
    counted, reported = float(per_group[plan.head_map.long().cpu()].mean()), float(plan.density())
    if abs(counted - reported) > 1e-5:
        _fail("I7", f"the density reported is {reported:.6f}, the lists make {counted:.6f}")


def _first(hit: Tensor) -> int:
    return int(hit.flatten().nonzero()[0])


def _where(hit: Tensor, n_q: int) -> str:
    return _where_row(hit.nonzero()[0], n_q)


def _where_row(rows: Tensor, n_q: int) -> str:
    return f"group {int(rows[0]) // n_q}, row {int(rows[0]) % n_q}"
