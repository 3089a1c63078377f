"""Which blocks of the (query, key) plane are computed: a plan's mask in the field's usual form.

Tokens of each side are put in an order and cut into blocks (:class:`TokenOrder`); per row of query blocks two ragged lists
name the key blocks that are read whole (``full``) and those where single pairs are tested (``partial``). All of it lives on
the device and is immutable. Nothing here has Nq x Nk elements, and no index table is dense.

Invariants, checked by :func:`kernels.check_blocks.check_blocks` in debug mode and by property tests:

I1  columns are in range, strictly ascending per row, and in one of the two lists only
I2  ``ptr`` starts at 0, never falls, and its last entry is the number of list entries
I3  every row that has a live query has a live key
I4  ``perm`` is a bijection between live places and tokens; ``inverse[perm[i]] = i``
I5  the token mask the lists imply is the method's own, where the method defines one per token
I6  ordering the tokens of a dense plan changes nothing but rounding
I7  the density reported is the one counted from the lists
I8  plans are shared between streams and never written to

Letters: nQ/nK blocks per side, Bq/Bk tokens per block, G list sets ("groups") shared by heads through ``head_map``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .caching import kept_with, with_part

EMPTY, PARTIAL, FULL = 0, 1, 2
"""Kinds of block in :meth:`BlockPlan.kinds`."""

AREA = "area"
"""Under this key a builder keeps the live pairs of a list's blocks, fp32 [G], with the list."""
SMALL = 32767
"""Columns are stored in int16 up to here, in int32 beyond."""


@dataclass(frozen=True, eq=False)
class TokenOrder:
    """The order and blocking of one side's tokens. A place is a slot in the padded order; dead places hold no token.

    tokens: N. block: tokens per block. perm int32 [blocks*block]: token at each place, -1 = dead; live places come first in
    their block. inverse int32 [N]: place of each token. valid int32 [blocks]: live places. frame int16 [blocks]: the one
    frame of the block, -1 for free tokens or where blocks straddle frames. pos int32 [blocks*block]: flat position
    ``(t*Y + y)*X + x`` in the grid, -1 for free tokens and dead places. grid (T, Y, X) or None. grid_blocks: the first so
    many blocks hold grid tokens only, the others free tokens (text, references) only. identity: place i holds token i.
    """

    tokens: int
    block: int
    perm: Tensor
    inverse: Tensor
    valid: Tensor
    frame: Tensor
    pos: Tensor
    grid: tuple[int, int, int] | None = None
    grid_blocks: int = 0
    identity: bool = False

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.perm.shape[0] // self.block

    @property
    def padded(self) -> int:
        """Number of places."""
        return self.perm.shape[0]


@dataclass(frozen=True, eq=False)
class BlockList:
    """Ragged rows of block columns. ptr int32 [G, nQ+1]: offsets into ``col``, running on from group to group.

    col int16|int32 [capacity], ascending in each row; entries from ``ptr[-1, -1]`` on are not part of the list (builders that
    may not wait for the device allocate the most that can occur).
    """

    ptr: Tensor
    col: Tensor


@dataclass(frozen=True)
class Window:
    """Admit a pair when ``dy^2 + dx^2 + (frame_scale * dt)^2 < radius^2`` (strict), in tokens of the grid.

    Free tokens are admitted with everything. inverted: admit the pairs this would drop (for complements).
    """

    radius: float
    frame_scale: float = 0.0
    inverted: bool = False


@dataclass(frozen=True)
class Band:
    """Admit a pair when its positions inside their frames differ by at most ``half_width``, whatever the frames."""

    half_width: int
    inverted: bool = False


@dataclass(frozen=True)
class Frames:
    """Admit a pair when ``lo <= frame of key - frame of query <= hi``."""

    lo: int
    hi: int
    inverted: bool = False


@dataclass(frozen=True, eq=False)
class Bits:
    """Admit by packed bits: words int32 [masks, Bq, Bk/32], bit c of word w = key 32 w + c of the block.

    ids int32 [capacity of the partial list]: which mask each entry uses; equal masks are stored once.
    """

    words: Tensor
    ids: Tensor
    inverted: bool = False


ElementMask = Window | Band | Frames | Bits
Tail = Literal["off", "row", "centroid"]


@dataclass(frozen=True, eq=False)
class BlockPlan:
    """What is read: orders of both sides, the two lists, the test for partial blocks, and what becomes of the rest.

    head_map int32 [B|1, H|1] with values in [0, G). tail: "off" drops unselected blocks; "row" and "centroid" let each enter
    the softmax as one pseudo-key, the mean of its live keys with bias log(n), read by each query, or by the mean query
    of the block for all its rows. approximate: the plan stands in for dense attention (a sparse pattern), so dense is a
    right, if slow, way to run it; False where the mask is the meaning.
    """

    q: TokenOrder
    k: TokenOrder
    full: BlockList
    head_map: Tensor
    partial: BlockList | None = None
    mask: ElementMask | None = None
    tail: Tail = "off"
    approximate: bool = True

    @property
    def groups(self) -> int:
        """Number of list sets."""
        return self.full.ptr.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(G, nQ, nK)."""
        return self.groups, self.q.blocks, self.k.blocks

    def kinds(self) -> Tensor:
        """uint8 [G, nQ, nK] of EMPTY, PARTIAL and FULL, kept with the plan."""
        return with_part(self, "kinds", self._kinds)

    def _kinds(self) -> Tensor:
        out = torch.zeros(self.shape, dtype=torch.uint8, device=self.full.ptr.device)
        _mark(out, self.full, FULL)
        if self.partial is not None:
            _mark(out, self.partial, PARTIAL)
        return out

    def density(self) -> Tensor:
        """fp32 scalar on the device: computed block area over Nq * Nk, mean over heads and batch. Live places count."""
        lists = [x for x in (self.full, self.partial) if x is not None]
        known = [kept_with(x, AREA) for x in lists]
        per_group = sum(known) if all(x is not None for x in known) else self._area()  # type: ignore[arg-type]
        return per_group[self.head_map.long()].mean() / (self.q.tokens * self.k.tokens)  # type: ignore[index]

    def _area(self) -> Tensor:
        area = self.q.valid[:, None].float() * self.k.valid[None, :].float()
        return (self.kinds() != EMPTY).float().mul(area).sum((-1, -2))

    def without_tail(self) -> BlockPlan:
        """The same lists, dropping what is not read."""
        return self if self.tail == "off" else replace(self, tail="off")

    def head_range(self, h0: int, h1: int) -> BlockPlan:
        """The same lists for query heads h0 <= h < h1."""
        return self if self.head_map.shape[1] == 1 else replace(self, head_map=self.head_map[:, h0:h1])


def entry_places(rows: BlockList, n_k: int) -> Tensor:
    """int64 [capacity], ascending: where each entry stands in the flattened [G, nQ, nK]; G*nQ*nK for those past the end."""
    ends = rows.ptr[:, 1:].flatten().long()
    at = torch.arange(rows.col.shape[0], device=rows.col.device)
    row = torch.searchsorted(ends, at, right=True)
    return torch.where(row < ends.shape[0], row * n_k + rows.col.long(), ends.shape[0] * n_k)


def _mark(out: Tensor, rows: BlockList, kind: int) -> None:
    """Write ``kind`` at every listed place, without waiting for the device: entries past the end go to a spare slot."""
    flat = entry_places(rows, out.shape[-1])
    spare = torch.cat([out.flatten(), out.new_zeros(1)])
    spare.scatter_(0, flat, torch.full_like(flat, kind, dtype=out.dtype))
    out.copy_(spare[:-1].view_as(out))
