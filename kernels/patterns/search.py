"""The search behind AdaSpa and SparseD: which blocks the model's own attention falls on, found once and reused for many steps.

A dense call gives the log-sum-exp; one more pass over q and k gives the block mass; a selector turns it into a mask per head,
which is kept as bits. Heads are searched a few at a time, so the map of masses (fp32, 332 MB for 24 heads of a HunyuanVideo
720p call at block 64) never exists as a whole.

The search reads the logits with their key bias. Other parts of a call act later: labels take from the mass what no pair of a
block may read, modulation is not seen (the blocks are those of the unmodulated attention). Source: ``specs``: AdaSpa (c), (e).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bits import pack, unpack
from ..blocks import EMPTY, BlockPlan, Tail, TokenOrder
from ..builders import from_bool
from ..mass import block_mass
from ..order import by_frame, raster
from ..plan import Labels
from .base import Situation, Tokens

BYTES = 64 * 2**20
"""Map of masses held at once."""
MOST_PADDING = 1.125
"""Frames are padded to whole blocks unless that makes the sequence longer than by this factor."""


def token_order(tokens: Tokens, block: int, device: str) -> TokenOrder:
    """The order that is searched: frames of whole blocks, free tokens in blocks of their own behind them.

    Frames much smaller than their blocks are laid end to end instead; without a grid tokens stay as they are.
    """
    if tokens.grid is None:
        return raster(tokens.count, block, device)
    t, y, x = tokens.grid
    aligned = t * -(-y * x // block) * block <= MOST_PADDING * tokens.inside
    return by_frame(tokens.count, block, tokens.grid if aligned else (1, t * y, x), tokens.start, device)


def chosen_from(order: TokenOrder) -> int:
    """How many blocks a selector chooses from: the grid's, or all where there is no grid. They come first in the order."""
    return order.blocks if order.grid is None else order.grid_blocks


@dataclass(frozen=True, eq=False)
class Mask:
    """A block mask kept as bits, an eighth of a map of bytes. words: see :func:`kernels.bits.pack`, [B, H, nQ, ..] or [G, nQ, ..].

    head_map: group of each head, for words by group. capacity: the most blocks the mask can hold, known without the device.
    """

    words: Tensor
    q: TokenOrder
    k: TokenOrder
    capacity: int
    head_map: Tensor | None = None

    @staticmethod
    def of(plan: BlockPlan) -> Mask:
        """The blocks of a plan that has no partial ones."""
        if plan.partial is not None:
            raise ValueError("a plan with partial blocks cannot be kept as one bit per block")
        return Mask(pack(plan.kinds() != EMPTY), plan.q, plan.k, plan.full.col.shape[0], plan.head_map)

    def bools(self) -> Tensor:
        """bool [.., nQ, nK]."""
        return unpack(self.words, self.k.blocks)

    def plan(self, tail: Tail = "off") -> BlockPlan:
        """Lists made anew from the bits."""
        return from_bool(self.bools(), self.q, self.k, head_map=self.head_map, tail=tail, capacity=self.capacity)


@dataclass(frozen=True, eq=False)
class Heads:
    """Query heads first <= h < last of a call, with what their search needs. lse fp32|fp16 [b, H, N] of the whole call, or None."""

    s: Situation
    order: TokenOrder
    lse: Tensor | None
    first: int
    last: int

    def mass(self, keys: tuple[int, int] | None = None) -> Tensor:
        """fp32 [b, h, nQ, nK] for these heads; keys: see :func:`kernels.mass.block_mass`."""
        s, here = self.s, slice(self.first, self.last)
        group = s.q.shape[1] // s.k.shape[1]
        shared = slice(self.first // group, (self.last - 1) // group + 1)
        bias = s.plan.key_bias
        bias = bias if bias is None or bias.shape[1] == 1 else bias[:, here]
        lse = None if self.lse is None else self.lse[:, here].float()
        w = block_mass(s.q[:, here], s.k[:, shared], lse, self.order, self.order, scale=s.scale, key_bias=bias, keys=keys)
        return w if s.plan.labels is None else w * readable(s.plan.labels, self.order)


Choose = Callable[[Heads], tuple[Tensor, ...]]
"""What a selector makes of a few heads: tensors [b, h, ..]."""


@torch.no_grad()
def search(s: Situation, order: TokenOrder, lse: Tensor | None, choose: Choose) -> tuple[Tensor, ...]:
    """``choose`` for all heads, a few at a time; its results joined along the heads.

    lse: log-sum-exp of this call or, from an earlier step, near it; None, or a call whose logits the mass does not know
    (modulation, labels): computed on the way, for one more pass over q and k.
    """
    if s.plan.modulation is not None or s.plan.labels is not None:
        lse = None
    at_once = max(1, BYTES // (4 * s.q.shape[0] * order.blocks * order.blocks))
    parts = [choose(Heads(s, order, lse, a, b)) for a, b in head_ranges(s.q.shape[1], s.k.shape[1], at_once)]
    return tuple(torch.cat(part, dim=1) for part in zip(*parts, strict=True))


def head_ranges(heads: int, key_heads: int, at_once: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most ``at_once`` query heads, each within one group that shares a key head or made of whole groups."""
    group = heads // key_heads
    if at_once >= group:
        step = at_once // group * group
        yield from ((a, min(heads, a + step)) for a in range(0, heads, step))
        return
    for g in range(0, heads, group):
        yield from ((a, min(g + group, a + at_once)) for a in range(g, g + group, at_once))


def row_shares(w: Tensor) -> Tensor:
    """Each row of masses scaled to sum 1: a log-sum-exp of an earlier step leaves other sums. Rows of nothing stay 0.

    Stands overflow: a query whose logits rose by far more than the log-sum-exp knows has infinite mass.
    """
    w = w.nan_to_num(nan=0.0)
    w = w / w.amax(-1, keepdim=True).clamp_min(1e-30)
    return w / w.sum(-1, keepdim=True).clamp_min(1e-30)


def recall(shares: Tensor, mask: Tensor) -> Tensor:
    """fp32 [b, h]: share of the attention that falls on the kept blocks, mean over rows. Both [b, h, rows, nK]."""
    return (shares * mask).sum(-1).mean(-1)


def readable(labels: Labels, order: TokenOrder) -> Tensor:
    """fp32 0/1 [B|1, 1, nQ, nK]: some pair of the block may be read under ``labels``."""
    bits = torch.arange(labels.count, device=labels.allow_q.device)
    allowed = ((labels.allow_q[..., None] >> bits) & 1).bool()
    present = labels.label_k.long()[..., None] == bits
    some_q, some_k = _per_block(allowed, order), _per_block(present, order)
    return ((some_q @ some_k.transpose(-1, -2)) > 0).float()[:, None]


def _per_block(x: Tensor, order: TokenOrder) -> Tensor:
    """fp32 0/1 [B|1, blocks, count]: which of ``x`` bool [B|1, N, count] occur among the live tokens of each block."""
    placed = x.index_select(1, order.perm.clamp(min=0).long()) & (order.perm >= 0)[:, None]
    return placed.unflatten(1, (order.blocks, order.block)).any(2).float()


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """fp32 scalar on the device: Jaccard index of two block masks, mean over everything but the last two axes."""
    both, either = (a & b).sum((-1, -2)), (a | b).sum((-1, -2))
    return (both / either.clamp(min=1)).mean()
