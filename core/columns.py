"""How much attention the picture pays to chosen text tokens: a few columns of the map, never the map.

The columns of ``P = softmax(scale q k^T + bias)`` that belong to a group of keys, summed, are the output of the same attention with
values that are 1 at those keys and 0 elsewhere. So one ordinary attention gives as many groups as a head is wide, in memory
O(tokens * width), with exact gradients with respect to q and k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import Block
from .errors import LoomError

if TYPE_CHECKING:
    from .call import AttentionCall, Seen, Span
    from .families.base import Family
    from .weave import Draft


def columns(q: Tensor, k: Tensor, groups: Tensor, *, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Attention mass of every query on every group of keys, mean over heads: [B, G, Nq], fp32 (fp64 for fp64 inputs).

    q [B, H, Nq, D], k [B, Hk, Nk, D] with Hk dividing H; groups [G, Nk]: 1 where a key belongs to a group, else 0; bias:
    [B|1, H|1, Nk] added to the logits; scale: default D^-0.5. Differentiable in q, k and bias. No Nq x Nk tensor is made where
    the device has a fused attention.
    """
    return torch.cat([part.mean(1) for part in _parts(q, k, groups, bias, scale)], 1)


def head_columns(q: Tensor, k: Tensor, groups: Tensor, *, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """As :func:`columns`, head by head: [B, H, G, Nq]."""
    return torch.cat(list(_parts(q, k, groups, bias, scale)), 2)


def _parts(q: Tensor, k: Tensor, groups: Tensor, bias: Tensor | None, scale: float | None) -> Iterator[Tensor]:
    """[B, H, g, Nq]: as many groups at a time as a head is wide."""
    work = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch, heads, _, width = q.shape
    q, k = q.to(work), k.to(work)
    if k.shape[1] != heads:
        k = k.repeat_interleave(heads // k.shape[1], 1)
    mask = None if bias is None else bias.to(work)[:, :, None]
    for part in groups.to(work).split(width):
        v = F.pad(part.T, (0, width - len(part))).expand(batch, heads, -1, -1)
        with torch.autocast(q.device.type, enabled=False):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        yield out[..., : len(part)].mT


@dataclass(frozen=True)
class Columns:
    """What to read of a model call.

    blocks: in which blocks; groups: positions of the tokens of each group in the positive prompt's own context.
    """

    blocks: frozenset[Block]
    groups: tuple[tuple[int, ...], ...]

    @property
    def last(self) -> Block:
        """The block after which nothing is left to read."""
        return max(self.blocks, key=lambda block: block.ordinal)


def middle(blocks: list[Block], kind: str, first: int, last: int, depth: int) -> list[Block]:
    """The blocks of one kind that lie where ``first`` to ``last`` lie in a model of ``depth`` such blocks."""
    named = [b for b in blocks if b.kind == kind]
    return named[first * len(named) // depth : -(-(last + 1) * len(named) // depth)]


def with_words(family: Family, blocks: list[Block], places: dict[str, tuple[str, int, int, int]]) -> list[Block]:
    """The blocks in which words have their places, for a model with text and picture in one attention: as ``places`` says of its
    family (kind, first, last, of how many), or the middle third.
    """
    if family.name in places:
        return middle(blocks, *places[family.name])
    named = [b for b in blocks if b.kind in family.word_stacks]
    return named[len(named) // 3 : -(-2 * len(named) // 3)] or named


class Finished(Exception):
    """Everything asked for has been read: ends a forward whose rest nobody needs."""


class Collector:
    """Reads :class:`Columns` while a model call runs, each block once.

    context: tokens of the positive prompt; the host may repeat them to match a longer negative one. chosen: identity of the
    conditioning to read where several share the batch, None = the batch is all its own. stops: end the forward with
    :class:`Finished` after the last block.
    """

    def __init__(self, wanted: Columns, context: int, chosen: object | None = None, stops: bool = False) -> None:
        self.wanted, self.context, self.chosen, self.stops = wanted, context, chosen, stops
        self.grid: tuple[int, int, int] | None = None
        self._sum: Tensor | None = None
        self._seen: set[Block] = set()

    def wants(self, call: AttentionCall) -> bool:
        """Whether this call is one to read: text keys, picture queries, a listed block that was not read yet."""
        if call.block not in self.wanted.blocks or call.block in self._seen or call.kind not in ("cross", "joint"):
            return False
        return call.q.grid_span is not None and call.k.range("text") is not None and (self.chosen is None or self.chosen in call.uuids)

    def join(self, owner: str, call: AttentionCall, draft: Draft) -> None:
        """Ask to see this call."""
        draft.watch(owner, lambda seen: self.take(call, seen))

    def take(self, call: AttentionCall, seen: Seen) -> None:
        """Read one call. Raises LoomError where maps do not fit together, Finished after the last one."""
        found, span = self.read(columns, call, seen)
        if self.grid not in (None, span.grid):
            raise LoomError(f"the chosen blocks have maps of different sizes ({self.grid} and {span.grid} in {call.block}); choose blocks of one size.")
        self.grid = span.grid
        self._sum = found if self._sum is None else self._sum + found
        self._seen.add(call.block)
        if self.stops and call.block == self.wanted.last:
            raise Finished

    def read(self, reader: Callable[..., Tensor], call: AttentionCall, seen: Seen) -> tuple[Tensor, Span]:
        """What ``reader`` (one of the two above) finds in a call, and the picture it is over."""
        rows = self._rows(call)
        at = call.q.grid_span
        assert at is not None
        offset, span = at
        bias = _key_bias(seen.mask)
        bias = bias if bias is None or bias.shape[0] == 1 else bias[rows]
        return reader(seen.q[rows, :, offset : offset + span.length], seen.k[rows], self._groups(call), bias=bias, scale=seen.scale), span

    @property
    def maps(self) -> Tensor | None:
        """Mean over heads and blocks, [B, G, T, Y, X]; None if nothing was read."""
        if self._sum is None or self.grid is None:
            return None
        return (self._sum / len(self._seen)).unflatten(2, self.grid)

    def _rows(self, call: AttentionCall) -> slice:
        if self.chosen is None:
            return slice(None)
        size = call.batch // len(call.uuids)
        at = call.uuids.index(self.chosen)
        return slice(at * size, (at + 1) * size)

    def _groups(self, call: AttentionCall) -> Tensor:
        """[G, Nk]: the groups at their place among the keys of this call, in every repeat of the prompt."""
        lo, hi = call.k.range("text") or (0, 0)
        repeats, rest = divmod(hi - lo, self.context)
        if rest or not repeats or (repeats > 1 and call.kind == "joint"):
            raise LoomError(
                f"{call.block} reads {hi - lo} text tokens and the positive prompt has {self.context}: where its words stand cannot be told. "
                "Take out the node that adds text tokens inside the model."
            )
        out = torch.zeros(len(self.wanted.groups), call.k.length, device=call.device)
        for i, group in enumerate(self.wanted.groups):
            for r in range(repeats):
                out[i, [lo + r * self.context + t for t in group]] = 1
        return out


def _key_bias(mask: Tensor | None) -> Tensor | None:
    """The host's mask as [B|1, H|1, Nk]. Raises LoomError for one that differs from query to query."""
    if mask is None:
        return None
    while mask.ndim < 4:
        mask = mask.unsqueeze(0 if mask.ndim == 2 else 1)
    if mask.shape[2] != 1:
        raise LoomError("attention maps cannot be read where another node masks single pairs of tokens; take that node out.")
    mask = mask[:, :, 0]
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else mask
