"""What the tests of patterns with a history share: made-up calls, a core that is the real attention and keeps a diary, runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from attention_loom.kernels import AttentionPlan, BlockPlan, attend
from attention_loom.kernels.patterns.base import Moment, Pattern, Situation, Tokens
from attention_loom.kernels.patterns.draw import situation
from torch import Tensor

TEXT = Tokens(4 * 8 * 8 + 20, (4, 8, 8))
"""Four frames of two blocks of 32, then 20 free tokens."""
BARE = Tokens(150)
"""No grid, a ragged last block."""


@dataclass
class Core:
    """The real attention on the chunked backend. calls: (blocks or None, log-sum-exp asked for) of each call."""

    scale: float
    backend: str = "chunked"
    calls: list[tuple[BlockPlan | None, bool]] = field(default_factory=list)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, lse: bool) -> tuple[Tensor, Tensor | None]:
        self.calls.append((plan.blocks, lse))
        out = attend(q, k, v, plan, scale=self.scale, return_lse=lse, backend=self.backend)
        return out if lse else (out, None)

    @property
    def dense(self) -> int:
        return sum(blocks is None for blocks, _ in self.calls)

    @property
    def sparse(self) -> int:
        return sum(blocks is not None for blocks, _ in self.calls)


def call(tokens: Tokens = TEXT, *, step: float = 0, steps: int = 0, state: dict[Any, Any] | None = None, seed: int = 0, **made) -> Situation:
    """A structured call at a moment of the run."""
    made = {"heads": 2, "width": 32} | made
    s = situation(tokens, seed=seed, moment=Moment(step / steps if steps else step, steps), **made)
    return replace(s, state={} if state is None else state)


@dataclass
class Step:
    o: Tensor
    note: str
    core: Core
    s: Situation


def play(pattern: Pattern, steps: int, *, tokens: Tokens = TEXT, state: dict[Any, Any] | None = None, at=None, seed: int = 0, **made) -> list[Step]:
    """Every step of a run (or those in ``at``) with the same q, k, v."""
    state = {} if state is None else state
    out = []
    for step in range(steps) if at is None else at:
        s = call(tokens, step=step, steps=steps, state=state, seed=seed, **made)
        core = Core(s.scale)
        o, _ = pattern.run(s, core)
        out.append(Step(o, s.note, core, s))
    return out


def dense_of(s: Situation) -> Tensor:
    out = attend(s.q, s.k, s.v, s.plan, scale=s.scale, backend="chunked")
    assert isinstance(out, Tensor)
    return out


def rms(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())
