"""Time, memory and error of one call, and how evenly a plan's work divides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.block_mask import admitted
from ..kernels.blocks import BlockPlan
from ..kernels.lists import imbalance as lists_imbalance
from ..kernels.lists import work_lists
from ..kernels.plan import AttentionPlan

SAMPLED = 128
"""Query rows per head whose exact output is computed to find the error."""


@dataclass(frozen=True)
class Protocol:
    """Calls before timing and calls timed. The full protocol is that of ``specs``: sparse backend §18.

    seconds: about how long one measurement may take; long calls are repeated less often for it, :data:`LEAST_TIMED` at least.
    """

    warm: int = 25
    timed: int = 100
    seconds: float = float("inf")

    def fitting(self, ms: float) -> Protocol:
        """The same for calls of ``ms`` milliseconds: a fifth of the time warms up."""
        calls = min(self.warm + self.timed, int(self.seconds * 1e3 / max(ms, 1e-3)) if self.seconds < float("inf") else self.warm + self.timed)
        return Protocol(min(self.warm, calls // 5), max(LEAST_TIMED, min(self.timed, calls - calls // 5)), self.seconds)


LEAST_TIMED = 5
FULL, QUICK = Protocol(), Protocol(5, 20)
SHORT = Protocol(25, 100, 2.0)
"""Where the machine is lent for minutes: the full protocol for calls up to 16 ms, fewer repeats for longer ones."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds: median and 90th percentile of the timed calls, and how many there were."""

    median: float
    p90: float
    calls: int


def milliseconds(call: Callable[[], object], protocol: Protocol) -> Timing:
    """Device time of ``call`` by events around each of the timed calls."""
    if protocol.seconds < float("inf"):
        call()  # compiles, if nobody has called it yet
        once = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        once[0].record()
        call()
        once[1].record()
        torch.cuda.synchronize()
        protocol = protocol.fitting(once[0].elapsed_time(once[1]))
    for _ in range(protocol.warm):
        call()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(protocol.timed)]
    torch.cuda.synchronize()
    for start, end in marks:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    times = sorted(start.elapsed_time(end) for start, end in marks)
    return Timing(times[len(times) // 2], times[min(len(times) - 1, int(0.9 * len(times)))], len(times))


def peak_megabytes(call: Callable[[], object]) -> float:
    """Most memory the call held beyond what was allocated before it, its output included."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def sampled_rows(tokens: int, device: torch.device | str) -> Tensor:
    """int64 [n]: query rows spread evenly over the sequence."""
    return torch.linspace(0, tokens - 1, min(tokens, SAMPLED), device=device).round().long()


def exact_rows(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, scale: float, plan: BlockPlan | None = None) -> Tensor:
    """fp32 [B,H,n,D]: attention of the rows ``rows`` over all keys, or over those ``plan`` admits. One head at a time."""
    group = q.shape[1] // k.shape[1]
    keys = torch.arange(k.shape[2], device=k.device)
    out = torch.empty(*q.shape[:2], rows.shape[0], q.shape[3], device=q.device)
    mask = None
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            s = q[b, h, rows].float() @ k[b, h // group].float().T * scale
            if plan is not None:
                if mask is None or plan.groups > 1:
                    mask = admitted(plan, plan.head_map[b % plan.head_map.shape[0], h % plan.head_map.shape[1]], rows, keys)
                s = s.masked_fill(~mask, -torch.inf)
            out[b, h] = s.softmax(-1).nan_to_num(0.0) @ v[b, h // group].float()
    return out


def relative_l2(got: Tensor, want: Tensor) -> float:
    """Norm of the difference over the norm of the truth."""
    return float((got.float() - want).norm() / want.norm().clamp_min(1e-30))


def imbalance(plan: BlockPlan, heads: int, units: int) -> float:
    """Most work of one processor over the mean, for batch 1, rows handed out longest first. 1 is even."""
    lists = work_lists(AttentionPlan(blocks=plan), plan.q.tokens, plan.k.tokens, plan.q.block, plan.k.block)
    assert lists is not None
    return lists_imbalance(lists, 1, heads, units)
