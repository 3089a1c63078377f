"""One denoising step of full-size models: stock, with each sparse pattern, and with UltraViCo beyond the trained length.

The host builds the model and samples it (Euler, no guidance: one model call per step); the weights are random and made on the
device, so nothing is downloaded and quality says nothing. The first step of each run warms up and is not counted. The share of
attention is measured too, by events around the host's attention function. Beside each measured speed-up stands the one the formula

    1 / (1 - a + a / s)

predicts from the share ``a`` of attention in the stock step and how many times as fast the attention became, ``s``: as measured by
the kernel benchmark for this call, pattern and density where it has it, otherwise as measured inside the step.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.attach import attach, record_of
from ..core.methods.base import Method
from ..core.methods.sparse import SparseAttention
from ..core.methods.ultravico import UltraViCo
from ..kernels.patterns.fit import Choice
from .architectures import Architecture
from .host import import_host, of_this_host
from .results import Results

TABLE = "models"
DENSITY = 0.2
"""Of the grid's pairs, what the patterns are asked for. Text comes on top."""
SEED = 7


@dataclass(frozen=True)
class Arm:
    """A way to run the step. methods: what is attached, none = stock."""

    name: str
    pattern: str = ""
    methods: tuple[Method, ...] = ()


@dataclass
class Steps:
    """What one run gave. seconds: of each counted step; attention: seconds in attention in each of them."""

    seconds: list[float] = field(default_factory=list)
    attention: list[float] = field(default_factory=list)
    peak_gb: float | None = None
    finite: bool = True


def arms(a: Architecture, dry: bool) -> list[Arm]:
    """Stock first: the others are held against it."""
    found = [Arm("stock")]
    least, backend = (16, "triton") if dry else (8192, "auto")
    for name in a.patterns[:1] if dry else a.patterns:
        choice = Choice(name, DENSITY, block=64 if dry else None)
        found.append(Arm(name, name, (SparseAttention(choice=choice, measure=False, min_tokens=least, backend=backend),)))
    if a.patterns and not dry:
        choice = Choice("sliding_tile", DENSITY)
        found.append(Arm("sliding_tile, flex", "sliding_tile", (SparseAttention(choice=choice, measure=False, min_tokens=least, backend="flex"),)))
    if a.frames:
        found.append(Arm("ultravico", "", (UltraViCo(train_frames=a.frames, backend=backend),)))
        if not dry:
            found.append(Arm("ultravico, flex", "", (UltraViCo(train_frames=a.frames, backend="flex"),)))
    return found


def measure(results: Results, a: Architecture, device: str, until: float, dry: bool = False) -> None:
    """A row for each arm, written as it comes; arms that have one are left. Raises HostMissing where there is no host."""
    wanted = [arm for arm in arms(a, dry) if f"{a.name}: {arm.name}" not in results.names(TABLE)]
    if not wanted or time.monotonic() > until:
        return
    stood_in = import_host(device)
    with torch.inference_mode():
        patcher = build(a, device, torch.float32 if dry else torch.bfloat16)
        inputs = prompt(a, device)
        for arm in wanted:
            if time.monotonic() > until:
                print(f"{a.name}: out of time before {arm.name}", flush=True)
                return
            row: dict[str, Any] = {"name": f"{a.name}: {arm.name}", "model": a.name, "arm": arm.name, "wanted_density": DENSITY if arm.pattern else None}
            if stood_in:
                row["stood_in"] = list(stood_in)
            try:
                row |= _row(results, a, arm, patcher, inputs, device, dry)
            except Exception as error:  # a rival backend may fail in any way: its reason is the result
                text = (str(error).strip().splitlines() or [""])[0]
                row["failed"] = f"{type(error).__name__}: {text}"
                if device == "cuda":
                    torch.cuda.empty_cache()
            results.put(TABLE, **row)
            print(_line(row), flush=True)


def _row(results: Results, a: Architecture, arm: Arm, patcher: Any, inputs: tuple[Any, Any], device: str, dry: bool) -> dict[str, Any]:
    model = patcher
    for method in arm.methods:
        model = attach(model, method)
    steps = run(model, a, inputs, device, timed=not dry)
    row: dict[str, Any] = {"finite": steps.finite, "peak_gb": steps.peak_gb, "steps": len(steps.seconds)}
    record = record_of(model)
    if record is not None and record.last is not None:
        report = record.last.as_dict()
        row["density"] = next(iter(record.last.density.values()), None)
        row["calls"] = {b: sum(c["count"] for c in report["calls"] if c["backend"] == b and c["planned"]) for b in {c["backend"] for c in report["calls"]}}
        row["warnings"] = report["warnings"]
    if dry:
        return row
    row |= {"step_s": median(steps.seconds), "attention_s": median(steps.attention)}
    stock = next((r for r in results.tables.get(TABLE, ()) if r["name"] == f"{a.name}: stock" and "step_s" in r), None)
    if stock is not None and arm.methods:
        row |= compared(row, stock, kernel_speedup(results, a.shape, arm.pattern, row.get("density")))
    return row


def compared(row: dict[str, Any], stock: dict[str, Any], by_kernel: float | None) -> dict[str, Any]:
    """Measured and predicted speed-up of a step over the stock one."""
    share = stock["attention_s"] / stock["step_s"]
    inside = stock["attention_s"] / row["attention_s"]
    s = inside if by_kernel is None else by_kernel
    return {
        "speedup": stock["step_s"] / row["step_s"],
        "attention_share": share,
        "attention_speedup": inside,
        "kernel_speedup": by_kernel,
        "predicted": predicted(share, s),
    }


def predicted(share: float, s: float, dense: float = 0.0) -> float:
    """How many times as fast a run is whose attention, ``share`` of its time, became ``s`` times as fast in all but ``dense`` of the steps."""
    return 1 / (1 - share + share * (dense + (1 - dense) / s))


def kernel_speedup(results: Results, shape: str, pattern: str, density: float | None) -> float | None:
    """What the kernel benchmark of the same file says for the call nearest in density; None where it has none within a fifth."""
    named = {"sliding_tile": "window", "sla_topk": "topk"}.get(pattern, pattern)
    rows = [r for r in results.rows if r.impl == "loom, plan reused" and r.shape == shape and r.pattern == named and r.speedup is not None]
    best = min(rows, key=lambda r: abs(r.density - (density or 0)), default=None)
    if best is None or density is None or abs(best.density - density) > 0.2 * density:
        return None
    assert best.speedup is not None
    return best.speedup * best.density / density


# --- building and running -------------------------------------------------------------------------------------------------


def build(a: Architecture, device: str, dtype: torch.dtype) -> Any:
    """The host's ModelPatcher around the architecture with random weights, made on ``device``."""
    import comfy.model_patcher
    import comfy.supported_models

    config = getattr(comfy.supported_models, a.config)(of_this_host(dict(a.unet)))
    config.set_inference_dtype(dtype, None)
    at = torch.device(device)
    model = config.get_model({}, "", device=at)
    model.to(at)
    fill(model.diffusion_model, at)
    return comfy.model_patcher.ModelPatcher(model, load_device=at, offload_device=at)


def fill(module: torch.nn.Module, device: torch.device) -> None:
    """Seeded weights of ordinary size: matrices by fan-in, norms one, the rest small. One tensor at a time, where it lies."""
    g = torch.Generator(device).manual_seed(SEED)
    for name, p in module.named_parameters():
        if p.ndim >= 2:
            p.data.normal_(0, max(1.0, p[0].numel()) ** -0.5, generator=g)
        elif "norm" in name and name.endswith(("weight", "scale")):
            p.data.fill_(1.0)
        else:
            p.data.normal_(0, 0.02, generator=g)


def prompt(a: Architecture, device: str) -> tuple[Any, Any]:
    """(conditioning, latent) of the host's sampling: random, seeded."""
    g = torch.Generator().manual_seed(SEED)
    more = {"pooled_output": torch.randn(1, a.pooled, generator=g)} if a.pooled else {}
    return [[torch.randn(1, *a.prompt, generator=g), more]], torch.zeros(a.latent)


def run(model: Any, a: Architecture, inputs: tuple[Any, Any], device: str, timed: bool) -> Steps:
    """Sample 1 + ``a.timed`` steps. The time of a step lies between two callbacks, with the device waited for."""
    import comfy.sample

    conditioning, latent = inputs
    out, marks, spent = Steps(), [], []
    noise = comfy.sample.prepare_noise(latent, SEED)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with watched_attention(device if timed else "") as clock:

        def callback(step: int, x0: Tensor, x: Tensor, total: int) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
            spent.append(clock())

        result = comfy.sample.sample(
            model, noise, 1 + a.timed, 1.0, "euler", "simple", conditioning, conditioning, latent, callback=callback, disable_pbar=True, seed=SEED
        )  # fmt: skip
    out.finite = bool(torch.isfinite(result).all())
    if timed:
        out.seconds = [b - a for a, b in itertools.pairwise(marks)]
        out.attention = spent[1:]
    if device == "cuda":
        out.peak_gb = torch.cuda.max_memory_allocated() / 2**30
    return out


@contextlib.contextmanager
def watched_attention(device: str) -> Iterator[Callable[[], float]]:
    """While open, attention of the host is timed by events; yields a function that gives the seconds since it was last asked.

    The host's modules hold the function under a name of their own, so each of them is lent a wrapped one and gets its own back. device "":
    nothing is wrapped and the answer is 0.
    """
    events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
    lent: list[tuple[Any, Any]] = []

    def wrapped(inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def attention(*args: Any, **kwargs: Any) -> Tensor:
            pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            pair[0].record()
            result = inner(*args, **kwargs)
            pair[1].record()
            events.append(pair)
            return result

        return attention

    def clock() -> float:
        seconds = sum(start.elapsed_time(end) for start, end in events) / 1000
        events.clear()
        return seconds

    if device == "cuda":
        found = [m for name, m in list(sys.modules.items()) if name.startswith("comfy.ldm") and "optimized_attention" in vars(m)]
        for module in found:
            lent.append((module, module.optimized_attention))
            module.optimized_attention = wrapped(module.optimized_attention)  # type: ignore[attr-defined]
    try:
        yield clock
    finally:
        for module, own in lent:
            module.optimized_attention = own


def median(values: list[float]) -> float:
    """The middle one; of two the larger."""
    return sorted(values)[len(values) // 2]


def _line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['name']}: {row['failed']}"
    if "step_s" not in row:
        return f"{row['name']}: ran"
    more = f", {row['speedup']:.2f}x, predicted {row['predicted']:.2f}x" if "speedup" in row else ""
    return f"{row['name']}: {row['step_s']:.3f} s, {row['attention_s']:.3f} s of it in attention{more}, peak {row['peak_gb'] or 0:.1f} GiB"
