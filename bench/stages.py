"""The stages of ``bench/gpu_all.py``: what each runs, how long it may, and what a reader is told at the end."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from . import architectures, checks, decay, end_to_end, goals, kernels, overhead, report, specialised, variants
from .host import HostMissing
from .impls import Impl, our_dense, our_impls
from .measure import SHORT
from .provenance import ROOT
from .results import Results
from .rivals import rivals
from .shapes import SHAPES, TINY

GOAL_SHAPES = ("wan14b-480p", "hunyuan-720p", "flux-4096", "wan14b-720p")
"""Head width 128 and at least 32,000 tokens, the cheapest first."""
ROLES = "loom, specialised"


@dataclass(frozen=True)
class Session:
    """What a stage is given. until: nothing is begun after this moment of the monotonic clock."""

    results: Results
    out: Path
    until: float
    dry: bool

    @property
    def device(self) -> str:
        """Where tensors live."""
        return "cpu" if self.dry else "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """The interpreter's bf16 is wrong, so a rehearsal takes fp16."""
        return torch.float16 if self.dry else torch.bfloat16


@dataclass(frozen=True)
class Stage:
    """name: for ``--only``. seconds: its time limit. run: does the work; raises :class:`Skipped` where it has no meaning here.
    tables: where its rows go, so that they can be forgotten."""

    name: str
    title: str
    seconds: float
    run: Callable[[Session], None]
    tables: tuple[str, ...] = ()


class Skipped(Exception):
    """The stage cannot run on this machine; the message says why."""


def run(stage: Stage, path: Path, seconds: float, dry: bool) -> int:
    """One stage in this process; 0, whatever it found. What it measured and how far it came is in the file at ``path``."""
    began = time.monotonic()
    results = Results.resume(path)
    session = Session(results, path.parent, float("inf") if dry else began + seconds, dry)
    if not dry:
        _tune(path.parent)
    try:
        stage.run(session)
        state = "done" if time.monotonic() <= session.until else "out of time"
    except (Skipped, HostMissing) as reason:
        state = f"skipped: {reason}"
        print(state, flush=True)
    before = results.stages.get(stage.name, {})
    results.stages[stage.name] = before | {"state": state, "seconds": round(time.monotonic() - began, 1)}
    results.write()
    return 0


def _tune(out: Path) -> None:
    """Launch settings for a GPU the shipped table does not know: measured once, then read."""
    from ..kernels.triton.candidates import measure_missing
    from ..kernels.triton.tuning import use_directory

    use_directory(out / "tuning")
    for width in (64, 128):
        found = measure_missing(width, torch.bfloat16, torch.device("cuda"))
        if found is not None:
            print(f"settings for head width {width}: {found}", flush=True)


# --- are the numbers right ------------------------------------------------------------------------------------------------


def numerics(s: Session) -> None:
    """Every check; one that was finished before is not repeated."""
    _run_checks(s, "numerics", checks.all_checks(checks.TINY if s.dry else checks.FULL, s.device))


def _run_checks(s: Session, stage: str, wanted: Iterator[tuple[str, Callable[[], Iterator[checks.Finding]]]]) -> None:
    state = s.results.stages.setdefault(stage, {"state": "begun"})
    finished: list[str] = state.setdefault("finished", [])
    for name, check in wanted:
        if name in finished or time.monotonic() > s.until:
            continue
        try:
            for f in check():
                s.results.put("checks", name=f"{name}: {f.name}", value=f.value, limit=f.limit, ok=f.ok)
                print(f"{'ok    ' if f.ok else 'BROKEN'} {name}: {f.name} {f.value:.3g} (limit {f.limit:.3g})", flush=True)
        except Exception as error:  # a launch may fail in any way, and the other checks still have something to say
            text = (str(error).strip().splitlines() or [""])[0]
            s.results.put("checks", name=name, ok=False, error=f"{type(error).__name__}: {text}")
            print(f"BROKEN {name}: {type(error).__name__}: {text}", flush=True)
        finished.append(name)
        s.results.write()


def tests(s: Session) -> None:
    """The kernel tests on the GPU, if pytest is there."""
    if s.dry:
        raise Skipped("a rehearsal does not run the test suite inside itself")
    if importlib.util.find_spec("pytest") is None:
        raise Skipped("pytest is not installed; the checks stand alone")
    log_path = s.out / "tests.txt"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "attention_loom").symlink_to(ROOT)
        command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "tests" / "pytest.ini"), "-q", "--maxfail=20", "-p", "no:cacheprovider"]
        command += ["--continue-on-collection-errors", *_in_parallel(), str(ROOT / "tests" / "kernels")]
        environment = {**os.environ, "LOOM_GPU": "1", "PYTHONPATH": folder}
        with log_path.open("w", encoding="utf8") as log:
            try:
                status = subprocess.run(
                    command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=max(1.0, s.until - time.monotonic()), check=False
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                status = None
    last = (log_path.read_text(encoding="utf8").strip().splitlines() or [""])[-1]
    s.results.put("tests", name="kernels", ok=None if status is None else status == 0, said="out of time" if status is None else last)
    print(f"tests: {'out of time' if status is None else last}", flush=True)


def _in_parallel() -> list[str]:
    """Several workers where pytest-xdist is there: most of the time goes into compiling on the CPU."""
    return ["-n", str(max(1, min(12, (os.cpu_count() or 1) - 2)))] if importlib.util.find_spec("xdist") is not None else []


# --- kernels --------------------------------------------------------------------------------------------------------------


def kernel_benchmark(s: Session) -> None:
    """Ours, dense and FlexAttention at the densities of the goals, forward and, at 10 %, backward."""
    named = {shape.name: shape for shape in SHAPES}
    sparse = tuple(i for i in (*_ours(s), *rivals()) if i.name in ("loom", "loom, plan reused", "loom, int8_qk", "loom, int8_qk_fp8_pv", ROLES, "flex"))
    run = kernels.Run(
        s.results, None if s.dry else SHORT, s.device, s.dtype, TINY[:1] if s.dry else tuple(named[n] for n in GOAL_SHAPES), ("random",),
        (0.25,) if s.dry else (0.25, 0.1, 0.05, 0.5), sparse=sparse[:1] if s.dry else sparse, whole=_ours(s, our_dense()), until=s.until, backward=frozenset({("random", 0.1)}),
    )  # fmt: skip
    kernels.execute(run)


def _ours(s: Session, found: list[Impl] | None = None) -> tuple[Impl, ...]:
    """Ours, the kernel with roles only if its own stage found it sound: one that stands still would cost the stage its rows."""
    return tuple(i for i in (our_impls() if found is None else found) if i.name != ROLES or specialised.sound(s.results))


def sweep(s: Session) -> None:
    """All shapes, patterns and rivals, as far as the time goes."""
    if s.dry:
        raise Skipped("the kernel benchmark was rehearsed already")
    kernels.execute(kernels.Run(s.results, SHORT, s.device, s.dtype, SHAPES, sparse=(*_ours(s), *rivals()), whole=_ours(s, our_dense()), until=s.until))


def decays(s: Session) -> None:
    """UltraViCo at three and four times the trained length."""
    clips, protocol = (decay.TINY, None) if s.dry else (decay.CLIPS, SHORT)
    decay.measure(s.results, clips, s.device, s.dtype, s.until, protocol, roles=specialised.sound(s.results))


def overheads(s: Session) -> None:
    """Lists and permutation beside the call."""
    named = {shape.name: shape for shape in SHAPES}
    shapes = TINY[:1] if s.dry else tuple(named[n] for n in GOAL_SHAPES)
    overhead.measure(s.results, shapes, s.device, s.dtype, s.until, None if s.dry else SHORT)


def roles(s: Session) -> None:
    """The kernel with roles for its warp groups: right, and faster than the shipped one?"""
    if not s.dry and not specialised.available(torch.device("cuda")):
        raise Skipped("only Hopper has its matrix instruction, or this Triton lacks the dialect it is written in")
    _run_checks(s, specialised.STAGE, specialised.all_checks(checks.TINY if s.dry else checks.FULL, s.device))
    specialised.measure(s.results, s.device, s.dtype, s.until, s.dry)


def settings(s: Session) -> None:
    """Candidates for the shipped table."""
    variants.measure(s.results, s.device, s.dtype, s.until, s.dry)


# --- models ---------------------------------------------------------------------------------------------------------------


def model(a: architectures.Architecture) -> Callable[[Session], None]:
    """The stage of one model."""
    return lambda s: end_to_end.measure(s.results, a.tiny() if s.dry else a, s.device, s.until, s.dry)


_LIMITS = {"wan14b-720p": 170.0, "hunyuan-720p": 260.0, "wan1.3b-480p-3x": 60.0}

STAGES = (
    Stage("numerics", "accuracy, determinism, no NaN, memory", 180, numerics, ("checks",)),
    Stage(specialised.STAGE, "the kernel with roles for its warp groups", 150, roles, (specialised.TABLE,)),
    Stage("tests", "the kernel tests on the GPU", 300, tests, ("tests",)),
    Stage("kernels", "kernel benchmark at the densities of the goals", 420, kernel_benchmark),
    Stage("decay", "UltraViCo against FlexAttention and the chunked path", 200, decays, (decay.TABLE,)),
    Stage("overhead", "list building and permutation", 40, overheads, (overhead.TABLE,)),
    Stage("settings", "candidates for the launch settings", 150, settings, (variants.TABLE,)),
    *(Stage(f"model {a.name}", f"one step of {a.title}", _LIMITS.get(a.name, 80.0), model(a)) for a in architectures.ARCHITECTURES),
    Stage("sweep", "all shapes, patterns and rivals", 7200, sweep),
)
"""In the order they run: whether the numbers are right comes before how fast they are."""


def forget(results: Results, name: str) -> None:
    """Drop what a stage has, so that it runs anew."""
    stage = next(s for s in STAGES if s.name == name)
    results.stages.pop(name, None)
    for table in stage.tables:
        results.tables.pop(table, None)
    if name == specialised.STAGE:
        rows = results.tables.get("checks", [])
        rows[:] = [r for r in rows if not r["name"].startswith(name)]
    if name.startswith("model "):
        rows = results.tables.get(end_to_end.TABLE, [])
        rows[:] = [r for r in rows if r["model"] != name.removeprefix("model ")]
    if name in ("kernels", "sweep"):
        results.rows.clear()
        results.details.clear()
        results.absent.clear()


# --- the outcome ----------------------------------------------------------------------------------------------------------


def problems(results: Results) -> list[str]:
    """What is broken, as sentences. A goal that is missed is no defect: it is in the table of goals."""
    found = [f"{r['name']}: {r.get('error') or _beyond(r)}" for r in results.tables.get("checks", ()) if not r["ok"]]
    found += [f"kernel tests: {r['said']}" for r in results.tables.get("tests", ()) if r["ok"] is False]
    found += [f"stage {name}: {s['state']}" for name, s in results.stages.items() if str(s.get("state")).startswith(("failed", "killed"))]
    return found


def _beyond(row: dict) -> str:
    return f"{row['value']:.3g}, the limit is {row['limit']:.3g}"


def summarise(results: Results, out: Path) -> str:
    """Write ``summary.md``; returns one line for the terminal."""
    broken, document = problems(results), results.document()
    lines = ["# GPU session", "", *([f"- {p}" for p in broken] or ["All checks that ran are within their limits."]), ""]
    lines += ["| stage | | seconds |", "|---|---|---:|"]
    lines += [f"| {name} | {s.get('state', '')} | {s.get('seconds', '')} |" for name, s in results.stages.items()]
    lines += ["", report.section(document)]
    (out / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf8")
    verdicts = [v for v in goals.verdicts(document) if v.met is not None]
    met = sum(bool(v.met) for v in verdicts)
    return f"{len(broken)} broken; goals met: {met} of {len(verdicts)} measured cases" if broken or verdicts else "all checks within their limits"
