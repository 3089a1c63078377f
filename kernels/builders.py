"""Making and combining block plans, on the device and without waiting for it.

A selector works on maps over blocks, [G, nQ, nK] booleans or scores; the functions here turn them into lists. Where the
number of entries is known only to the device, the lists are allocated for the most that can occur.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .blocks import EMPTY, FULL, PARTIAL, SMALL, BlockList, BlockPlan, ElementMask, Tail, TokenOrder


def from_bool(
    mask: Tensor,
    q: TokenOrder,
    k: TokenOrder,
    *,
    partial: Tensor | None = None,
    test: ElementMask | None = None,
    head_map: Tensor | None = None,
    tail: Tail = "off",
    approximate: bool = True,
    capacity: int | None = None,
) -> BlockPlan:
    """The plan that reads the blocks where ``mask`` is true.

    mask bool [nQ, nK], [G, nQ, nK] or [B, H, nQ, nK] (then G = B*H); partial: same shape, blocks read through ``test``.
    head_map int32 [B|1, H|1]: group of each head, by default all heads share group 0, or each has its own for [B, H, ..].
    Rows without a block get their diagonal block, or column 0 where the sides differ (I3). capacity: the most list entries
    over all groups, if the caller knows a bound; by default every block could be listed.
    """
    if head_map is None:
        b, h = (mask.shape[0], mask.shape[1]) if mask.ndim == 4 else (1, 1)
        groups = b * h if mask.ndim == 4 else 1
        if mask.ndim == 3 and mask.shape[0] > 1:
            b, h, groups = 1, mask.shape[0], mask.shape[0]
        head_map = torch.arange(groups, dtype=torch.int32, device=mask.device).view(b, h)
    mask = mask.reshape(-1, *mask.shape[-2:])
    if mask.shape[1:] != (q.blocks, k.blocks):
        raise ValueError(f"the block mask has shape {list(mask.shape)}; expected [G, {q.blocks}, {k.blocks}] for these token orders")
    if (partial is None) != (test is None):
        raise ValueError("partial blocks and their element test go together")
    some = mask if partial is None else mask | partial.reshape(mask.shape)
    whole = mask | _rescue(some, q, k)
    part = None if partial is None else block_list(partial.reshape(mask.shape) & ~whole, capacity)
    return BlockPlan(q, k, block_list(whole, capacity), head_map, part, test, tail, approximate)


def _rescue(some: Tensor, q: TokenOrder, k: TokenOrder) -> Tensor:
    """Blocks to add so that no row is empty."""
    n_q, n_k = some.shape[-2:]
    column = torch.arange(n_q, device=some.device) if n_q == n_k else torch.zeros(n_q, dtype=torch.long, device=some.device)
    added = torch.zeros(n_q, n_k, dtype=torch.bool, device=some.device).scatter_(1, column[:, None], True)
    return added & ~some.any(-1, keepdim=True)


def block_list(mask: Tensor, capacity: int | None = None) -> BlockList:
    """Ragged rows of the true columns of ``mask`` bool [G, nQ, nK]."""
    groups, n_q, n_k = mask.shape
    capacity = mask.numel() if capacity is None else min(capacity, mask.numel())
    counts = mask.sum(-1, dtype=torch.int32)
    ends = counts.flatten().cumsum(0, dtype=torch.int32)
    ptr = torch.empty(groups, n_q + 1, dtype=torch.int32, device=mask.device)
    ptr[:, 1:] = ends.view(groups, n_q)
    ptr[:, 0] = ptr[:, 1] - counts[:, 0]
    if mask.device.type == "cpu":  # nothing to wait for: exactly as many as there are
        capacity = int(ends[-1])
    dtype = torch.int16 if n_k <= SMALL else torch.int32
    col = torch.zeros(capacity + 1, dtype=dtype, device=mask.device)
    columns = torch.arange(n_k, dtype=dtype, device=mask.device).expand(n_q, n_k)
    for g in range(groups):  # one group at a time: the places of all groups at once would be eight bytes per block
        place = ptr[g, :-1, None].long() + mask[g].cumsum(-1) - 1
        col.scatter_(0, torch.where(mask[g], place, capacity).clamp_(max=capacity).flatten(), columns.flatten())
    return BlockList(ptr, col[:capacity])


def kinds_plan(kinds: Tensor, like: BlockPlan, **changes: object) -> BlockPlan:
    """A plan like ``like`` with the block kinds ``kinds`` uint8 [G, nQ, nK]; ids of ``Bits`` are not carried."""
    some = like.partial is not None
    return replace(like, full=block_list(kinds == FULL), partial=block_list(kinds == PARTIAL) if some else None, **changes)  # type: ignore[arg-type]


__all__ = ["EMPTY", "block_list", "from_bool", "kinds_plan"]
