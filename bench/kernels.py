"""Our kernels beside dense attention and every rival that is installed, on the attention calls of real models.

    python -m attention_loom.bench.kernels                  everything: hours; rows are kept as they come
    python -m attention_loom.bench.kernels --quick          three shapes, fewer repeats
    python -m attention_loom.bench.kernels --only NAME      one shape, pattern or implementation (may be repeated)
    python -m attention_loom.bench.kernels --dry            tiny shapes through the same code, no times: needs no GPU

Protocol: 25 calls to warm up, 100 timed by CUDA events, median and 90th percentile; clocks as they are. Without a CUDA GPU
nothing is timed and nothing is written.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from . import inputs, masks
from .impls import Call, Case, Impl, Unfit, dense_impls, our_dense, our_impls
from .measure import FULL, QUICK, Protocol, exact_rows, imbalance, milliseconds, peak_megabytes, relative_l2, sampled_rows
from .provenance import ROOT
from .results import Results, Row
from .rivals import rivals
from .shapes import QUICK as QUICK_SHAPES
from .shapes import SHAPES, TINY, Shape

BACKWARD = 2.5
"""Arithmetic of the backward pass over that of the forward one: five products for two."""
BACKWARD_CASES = frozenset({("random", 0.25), ("random", 0.1), ("topk", 0.25), ("topk", 0.1)})
NO_GPU = "not measured: no CUDA GPU"


@dataclass
class Run:
    """What stays the same from row to row. protocol: None times nothing. until: no row is begun after this moment."""

    results: Results
    protocol: Protocol | None
    device: str
    dtype: torch.dtype
    shapes: tuple[Shape, ...]
    patterns: tuple[str, ...] = masks.PATTERNS
    densities: tuple[float, ...] = masks.DENSITIES
    dense: tuple[Impl, ...] = field(default_factory=lambda: tuple(dense_impls()))
    sparse: tuple[Impl, ...] = field(default_factory=lambda: (*our_impls(), *rivals()))
    whole: tuple[Impl, ...] = field(default_factory=lambda: tuple(our_dense()))
    until: float = float("inf")
    captured: Path | None = None
    backward: frozenset[tuple[str, float]] = BACKWARD_CASES

    @property
    def over(self) -> bool:
        """Whether the time is used up."""
        return time.monotonic() > self.until

    @property
    def processors(self) -> int:
        """How many rows of blocks are worked on at a time."""
        return torch.cuda.get_device_properties(0).multi_processor_count if self.device == "cuda" else 16

    def known(self, impl: str, case: Case, backward: bool) -> bool:
        """Whether an earlier sitting has measured this, or found that it does not run."""
        if f"{impl}: {_label(case, backward)}" in self.results.absent:
            return True
        named = (f"{impl}: backward" if backward else impl, case.shape.name, case.pattern)
        rows = zip(self.results.rows, self.results.details, strict=True)
        return any((r.impl, r.shape, r.pattern) == named and d.get("wanted_density") == case.density for r, d in rows)

    def dense_times(self, shape: Shape, backward: bool) -> list[float]:
        """Milliseconds of dense attention by others, of an earlier sitting."""
        wanted = {f"{i.name}: backward" if backward else i.name for i in self.dense}
        return [r.ms for r in self.results.rows if r.shape == shape.name and r.pattern == "dense" and r.impl in wanted and r.ms is not None]


@dataclass
class Truth:
    """Exact output of sampled query rows: of dense attention, and of the pairs of the case at hand."""

    rows: Tensor
    dense: Tensor
    masked: Tensor | None = None


@dataclass(frozen=True)
class Measured:
    """One implementation on one case. sample fp32 [B,H,n,D]: its sampled output rows, None for a backward pass."""

    impl: Impl
    sample: Tensor | None
    ms: float | None = None
    p90_ms: float | None = None
    peak_mb: float | None = None
    calls: int | None = None


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 0, or 2 where there is nothing to measure with or nothing so named."""
    args = _arguments(argv)
    if args.dry:
        os.environ.setdefault("TRITON_INTERPRET", "1")
        run = Run(Results.begin(None), None, "cpu", torch.float16, TINY, densities=(0.25,))
        run.results.path = args.out and args.out / "dry.json"
    elif not torch.cuda.is_available():
        print(NO_GPU)
        return 2
    else:
        shapes = tuple(s for s in SHAPES if s.name in QUICK_SHAPES) if args.quick and not args.only else SHAPES
        run = Run(Results.begin(args.out or ROOT / "bench" / "results"), QUICK if args.quick else FULL, "cuda", torch.bfloat16, shapes, captured=args.captured)
        run.until = time.monotonic() + args.budget if args.budget else run.until
    unknown = restrict(run, set(args.only))
    if unknown:
        print(f"no shape, pattern or implementation is called {', '.join(sorted(unknown))}")
        return 2
    execute(run)
    if run.results.path is not None:
        print(f"{len(run.results.rows)} rows in {run.results.path.name}")
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m attention_loom.bench.kernels", description="Measure the attention kernels.")
    parser.add_argument("--quick", action="store_true", help="three shapes, 5 + 20 calls instead of 25 + 100")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a shape, pattern or implementation; may be repeated")
    parser.add_argument("--out", type=Path, help="folder of the result file (default: bench/results; with --dry: no file)")
    parser.add_argument("--captured", type=Path, help="torch.save'd dict of q, k, v for the shape they fit (name it with --only)")
    parser.add_argument("--budget", type=float, default=0, metavar="SECONDS", help="begin no row after this long")
    parser.add_argument("--dry", action="store_true", help="tiny shapes in Triton's interpreter, no times")
    return parser.parse_args(argv)


def restrict(run: Run, names: set[str]) -> set[str]:
    """Keep only what is named, sort by sort: naming a shape says nothing about patterns. Returns the names nothing has.

    Dense attention is always measured: it is what the others are held against.
    """
    shapes, patterns, sparse = {s.name for s in run.shapes}, set(run.patterns), {i.name for i in run.sparse}
    if names & shapes:
        run.shapes = tuple(s for s in run.shapes if s.name in names)
    if names & (patterns | {"dense"}):
        run.patterns = tuple(p for p in run.patterns if p in names)
    if names & sparse:
        run.sparse = tuple(i for i in run.sparse if i.name in names)
    return names - shapes - patterns - sparse - {"dense"}


def execute(run: Run) -> None:
    """All rows, the most important shapes first."""
    run.dense, run.sparse = _present(run, run.dense), _present(run, run.sparse)
    for shape in run.shapes:
        if not run.over:
            _measure_shape(run, shape)
        if run.device == "cuda":
            torch.cuda.empty_cache()


def _present(run: Run, impls: tuple[Impl, ...]) -> tuple[Impl, ...]:
    reasons = {impl.name: impl.missing() for impl in impls}
    for name, reason in reasons.items():
        if reason is not None:
            run.results.without(name, "", reason)
            print(f"{name}: {reason}", flush=True)
    return tuple(i for i in impls if reasons[i.name] is None)


def _measure_shape(run: Run, shape: Shape) -> None:
    q, k, v = inputs.captured(run.captured, shape, run.dtype, run.device) if run.captured else inputs.structured(shape, run.dtype, run.device)
    rows = sampled_rows(shape.count, run.device)
    truth = Truth(rows, exact_rows(q, k, v, rows, shape.width**-0.5))
    whole = Case(shape, "dense", 1.0, q, k, v)
    best: dict[bool, float] = {}
    for backward in (False, True):
        found = [m for impl in (*run.dense, *run.whole) if (m := _try(run, impl, whole, backward, rows))]
        times = [m.ms for m in found if m.ms is not None and not m.impl.ours] + run.dense_times(shape, backward)
        if times:
            best[backward] = min(times)
        for m in found:  # written once the best is known
            _keep(run, m, whole, best.get(backward), truth, backward)
    for case in _cases(run, shape, q, k, v):
        assert case.mask is not None
        truth.masked = exact_rows(q, k, v, rows, case.scale, case.mask.plan)
        for backward in (False, True):
            if backward and (case.pattern, case.density) not in run.backward:
                continue
            for impl in run.sparse:
                if m := _try(run, impl, case, backward, rows):
                    _keep(run, m, case, best.get(backward), truth, backward)


def _cases(run: Run, shape: Shape, q: Tensor, k: Tensor, v: Tensor) -> Iterator[Case]:
    for pattern in run.patterns:
        last = -1.0
        for density in run.densities:
            if run.over:
                return
            try:
                mask = masks.make(pattern, density, shape, q, k)
            except masks.NoPlan as reason:
                run.results.without(pattern, shape.name, str(reason))
                break
            if mask.density == last:
                run.results.without(pattern, f"{shape.name} {density:g}", f"it reads no less than {last:.3f} here")
                continue
            last = mask.density
            yield Case(shape, pattern, density, q, k, v, mask)


def _try(run: Run, impl: Impl, case: Case, backward: bool, rows: Tensor) -> Measured | None:
    """One implementation on one case; None, with the reason kept, where it does not run."""
    if run.over or (backward and not impl.backward):
        return None
    label = _label(case, backward)
    if run.known(impl.name, case, backward):
        return None
    try:
        call = _gradient(impl, case) if backward else impl.prepare(case)
        out = call()
        sample = None if backward else out[:, :, rows].float()
        del out
        if run.protocol is None:
            return Measured(impl, sample)
        peak = peak_megabytes(call)
        timing = milliseconds(call, run.protocol)
        return Measured(impl, sample, timing.median, timing.p90, peak, timing.calls)
    except Unfit as reason:
        run.results.without(impl.name, label, str(reason))
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        run.results.without(impl.name, label, "out of memory")
    except Exception as error:  # a rival may fail in any way: its reason is the result
        text = (str(error).strip().splitlines() or [""])[0]
        run.results.without(impl.name, label, f"{type(error).__name__}: {text}")
    print(f"{label}: {impl.name}: {run.results.absent[f'{impl.name}: {label}']}", flush=True)
    return None


def _label(case: Case, backward: bool) -> str:
    """A case as the list of what was not measured names it."""
    return f"{case.shape.name} {case.pattern} {case.density:g}{' backward' if backward else ''}"


def _gradient(impl: Impl, case: Case) -> Call:
    """The backward pass alone: the graph is made once and kept."""
    q, k, v = (x.detach().requires_grad_() for x in (case.q, case.k, case.v))
    out = impl.prepare(replace(case, q=q, k=k, v=v))()
    if not out.requires_grad:
        raise Unfit("it has no gradient")
    upstream = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, (q, k, v), upstream, retain_graph=True)[0]


def _keep(run: Run, m: Measured, case: Case, dense_ms: float | None, truth: Truth, backward: bool) -> None:
    mask, shape = case.mask, case.shape
    density = m.impl.own_density(case) if m.impl.own_density is not None else (1.0 if mask is None else mask.density)
    speedup = None if m.ms is None or dense_ms is None else dense_ms / m.ms
    row = Row(
        impl=f"{m.impl.name}: backward" if backward else m.impl.name,
        shape=shape.name,
        pattern=case.pattern,
        density=density,
        ms=m.ms,
        dense_ms=dense_ms,
        speedup=speedup,
        tflops=None if m.ms is None else shape.dense_flops * density * (BACKWARD if backward else 1.0) / m.ms * 1e-9,
        efficiency=None if speedup is None else speedup * density,
        imbalance=imbalance(mask.plan, shape.heads, run.processors) if m.impl.ours and mask is not None else None,
        rel_l2=None if m.sample is None else relative_l2(m.sample, truth.dense),
        peak_mb=m.peak_mb,
    )
    judged = m.sample is not None and mask is not None and m.impl.same_mask
    error = relative_l2(m.sample, truth.masked) if judged else None  # type: ignore[arg-type]
    run.results.add(row, p90_ms=m.p90_ms, calls=m.calls, wanted_density=case.density, same_mask_rel_l2=error)
    print(_line(row, error), flush=True)


def _line(row: Row, error: float | None) -> str:
    """One row for the terminal."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    speed = f"{number(row.ms, '.3f'):>9} ms {number(row.speedup, '.2f'):>6}x  E {number(row.efficiency, '.2f'):>4} {number(row.tflops, '.0f'):>5} TFLOP/s"
    errors = f"to dense {number(row.rel_l2, '.1e')}, to its mask {number(error, '.1e')}"
    return f"{row.shape:13} {row.pattern:6} {row.density:5.3f} {row.impl:30} {speed}  {errors}"


if __name__ == "__main__":
    sys.exit(main())
