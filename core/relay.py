"""Passes that differ from one another only from some block on: what stands before that block is computed once and handed on.

The blocks are walked in order. To reach a block, one unchanged pass computes the blocks since the last one reached, keeps what the last of each
kind gives and ends there; passes behind it hand that on in the place of all blocks before. So one block's result is kept at a time (one of each kind
of block), and all steps together cost one pass more. Unlike :mod:`prefix` nothing of the main pass is used: the same prompts run in the same batch
with and without, so the numbers are the same bit for bit. Needs blocks that can be replaced as a whole, so U-Nets have it not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from .prefix import chunk, each, joined, names

if TYPE_CHECKING:
    from .call import Block
    from .guidance import ExtraPass


class Stopped(Exception):
    """The block to be reached is done, and nobody needs the rest of the model call."""


class Relay:
    """Of one evaluation of the sampler: one latent, one noise level. blocks: of the model, in order; axis: of the batch in what they give. taken: how many were
    handed on in place of computing them.
    """

    def __init__(self, blocks: Sequence[Block], axis: int = 0) -> None:
        self.blocks, self.axis = blocks, axis
        self.taken = 0
        self._ends: dict[str, Block] = {}
        self._goal: dict[str, Block] = {}
        self._kept: dict[tuple[Block, Hashable], Any] = {}

    def reach(self, ordinal: int, run: Callable[[], Any]) -> None:
        """From now on the blocks before number ``ordinal`` are handed on. run: an unchanged evaluation through this relay."""
        goal = {b.kind: b for b in self.blocks if b.ordinal < ordinal}
        if goal == self._ends:
            return
        if any(block.ordinal >= ordinal for block in self._ends.values()):  # further back
            self._ends = {}
        if goal:
            self._goal = goal
            try:
                run()
            finally:
                self._goal = {}
        self._ends = goal
        self._kept = {(block, name): kept for (block, name), kept in self._kept.items() if goal.get(block.kind) == block}

    def at(self, options: dict[str, Any], batch: int, pass_: ExtraPass) -> Handing:
        """For one model call. options: its transformer options; batch: rows of its latent."""
        return Handing(self, options, batch, pass_)


class Handing:
    """One model call of a :class:`Relay`."""

    def __init__(self, relay: Relay, options: dict[str, Any], batch: int, pass_: ExtraPass) -> None:
        self.relay, self.pass_ = relay, pass_
        self.names = names(options)
        self.length = batch // max(1, len(self.names))

    def through(self, block: Block, compute: Callable[[], Any]) -> Any:
        """What the block gives. compute: the host's own way to it."""
        relay, last = self.relay, self.relay._ends.get(block.kind)
        if self.names and last is not None and block.ordinal <= last.ordinal:
            kept = [relay._kept.get((last, name)) for name in self.names]
            if all(k is not None for k in kept):
                relay.taken += 1
                self.pass_.reused.add(block)
                return joined(kept, relay.axis)  # a copy: the host adds to it in place
        out = compute()
        if self.names and relay._goal.get(block.kind) == block:
            for i, name in enumerate(self.names):
                relay._kept[block, name] = each(out, partial(chunk, start=i * self.length, length=self.length, axis=relay.axis))
            if block == max(relay._goal.values(), key=lambda b: b.ordinal):
                raise Stopped
        return out
