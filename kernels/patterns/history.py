"""What a pattern remembers of a run, and how it notices that the run is another one.

A pattern's state belongs to one conditioning in one block of the model and is freed when sampling ends. Should it survive a
change of size, or the noise rise again (a second run in the same state), nothing of it is used: a stale mask is worse than
none. Places in the schedule are read from the :class:`Moment`; nothing counts steps.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import Core, Moment, Situation

NEAR = 1e-3
"""Steps closer than this are the same step: progress arrives as a quotient."""
BACK = 1
"""Steps a sampler may come back by within a run: heunpp2 looks two steps ahead and goes one."""


def position(moment: Moment) -> float:
    """Step number, or progress in [0, 1) where the number of steps is unknown."""
    return moment.step if moment.steps else moment.progress


def reached(moment: Moment, place: float) -> bool:
    """Whether the moment lies at or behind ``place`` (step number, or progress where steps are unknown)."""
    return position(moment) >= place - (NEAR if moment.steps else NEAR / 100)


def memory(s: Situation) -> dict[Any, Any]:
    """The state of ``s``, emptied first if it was made by a call of another shape or by an earlier run.

    Coming back by up to :data:`BACK` steps is the same run; the start of it never is.
    """
    call = (s.tokens, tuple(s.q.shape), tuple(s.k.shape), s.q.dtype, s.q.device, s.moment.steps)
    at, near = position(s.moment), NEAR if s.moment.steps else NEAR / 100
    back = 0 if at <= near else BACK if s.moment.steps else 0
    if s.state.get("call") != call or at < s.state["at"] - back - near:
        s.state.clear()
    s.state.update(call=call, at=at)
    return s.state


def dense(s: Situation, core: Core, why: str) -> tuple[Tensor, Tensor | None]:
    """The call without blocks, with the reason for the report."""
    s.note = f"dense: {why}"
    return core(s.q, s.k, s.v, s.plan, s.lse)
