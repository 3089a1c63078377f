"""What ran: counters and reasons collected during a sampling run, and the run's own memory.

A :class:`Record` belongs to one patched model and keeps its last runs; a :class:`Run` begins when the host starts to
sample and ends when it cleans up, also after an exception or an interrupt. Everything a method caches across steps lives
in the run and is freed with it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .call import AttentionCall

KEEP_RUNS = 4
LITTLE = 0.9
"""Share of the attention a searched pattern should hold (AdaSpa)."""


@dataclass(frozen=True)
class Entry:
    """One kind of outcome: calls of this sort are counted together.

    owners: nodes that took part in the plan (empty: stock). parts: what the plan held. reason: why a call stayed stock,
    or why a better backend declined it.
    """

    kind: str
    planned: bool
    backend: str
    owners: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    reason: str = ""


@dataclass
class Run:
    """One sampling run of one patched model.

    grid: of the last model call, which may be an area or a window; whole: of the latent that is sampled. noise: the sampler begins with, held until
    the run ends. roles: of its conditionings, as ``call.roles_of`` counts.
    """

    family: str
    owners: tuple[str, ...]
    device: str
    started: float = field(default_factory=time.perf_counter)
    ended: float | None = None
    grid: tuple[int, int, int] | None = None
    whole: tuple[int, int, int] | None = None
    failed: bool = False
    entries: Counter[Entry] = field(default_factory=Counter)
    cells: dict[tuple[int, str, str], Counter[str]] = field(default_factory=dict)
    block_names: dict[tuple[int, str], str] = field(default_factory=dict)
    sigmas: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    peak_mb: float | None = None
    attention_ms: float | None = None
    looked: Counter[str] = field(default_factory=Counter)
    patterns: dict[str, Counter[str]] = field(default_factory=dict)
    facts: dict[str, dict[str, float]] = field(default_factory=dict)
    passes: Counter[str] = field(default_factory=Counter)
    state: dict[Any, Any] = field(default_factory=dict, repr=False)
    noise: torch.Tensor | None = field(default=None, repr=False)
    roles: dict[Any, int] = field(default_factory=dict, repr=False)
    _sums: dict[tuple[str, str, str], tuple[Any, int]] = field(default_factory=dict, repr=False)
    _events: list[tuple[Any, Any]] = field(default_factory=list, repr=False)
    _seconds: float = field(default=0.0, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def roles_in(self, conds: Any) -> frozenset[int]:
        """What stands in the host's list of conditionings to evaluate; by place where one is not known."""
        return frozenset(self.roles.get(entry.get("uuid"), i) for i, entries in enumerate(conds) for entry in entries or ())

    def step(self, sigma: float) -> None:
        """A model call at this noise level begins."""
        with self._lock:
            if sigma not in self.sigmas:
                self.sigmas.append(sigma)

    def warn(self, sentence: str) -> None:
        """Something odd the user should read; once per run."""
        with self._lock:
            if sentence not in self.warnings:
                self.warnings.append(sentence)

    def count(self, entry: Entry, call: AttentionCall | None = None, sigma: float = 0.0, name: str = "") -> None:
        """One attention call ended this way."""
        with self._lock:
            self.entries[entry] += 1
            if call is not None:
                place = (call.block.ordinal, call.kind)
                self.block_names[place] = f"{call.block} {call.kind}"
                outcome = "+".join(entry.owners) if entry.planned else "stock"
                key = (*place, f"{call.sigma:.6g}")
                self.cells.setdefault(key, Counter())[outcome] += 1

    def read(self, owner: str) -> None:
        """``owner`` looked at a call without changing it."""
        with self._lock:
            self.looked[owner] += 1

    def kept(self, key: Any, make: Callable[[], Any]) -> Any:
        """What is kept under ``key`` until the run ends, made on first use. Several devices may ask at once."""
        with self._lock:
            if key not in self.state:
                self.state[key] = make()
            return self.state[key]

    def sparse(self, label: str, note: str, densities: list[torch.Tensor], facts: dict[str, torch.Tensor] | None = None) -> None:
        """A sparse pattern ran one conditioning of one call. densities: of the plans it ran, device scalars that are read when
        the run ends; a call without a plan was dense: 1. facts: other numbers of the pattern by name, likewise.
        """
        with self._lock:
            self.patterns.setdefault(label, Counter())[note] += 1
            found: dict[str, Any] = {"density": sum(d.detach() for d in densities) if densities else 1.0, **(facts or {})}
            for name, value in found.items():
                where = (label, name, str(value.device) if isinstance(value, torch.Tensor) else "")
                total, n = self._sums.get(where, (0.0, 0))
                self._sums[where] = (total + value, n + 1)

    def timed(self, work: Callable[[], Any]) -> Any:
        """Run ``work`` and add its time. On CUDA by events, read once at the end, so that nothing waits in between."""
        if self.device.startswith("cuda"):
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            result = work()
            stop.record()
            with self._lock:
                self._events.append((start, stop))
            return result
        begin = time.perf_counter()
        result = work()
        with self._lock:
            self._seconds += time.perf_counter() - begin
        return result

    def close(self, failed: bool) -> None:
        """Sum up and free all state."""
        self.ended, self.failed = time.perf_counter(), failed
        if self._events:
            torch.cuda.synchronize()
            self._seconds += sum(a.elapsed_time(b) for a, b in self._events) / 1000
            self._events.clear()
        self.attention_ms = 1000 * self._seconds
        for label, name in {key[:2] for key in self._sums}:
            sums = [(float(total), n) for (*key, _), (total, n) in self._sums.items() if key == [label, name]]
            self.facts.setdefault(label, {})[name] = sum(total for total, _ in sums) / sum(n for _, n in sums)
        self._sums.clear()
        if self.device.startswith("cuda"):
            self.peak_mb = torch.cuda.max_memory_allocated() / 2**20
        self.state.clear()
        self.noise = None

    @property
    def density(self) -> dict[str, float]:
        """Share of the pairs computed by each pattern, its dense calls included."""
        return {label: facts["density"] for label, facts in self.facts.items()}

    @property
    def touched(self) -> dict[str, int]:
        """Calls each method took part in."""
        out = dict.fromkeys(self.owners, 0)
        for entry, n in self.entries.items():
            for owner in entry.owners:
                out[owner] = out.get(owner, 0) + n
        return out

    def reasons_against(self, owner: str) -> list[str]:
        """Why calls were left alone that ``owner`` might have wanted."""
        return sorted({e.reason for e in self.entries if e.reason and not e.planned and (owner in e.reason or not e.owners)})

    def as_dict(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        return {
            "family": self.family,
            "methods": list(self.owners),
            "device": self.device,
            "grid": self.grid,
            "steps": len(self.sigmas),
            "failed": self.failed,
            "seconds": None if self.ended is None else round(self.ended - self.started, 3),
            "planned_attention_ms": self.attention_ms,
            "peak_mb": self.peak_mb,
            "touched": self.touched,
            "looked_at": dict(self.looked),
            "extra_evaluations": dict(self.passes),
            "warnings": self.warnings,
            "patterns": {label: self.facts.get(label, {}) | {"calls": dict(notes)} for label, notes in self.patterns.items()},
            "calls": [
                {"kind": e.kind, "planned": e.planned, "backend": e.backend, "methods": list(e.owners), "parts": list(e.parts), "reason": e.reason, "count": n}
                for e, n in sorted(self.entries.items(), key=lambda item: (item[0].kind, not item[0].planned, -item[1]))
            ],
        }

    def text(self) -> str:
        """The report as a user reads it."""
        total = sum(self.entries.values())
        planned = sum(n for e, n in self.entries.items() if e.planned)
        lines = [f"{self.family} on {self.device}" + (f", grid {self.grid[0]} frames x {self.grid[1]} x {self.grid[2]} tokens" if self.grid else "")]
        seconds = "still running" if self.ended is None else f"{self.ended - self.started:.1f} s"
        lines.append(f"{len(self.sigmas)} noise levels, {total} attention calls, {planned} changed, {seconds}" + ("; the run was broken off" if self.failed else ""))
        if self.attention_ms is not None and planned:
            lines.append(f"time in changed calls: {self.attention_ms / 1000:.2f} s" + (f"; peak memory {self.peak_mb:.0f} MB" if self.peak_mb is not None else ""))
        for owner, n in self.touched.items():
            lines.append(f"- {owner}: {n} calls" if n else f"- WARNING: {owner} changed nothing" + "".join(f"; {r}" for r in self.reasons_against(owner)[:3]))
        lines += [f"- {owner}: looked at {n} calls, changed none" for owner, n in self.looked.items()]
        lines += [f"- {name}: {n} extra evaluations of the model" for name, n in self.passes.items()]
        lines += [self._pattern_line(label) for label in self.patterns]
        lines += [f"- warning: {w}" for w in self.warnings]
        lines.append("")
        for row in self.as_dict()["calls"]:
            what = (
                f"changed by {', '.join(row['methods'])} ({', '.join(row['parts'])}), backend {row['backend']}" if row["planned"] else "stock" + row["backend"].removeprefix("host")
            )
            lines.append(f"{row['count']:6d} x {row['kind']}: {what}" + (f" [{row['reason']}]" if row["reason"] else ""))
        return "\n".join(lines)

    def _pattern_line(self, label: str) -> str:
        """What a sparse pattern did; one conditioning of one call counts once."""
        notes = ", ".join(f"{n} {note}" for note, n in self.patterns[label].most_common())
        facts = self.facts.get(label, {})
        line = f"- pattern {label}: {notes}"
        if "density" in facts:
            line += f"; {100 * facts['density']:.1f}% of the pairs computed on average"
        if "recall" in facts:
            line += f"; the blocks it found held {100 * facts['recall']:.0f}% of the attention"
            line += ", which is little: raise the density" if facts["recall"] < LITTLE else ""
        if "overlap" in facts:
            line += f"; late in the run {100 * facts['overlap']:.0f}% of its blocks were still the best"
        return line


class Record:
    """The last runs of one patched model. Lives in the model's options; a copy of the options shares it."""

    def __init__(self) -> None:
        self.runs: deque[Run] = deque(maxlen=KEEP_RUNS)
        self._open: Run | None = None

    def begin(self, family: str, owners: tuple[str, ...], device: str) -> Run:
        """A sampling run starts; one that was never closed (a crash in the host) is closed first."""
        self.end(failed=True)
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        self._open = Run(family, owners, device)
        self.runs.append(self._open)
        return self._open

    def end(self, failed: bool = False) -> None:
        """The sampling run is over: sum up, free its state."""
        if self._open is not None:
            self._open.close(failed)
            self._open = None

    @property
    def current(self) -> Run | None:
        """The run under way."""
        return self._open

    @property
    def last(self) -> Run | None:
        """The newest run, under way or over."""
        return self.runs[-1] if self.runs else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Record:
        return self
