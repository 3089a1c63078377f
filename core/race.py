"""Sparse against dense, measured on the user's own card: a node that is meant to save time must not cost any.

Done once per run and shape, on CUDA only, with the call's own tensors: two sparse calls to warm up (the first compiles the
kernel), then one sparse and one dense call timed by events. The device is waited for twice in all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

WARM = 2
"""Sparse calls before the one that is timed."""
WORTH = 0.97
"""Sparse must take less than this share of dense."""

Clock = Callable[[Callable[[], Any]], tuple[Any, float]]
"""work -> (its result, milliseconds)."""


def cuda_clock(work: Callable[[], Any]) -> tuple[Any, float]:
    """Time one piece of work on the current CUDA stream; waits for it."""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    result = work()
    stop.record()
    stop.synchronize()
    return result, start.elapsed_time(stop)


@dataclass
class Race:
    """One contest. ``note`` is set by whoever ran the sparse side: only a call that was sparse throughout is timed."""

    clock: Clock = cuda_clock
    note: str = ""
    runs: int = 0
    sparse_ms: float | None = None
    dense_ms: float | None = None

    @property
    def lost(self) -> bool:
        """Sparse was measured and is not worth it."""
        return self.sparse_ms is not None and self.dense_ms is not None and self.sparse_ms >= WORTH * self.dense_ms

    @property
    def verdict(self) -> str:
        """For the report."""
        if self.sparse_ms is None or self.dense_ms is None:
            return "not measured"
        return f"measured: sparse {self.sparse_ms:.2f} ms, dense {self.dense_ms:.2f} ms a call"

    def run(self, sparse: Callable[[], Any], dense: Callable[[], Any]) -> Any:
        """The sparse result; on the third sparse call both sides are timed on the way."""
        if self.sparse_ms is not None:
            return sparse()
        self.note = ""  # what an earlier call said does not count for this one
        if self.runs < WARM:
            result = sparse()
            self.runs += self.note == "sparse"
            return result
        result, took = self.clock(sparse)
        if self.note == "sparse":
            dense()
            self.dense_ms = self.clock(dense)[1]
            self.sparse_ms = took
        return result
