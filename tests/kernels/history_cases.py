"""What the tests of patterns with a history share: made-up calls, a core that is the real attention and keeps a diary, runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from attention_loom.kernels import AttentionPlan, BlockPlan, attend
from attention_loom.kernels.patterns.base import Moment, Pattern, Situation, Tokens
from attention_loom.kernels.patterns.draw import situation
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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


def backends_agree(pattern: Pattern, steps: int, at: list[int], other: str = "triton") -> list[str]:
    """Runs the steps ``at`` on the chunked backend and on ``other``, each with its own state; returns the notes."""
    states: dict[str, dict[Any, Any]] = {"chunked": {}, other: {}}
    notes = []
    for step in at:
        outs = {}
        for backend, state in states.items():
            s = call(Tokens(2 * 64 + 20, (2, 8, 8)), step=step, steps=steps, state=state)
            outs[backend], _ = pattern.run(s, Core(s.scale, backend))
        assert rms(outs[other], outs["chunked"]) < 1e-5, step
        notes.append(s.note)
    return notes


class NoWaiting(TorchDispatchMode):
    """Raises at what would wait for a device: a number read back, a size that depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "unique2", "_unique2", "unique_dim"), f"{name} waits for the device"
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        assert not any(i is not None and i.dtype == torch.bool for i in indices), "indexing by a mask waits for the device"
        return func(*args, **(kwargs or {}))
