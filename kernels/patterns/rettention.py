"""Re-ttention: what a sparse pattern misses is measured at dense steps now and then, and added back in between.

At a refresh the call is dense, and for each query is known which share ``ratio`` of the softmax the pattern covers and what
it missed, ``R = O_full - ratio * O_sparse``. The k-th step after it computes the pattern only and returns

    min(1, ratio + (k - 1) * growth) * O_sparse + R

With unchanged q, k, v that is the dense output at k = 1. A refresh costs one dense call, not two: the pattern and its
complement are computed separately and merged. Works over any pattern of this pack.

Source: Re-ttention, arXiv 2505.22918; ``specs``: Re-ttention (c). The clamp, other base patterns, the small caches and
the pooled tail are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..algebra import complement
from ..blocks import BlockPlan, Tail
from ..caching import with_part
from ..merge import merge
from .adaspa import AdaSpa
from .band import FrameBand
from .base import Core, Moment, Pattern, Situation, Tokens
from .history import NEAR, dense, memory, position
from .radial import Radial
from .residual import Precision, Residual, size
from .search import Mask
from .sparsed import SparseD

TOO_FEW = 8
"""Runs of so many steps or fewer have no room between refreshes."""
MOST_MEMORY = 0.25
"""Share of the free memory that twice the cache (both sides of a guided run) may take."""


@dataclass(frozen=True, eq=False)
class Refresh:
    """What a refresh leaves behind. step: when it was. ratio fp16 [b, H, N]. residual: None where memory did not allow it.

    mask: the blocks it was measured with, for patterns that would choose others now. lse_full fp32 [b, H, N]: where the
    caller wanted it.
    """

    step: float
    ratio: Tensor | None = None
    residual: Residual | None = None
    precision: Precision | None = None
    mask: Mask | None = None
    lse_full: Tensor | None = None


@dataclass(frozen=True)
class Rettention(Pattern):
    """base: the pattern that is repaired; None: radial for video, a window of 1/32 of the tokens (band) otherwise.

    start: part of the run that is dense before the first refresh; every: steps between refreshes, 0 = a tenth of the run and
    at least 3. growth: what the covered share gains per step (the paper's lambda); None: 0.04 over a window, 0.02 over
    other fixed patterns, 0 over those that choose by content. cache: precision of the residual; int8 instead, and the pooled
    tail in its place, where memory is short. layers: how many attention calls of the model keep a residual, for that
    decision (40: a large video model). tail: of the steps that have no residual; "off" means "row" there.
    """

    name: ClassVar[str] = "rettention"
    reads: ClassVar[Literal["geometry", "q and k", "history"]] = "history"
    needs_lse: ClassVar[bool] = True

    base: Pattern | None = None
    start: float = 0.2
    every: int = 0
    growth: float | None = None
    cache: Precision | Literal["off"] = "bf16"
    layers: int = 40

    def __post_init__(self) -> None:
        if not 0.0 <= self.start < 1.0:
            raise ValueError(f"rettention starts at {self.start} of the run; expected a number from 0 to below 1")
        if self.every < 0 or self.every == 1:
            raise ValueError(f"rettention refreshes every {self.every} steps; expected 2 or more, or 0 for a tenth of the run")
        if self.growth is not None and self.growth < 0:
            raise ValueError(f"the growth of rettention is {self.growth}; expected 0 or more")
        if isinstance(self.base, Rettention):
            raise ValueError("rettention over rettention repairs nothing more; choose another base pattern")

    @property
    def label(self) -> str:
        over = "auto" if self.base is None else self.base.label
        return f"{self.name}_every{self.every or 'tenth'}_over_{over}"

    def check(self, tokens: Tokens) -> None:
        """Raise ValueError if the base pattern has no meaning for these tokens."""
        self.base_for(tokens).check(tokens)

    def base_for(self, tokens: Tokens) -> Pattern:
        """The pattern that is repaired. Radial is dense on pictures and very short videos, so these get the window."""
        if self.base is not None:
            return self.base
        return Radial(block=self.block) if tokens.grid is not None and tokens.grid[0] > 2 else FrameBand(block=self.block)

    def refresh_due(self, moment: Moment) -> float | None:
        """Step of the latest refresh at or before ``moment``; None before the first."""
        first = round(self.start * moment.steps)
        every = self.every or max(3, round(moment.steps / 10))
        behind = moment.step - first + NEAR
        return None if behind < 0 else first + every * math.floor(behind / every)

    def run(self, s: Situation, core: Core) -> tuple[Tensor, Tensor | None]:
        state = memory(s)
        if s.moment.steps == 0:
            return dense(s, core, "the number of steps is unknown")
        if s.moment.steps <= TOO_FEW:
            return dense(s, core, f"too few steps, {s.moment.steps} leave no room between refreshes")
        due = self.refresh_due(s.moment)
        if due is None:
            return dense(s, core, "warm-up")
        last: Refresh | None = state.get("refresh")
        if last is None or last.step < due - NEAR:
            state.pop("refresh", None)  # make room for the next one
            return self._refresh(s, core, last)
        return self._between(s, core, last)

    def blocks(self, s: Situation) -> BlockPlan:
        last: Refresh | None = s.state.get("refresh")
        if last is not None and last.mask is not None:
            return last.mask.plan()
        return self.base_for(s.tokens).blocks(_of_base(s))

    # --- a dense step that is learned from ---

    def _refresh(self, s: Situation, core: Core, last: Refresh | None) -> tuple[Tensor, Tensor | None]:
        precision = last.precision if last is not None and last.precision is not None else self._affordable(s)
        base = self.base_for(s.tokens)
        step = position(s.moment)
        if precision is None:
            s.state["refresh"] = Refresh(step)
            s.note = f"dense: refresh, {'no memory for a residual' if self.cache != 'off' else 'no residual'}, pooled tail instead"
            return self._dense_and_learn(s, core, base)[0]
        if base.reads == "history":
            (o, _), lse = self._dense_and_learn(s, core, base)
            plan = _exact(base.blocks(_of_base(s)))
            o_part, lse_part = core(s.q, s.k, s.v, replace(s.plan, blocks=plan), True)
        else:
            plan = _exact(base.blocks(s))
            o_part, lse_part = core(s.q, s.k, s.v, replace(s.plan, blocks=plan), True)
            o, lse = _merged(o_part, lse_part, *core(s.q, s.k, s.v, replace(s.plan, blocks=_rest(plan)), True))
        assert lse is not None
        assert lse_part is not None
        ratio = covered(lse_part.detach(), lse.detach())
        residual = Residual.of(o, o_part, ratio, precision)
        mask = Mask.of(plan) if base.reads == "q and k" and plan.partial is None else None
        s.state["refresh"] = Refresh(step, ratio, residual, precision, mask, lse.detach() if s.lse else None)
        s.note = "dense: refresh" + (f", residual in {precision} to fit memory" if precision != self.cache else "")
        return o, (lse if s.lse else None)

    def _dense_and_learn(self, s: Situation, core: Core, base: Pattern) -> tuple[tuple[Tensor, Tensor | None], Tensor | None]:
        """((o, lse if the caller wants it), lse if the base pattern does) of a dense call; a base that searches does so now."""
        learns = isinstance(base, AdaSpa | SparseD)
        o, lse = core(s.q, s.k, s.v, s.plan, s.lse or learns)
        if isinstance(base, AdaSpa | SparseD):
            base.learn(_of_base(s), lse)
        return (o, lse if s.lse else None), lse

    def _affordable(self, s: Situation) -> Precision | None:
        if self.cache == "off":
            return None
        free = free_memory(s.q.device)
        wanted: tuple[Precision, ...] = (self.cache, "int8")
        fits = (p for p in wanted if free is None or 2 * self.layers * size(s.q.shape, p) <= MOST_MEMORY * free)
        return next(fits, None)

    # --- a sparse step ---

    def _between(self, s: Situation, core: Core, last: Refresh) -> tuple[Tensor, Tensor | None]:
        if last.residual is None or last.ratio is None:
            return self.sparse(s, core, _with_tail(self.blocks(s), self._tail(s)))
        ratio = grown(last.ratio, position(s.moment) - last.step, self._growth(s.tokens))
        affine = last.residual.affine(ratio)
        o, lse = self.sparse(s, core, _exact(self.blocks(s)), affine=affine)
        if lse is not None:
            lse = _whole_lse(lse, ratio, last.lse_full)
        return (last.residual.repair(o, ratio) if affine is None else o), lse

    def _growth(self, tokens: Tokens) -> float:
        if self.growth is not None:
            return self.growth
        base = self.base_for(tokens)
        return 0.04 if isinstance(base, FrameBand) else 0.02 if base.reads == "geometry" else 0.0

    def _tail(self, s: Situation) -> Tail:
        if s.plan.modulation is not None or s.plan.labels is not None or s.plan.key_bias is not None:
            return "off"  # pooled keys cannot honour rules for single pairs
        return "row" if self.tail == "off" else self.tail


def covered(lse_part: Tensor, lse_whole: Tensor) -> Tensor:
    """fp16: share of the softmax over all keys that falls on a part of them, in [0, 1]; 0 for a query without keys."""
    return (lse_part - lse_whole).exp().nan_to_num(nan=0.0).clamp(max=1.0).half()


def grown(ratio: Tensor, k: float, growth: float) -> Tensor:
    """fp32: the covered share k steps after it was measured.

    >>> [round(float(grown(torch.tensor(0.3), k, 0.04)), 2) for k in (1, 2, 3, 4)]
    [0.3, 0.34, 0.38, 0.42]
    """
    return (ratio.float() + growth * max(0.0, round(k, 3) - 1)).clamp(max=1.0)


def free_memory(device: torch.device) -> int | None:
    """Bytes a tensor on ``device`` could take now; None where that is not a question for us (main memory)."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def _whole_lse(lse: Tensor, ratio: Tensor, known: Tensor | None) -> Tensor:
    """The log-sum-exp of all keys as it follows from that of the pattern; where the pattern covers nothing, the last known."""
    whole = lse - ratio.log()
    return whole if known is None else torch.where(ratio > 0, whole, known)


def _merged(o_a: Tensor, lse_a: Tensor | None, o_b: Tensor, lse_b: Tensor | None) -> tuple[Tensor, Tensor]:
    """:func:`kernels.merge.merge` a head at a time: its fp32 temporaries would outweigh the outputs themselves."""
    assert lse_a is not None
    assert lse_b is not None
    o, lse = torch.empty_like(o_a), torch.empty_like(lse_a)
    for h in range(o.shape[1]):
        o[:, h], lse[:, h] = merge(o_a[:, h], lse_a[:, h], o_b[:, h], lse_b[:, h])
    return o, lse


def _of_base(s: Situation) -> Situation:
    """The call as the base pattern sees it: with a state of its own."""
    state: dict[Any, Any] = s.state.setdefault("base", {})
    return replace(s, state=state)


# Derived plans are kept with the one they come from: a fixed pattern's lists are built once for all layers and steps.


def _exact(plan: BlockPlan) -> BlockPlan:
    """The plan as a part that is merged: no tail, and nothing may stand in for it."""
    if plan.tail == "off" and not plan.approximate:
        return plan
    return with_part(plan, "exact", lambda: replace(plan, tail="off", approximate=False))


def _rest(plan: BlockPlan) -> BlockPlan:
    return with_part(plan, "rest", lambda: complement(plan))


def _with_tail(plan: BlockPlan, tail: Tail) -> BlockPlan:
    return plan if plan.tail == tail else with_part(plan, ("tail", tail), lambda: replace(plan, tail=tail))


def main() -> None:
    """Draw the window that is repaired on a picture; the schedule is printed."""
    from .draw import draw_main

    pattern, tokens, steps = Rettention(start=0.25, every=5, block=64), Tokens(40 * 64, (1, 40, 64)), 20
    due = [pattern.refresh_due(Moment(step / steps, steps)) for step in range(steps)]
    print("step by step: " + "".join("D" if d is None else "R" if d == step else "s" for step, d in enumerate(due)) + "  (D dense, R refresh, s sparse)")
    draw_main(pattern, tokens)


if __name__ == "__main__":
    main()
