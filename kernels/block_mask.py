"""What a block plan admits, pair by pair: for the backends and probes that look at chosen rows and keys in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import FULL, PARTIAL, Band, Bits, BlockPlan, ElementMask, Frames, Window


def admitted(plan: BlockPlan, group: Tensor | int, rows: Tensor, keys: Tensor) -> Tensor:
    """bool [n, m]: may token ``rows[i]`` (int64 [n]) read token ``keys[j]`` (int64 [m]) under list set ``group``."""
    place_q, place_k = plan.q.inverse[rows].long(), plan.k.inverse[keys].long()
    a, b = place_q // plan.q.block, place_k // plan.k.block
    kinds = plan.kinds()
    kinds = kinds[group] if isinstance(group, int) else kinds.index_select(0, group.long().view(1))[0]
    kind = kinds.index_select(0, a).index_select(1, b)
    if plan.mask is None:
        return kind == FULL
    if isinstance(plan.mask, Bits):
        inner = _bits(plan, plan.mask, group, place_q, place_k)
    else:
        inner = analytic(plan.mask, plan.q.pos[place_q], plan.k.pos[place_k], plan.q.grid or (1, 1, 1))
    return (kind == FULL) | ((kind == PARTIAL) & inner)


def analytic(mask: ElementMask, pos_q: Tensor, pos_k: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """bool [.., n, m] of a test on grid positions [.., n] and [.., m], -1 = free token, admitted with everything."""
    i, j = pos_q.long()[..., :, None], pos_k.long()[..., None, :]
    _, rows, cols = grid
    frame_i, frame_j, in_i, in_j = i // (rows * cols), j // (rows * cols), i % (rows * cols), j % (rows * cols)
    if isinstance(mask, Window):
        dy, dx, dt = in_i // cols - in_j // cols, in_i % cols - in_j % cols, (frame_i - frame_j).float() * mask.frame_scale
        hit = (dy * dy + dx * dx).float() + dt * dt < mask.radius * mask.radius
    elif isinstance(mask, Band):
        hit = (in_i - in_j).abs() <= mask.half_width
    elif isinstance(mask, Frames):
        hit = (frame_j - frame_i >= mask.lo) & (frame_j - frame_i <= mask.hi)
    else:
        raise TypeError(f"{type(mask).__name__} is not a test on positions")
    if mask.inverted:
        return ~hit & (i >= 0) & (j >= 0)
    return hit | (i < 0) | (j < 0)


def _bits(plan: BlockPlan, mask: Bits, group: Tensor | int, place_q: Tensor, place_k: Tensor) -> Tensor:
    """Looks up each pair's bit; which mask a block uses comes from a map of the group's partial entries."""
    assert plan.partial is not None
    g = group if isinstance(group, Tensor) else torch.tensor(group, device=place_q.device)
    ptr = plan.partial.ptr.index_select(0, g.long().view(1))[0].long()
    at = torch.arange(plan.partial.col.shape[0], device=place_q.device)
    row = torch.searchsorted(ptr[1:].contiguous(), at, right=True)
    inside = (at >= ptr[0]) & (at < ptr[-1])
    n_q, n_k = plan.q.blocks, plan.k.blocks
    ids = torch.zeros(n_q * n_k + 1, dtype=torch.long, device=place_q.device)
    ids.scatter_(0, torch.where(inside, row * n_k + plan.partial.col.long(), n_q * n_k), mask.ids.long())
    which = ids[:-1].view(n_q, n_k).index_select(0, place_q // plan.q.block).index_select(1, place_k // plan.k.block)
    r, c = place_q % plan.q.block, place_k % plan.k.block
    words = mask.words[which, r[:, None], c[None, :] // 32]
    hit = ((words >> (c % 32)[None, :].to(words.dtype)) & 1) != 0
    return ~hit if mask.inverted else hit
