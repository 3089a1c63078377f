"""A pattern bound to one attention call: what ``plan.blocks`` holds until q and k are there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .blocks import Tail
from .patterns.base import Core, Moment, Pattern, Situation, Tokens
from .plan import AttentionPlan


@dataclass(frozen=True, eq=False)
class Sparse:
    """Runs ``pattern`` on a call, one conditioning at a time.

    parts: (number of batch rows, state) of each conditioning in the batch, in order. Batched and split CFG thus see the same
    pattern, the same state and, kernels being independent of the batch, the same bits. heard: called with each part's
    :class:`Situation` after it ran, for the report.
    """

    pattern: Pattern
    tokens: Tokens
    moment: Moment
    parts: tuple[tuple[int, dict[Any, Any]], ...]
    heard: Callable[[Situation], None] | None = None

    @property
    def tail(self) -> Tail:
        """What becomes of blocks that are not read."""
        return self.pattern.tail

    def without_tail(self) -> Sparse:
        """The same, dropping what it does not read."""
        return replace(self, pattern=replace(self.pattern, tail="off"))

    def head_range(self, h0: int, h1: int) -> Sparse:
        """The same for query heads h0 <= h < h1, which remember things of their own."""
        return replace(self, parts=tuple((rows, state.setdefault(("heads", h0, h1), {})) for rows, state in self.parts))

    @property
    def needs_lse(self) -> bool:
        """Whether the core must give its log-sum-exp."""
        return self.pattern.needs_lse or self.pattern.tail != "off"

    def run(self, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float, core: Core, lse: bool, backend: str) -> tuple[Tensor, Tensor | None]:
        """(o, lse if wanted) for q, k, v after rotation; ``plan`` holds the other logit parts."""
        outs, lses, lo = [], [], 0
        for rows, state in self.parts:
            part = slice(lo, lo + rows)
            s = Situation(self.tokens, self.moment, q[part], k[part], v[part], plan.batch_range(lo, lo + rows), scale, lse, state, backend)
            o, o_lse = self.pattern.run(s, core)
            if self.heard is not None:
                self.heard(s)
            outs.append(o)
            lses.append(o_lse)
            lo += rows
        if lo != q.shape[0]:
            raise ValueError(f"the conditionings make {lo} batch rows, the call has {q.shape[0]}")
        if len(outs) == 1:
            return outs[0], lses[0]
        return torch.cat(outs), (torch.cat(lses) if lse else None)  # type: ignore[arg-type]
