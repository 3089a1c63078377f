"""Making and combining block plans, on the device and without waiting for it.

A selector works on maps over blocks, [G, nQ, nK] booleans or scores; the functions here turn them into lists. Where the
number of entries is known only to the device, the lists are allocated for the most that can occur.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .bits import carried_ids
from .blocks import AREA, EMPTY, FULL, PARTIAL, SMALL, Bits, BlockList, BlockPlan, ElementMask, Tail, TokenOrder, entry_places
from .caching import with_part
from .selection import Setting, global_mask, sigma_mask, topk_mask, topp_mask


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
    The ids of a :class:`Bits` test go with the true entries of ``partial``, row by row; a block in both is read whole.
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
    whole = mask | rescue(some, q, k)
    part = None
    if partial is not None:
        partial = partial.reshape(mask.shape)
        part = block_list(partial & ~whole, capacity)
        if isinstance(test, Bits):
            test = replace(test, ids=carried_ids(test, block_list(partial, capacity), entry_places(part, k.blocks), k.blocks))
    full = block_list(whole, capacity)
    _note_area(full, whole, q, k)
    if part is not None and partial is not None:
        _note_area(part, partial & ~whole, q, k)
    return BlockPlan(q, k, full, head_map, part, test, tail, approximate)


def _note_area(listed: BlockList, mask: Tensor, q: TokenOrder, k: TokenOrder) -> None:
    """Keep the live pairs of a list's blocks with it, per group: counted from the map at hand it takes no index tensors.

    One group at a time, as in :func:`block_list`.
    """
    rows, columns = q.valid.float(), k.valid.float()
    with_part(listed, AREA, lambda: torch.stack([(one.float() @ columns) @ rows for one in mask]))


def from_topk(scores: Tensor, count: Setting, q: TokenOrder, k: TokenOrder, *, forced: Tensor | None = None, **options: Any) -> BlockPlan:
    """Reads the ``count`` best blocks of each row (:func:`topk_mask`), and those of ``forced`` bool, of a shape that broadcasts.

    scores [nQ, nK], [G, nQ, nK] or [B, H, nQ, nK]; ``options`` as for :func:`from_bool`, here and below.
    """
    if forced is None and not isinstance(count, Tensor):
        options.setdefault("capacity", _most_entries(scores, count))
    return from_bool(_with(topk_mask(scores, count), forced), q, k, **options)


def from_topp(scores: Tensor, p: Setting, q: TokenOrder, k: TokenOrder, *, min_k: int = 1, forced: Tensor | None = None, **options: Any) -> BlockPlan:
    """Reads the fewest blocks of each row whose probabilities sum to ``p`` (:func:`topp_mask`)."""
    return from_bool(_with(topp_mask(scores, p, min_k), forced), q, k, **options)


def from_global(scores: Tensor, share: Setting, q: TokenOrder, k: TokenOrder, *, forced: Tensor | None = None, **options: Any) -> BlockPlan:
    """Drops the ``share`` of lowest scores of each map by one threshold (:func:`global_mask`)."""
    return from_bool(_with(global_mask(scores, share), forced), q, k, **options)


def from_sigma(scores: Tensor, tau: Setting, q: TokenOrder, k: TokenOrder, *, forced: Tensor | None = None, **options: Any) -> BlockPlan:
    """Reads the blocks that stand out of their row by ``tau`` standard deviations (:func:`sigma_mask`)."""
    return from_bool(_with(sigma_mask(scores, tau), forced), q, k, **options)


def _with(mask: Tensor, forced: Tensor | None) -> Tensor:
    return mask if forced is None else mask | forced


def _most_entries(scores: Tensor, count: float | Sequence[float]) -> int:
    """The most list entries that ``count`` blocks a row make, with one for each row that a count of 0 leaves empty."""
    n_q, n_k = scores.shape[-2:]
    maps = scores.numel() // (n_q * n_k)
    counts = list(count) if isinstance(count, Sequence) else [count]
    return n_q * sum(min(max(int(c), 1), n_k) for c in counts) * (maps // len(counts))


def rescue(some: Tensor, q: TokenOrder, k: TokenOrder) -> Tensor:
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
    if nothing_to_wait_for(mask):  # exactly as many as there are
        capacity = int(ends[-1])
    dtype = torch.int16 if n_k <= SMALL else torch.int32
    col = torch.zeros(capacity + 1, dtype=dtype, device=mask.device)
    columns = torch.arange(n_k, dtype=dtype, device=mask.device).expand(n_q, n_k)
    for g in range(groups):  # one group at a time: the places of all groups at once would be eight bytes per block
        place = ptr[g, :-1, None].long() + mask[g].cumsum(-1) - 1
        col.scatter_(0, torch.where(mask[g], place, capacity).clamp_(max=capacity).flatten(), columns.flatten())
    return BlockList(ptr, col[:capacity])


def nothing_to_wait_for(x: Tensor) -> bool:
    """Whether the values of ``x`` are at hand."""
    return x.device.type == "cpu"


def kinds_plan(kinds: Tensor, like: BlockPlan, **changes: Any) -> BlockPlan:
    """A plan like ``like`` with the block kinds ``kinds`` uint8 [G, nQ, nK] in place of its own.

    Where the test is :class:`Bits`, blocks that are partial must have been so in ``like``: they keep their masks.
    ``changes`` replace fields, ``head_map`` where G changes.
    """
    full, partial, mask = block_list(kinds == FULL), None, changes.get("mask", like.mask)
    if mask is not None and like.partial is not None:
        partial = block_list(kinds == PARTIAL)
        if isinstance(mask, Bits) and "mask" not in changes:
            changes["mask"] = replace(mask, ids=carried_ids(mask, like.partial, entry_places(partial, like.k.blocks), like.k.blocks))
    return replace(like, full=full, **{"partial": partial, **changes})


__all__ = ["EMPTY", "block_list", "from_bool", "from_global", "from_sigma", "from_topk", "from_topp", "kinds_plan", "rescue"]
