"""The forward kernel with roles for its warp groups, held against the shipped one: first whether it is right, then how fast it is.

A stage of its own, because the kernel has never met a GPU: should it stand still, the stage is ended by its time limit and nothing else
is lost. Other stages use it only where this one has found it sound (:func:`sound`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..kernels.attend import attend
from ..kernels.patterns.base import Tokens
from ..kernels.patterns.clear import Clear
from ..kernels.plan import AttentionPlan, Modulation
from ..kernels.reference import reference_attend
from ..kernels.triton import launch
from ..kernels.triton.candidates import SPECIALISED, SPECIALISED_FOR_PAIRS
from ..kernels.triton.launch import architecture
from ..kernels.triton.op import flags_of
from ..kernels.triton.settings import Settings, settings
from ..kernels.triton.specialised_launch import runs_on
from ..kernels.triton.tuning import trial
from . import checks, decay, inputs, masks
from .measure import relative_l2
from .results import Results
from .shapes import Shape
from .variants import try_each

STAGE = TABLE = "specialised"
TRIED = (
    Settings(128, 128, 8, 2, "specialised"),
    SPECIALISED,
    Settings(128, 128, 8, 3, "specialised"),
    Settings(128, 128, 8, 3, "specialised persistent"),
    SPECIALISED_FOR_PAIRS,
)
D128 = Shape("d128", "head width 128", 24, 128, (8, 32, 64))
TEXT = Shape("d128-text", "head width 128, 256 free tokens", 24, 128, (8, 32, 63), 256)
SMALL = Shape("d128-64", "head width 128, blocks of 64", 24, 128, (8, 32, 64), block=64)
D64 = Shape("d64", "head width 64", 24, 64, (8, 32, 64))
CLIP = decay.Clip(Shape("clip", "a clip of three times the trained length", 24, 128, (24, 26, 26)), 8)
IMAGE = Shape("image", "2048 x 2048 with text", 24, 128, (1, 128, 128), 512)
TINY = Shape("d64", "head width 64", 1, 64, (2, 8, 8), block=64)


def available(device: torch.device) -> bool:
    """Whether the kernel can run here."""
    return runs_on(architecture(device))


def sound(results: Results) -> bool:
    """Whether this stage came to its end and found nothing wrong."""
    rows = [r for r in results.tables.get("checks", ()) if r["name"].startswith(STAGE)]
    return results.stages.get(STAGE, {}).get("state") == "done" and bool(rows) and all(r["ok"] for r in rows)


def all_checks(size: checks.Size, device: str) -> Iterator[tuple[str, Callable[[], Iterator[checks.Finding]]]]:
    """The checks of accuracy and of batch layouts with the kernel in place of the shipped one."""
    for s in (TRIED[0], TRIED[3]):
        for dtype in (d for d in size.dtypes if d != torch.float32):
            for width in size.widths:
                label = f"{STAGE}: {s.variant}, {s.stages} stages, {str(dtype).removeprefix('torch.')} d{width}"
                yield label, partial(_with, s, partial(checks.numerics, size, device, dtype, width), device)
    yield f"{STAGE}: rules for pairs", partial(_with, TRIED[4], partial(rules, size, device), device)
    yield f"{STAGE}: batch layouts", partial(_with, TRIED[3], partial(checks.layouts, size, device), device)


def rules(size: checks.Size, device: str) -> Iterator[checks.Finding]:
    """What looks at single pairs, against the oracle: UltraViCo's decay, CLEAR's window, a bias and factors of heads."""
    dtype, width = size.dtypes[0], size.widths[-1]
    side = math.isqrt(size.tokens)
    clip = decay.Clip(Shape("clip", "", size.heads, width, (8, 1, size.tokens // 8)), 3)
    scale = torch.linspace(0.8, 1.2, size.heads, device=device)
    bias = torch.randn(1, size.heads, size.tokens, generator=torch.Generator().manual_seed(3)).to(device)
    plans = {
        "decay": AttentionPlan(modulation=decay.modulation(clip, device)),
        "window": AttentionPlan(blocks=Clear(radius=side / 4, block=size.block).plan(Tokens(size.tokens, (1, side, side)), device)),
        "bias and factors": AttentionPlan(key_bias=bias, modulation=Modulation(scale=scale, center_keys=True)),
    }
    for name, plan in plans.items():
        q, k, v = checks.tensors(size, device, dtype, width)
        o, lse = attend(q, k, v, plan, backend="triton", return_lse=True)
        want, want_lse = reference_attend(q.double(), k.double(), v.double(), plan, return_lse=True)
        yield checks.Finding(f"{name}: output", relative_l2(o, want), checks.ALLOWED[dtype].output)
        yield checks.Finding(f"{name}: log-sum-exp", float((lse - want_lse).abs().max()), checks.ALLOWED[dtype].lse)


def _with(s: Settings, check: Callable[[], Iterator[checks.Finding]], device: str) -> Iterator[checks.Finding]:
    """What ``check`` finds under the settings, and whether the kernel was launched at all."""
    launched, inner = [], launch.launch_specialised

    def counted(*args: Any) -> None:
        launched.append(args)
        inner(*args)

    launch.launch_specialised = counted  # type: ignore[assignment]
    try:
        with trial(s):
            yield from check()
    finally:
        launch.launch_specialised = inner
    if device == "cuda":
        yield checks.Finding("another kernel was launched instead", float(not launched), 0.0)


def cases(device: str, dtype: torch.dtype, dry: bool) -> Iterator[tuple[str, list[Tensor], AttentionPlan]]:
    """(name, q k v, plan), what matters most first."""
    if dry:
        q, k, v = inputs.random(TINY, dtype, device)
        yield "random 0.5", [q, k, v], AttentionPlan(blocks=masks.make("random", 0.5, TINY, q, k).plan)  # type: ignore[union-attr]
        return
    for shape, wanted in (
        (D128, (("dense", 1.0), ("random", 0.25), ("random", 0.1), ("random", 0.05), ("window", 0.1), ("radial", 0.1))),
        (TEXT, (("random", 0.1),)),
        (SMALL, (("random", 0.25), ("random", 0.1), ("radial", 0.1))),
        (D64, (("dense", 1.0), ("random", 0.1))),
    ):
        q, k, v = inputs.random(shape, dtype, device)
        for pattern, density in wanted:
            blocks = None if pattern == "dense" else masks.make(pattern, density, shape, q, k).plan
            yield f"{shape.name} {pattern} {density:g}", [q, k, v], AttentionPlan(blocks=blocks)
    q, k, v = inputs.random(IMAGE, dtype, device)
    yield "image, CLEAR radius 24", [q, k, v], AttentionPlan(blocks=Clear(radius=24).plan(IMAGE.tokens, device))
    q, k, v = inputs.random(CLIP.shape, dtype, device)
    yield "clip, UltraViCo", [q, k, v], AttentionPlan(modulation=decay.modulation(CLIP, device))
    yield "clip, dense", [q, k, v], AttentionPlan()


def measure(results: Results, device: str, dtype: torch.dtype, until: float, dry: bool = False) -> None:
    """Time of the shipped settings and of each tried one in every case, with how far the output is from the shipped one's."""
    for name, (q, k, v), plan in cases(device, dtype, dry):
        if time.monotonic() > until:
            return
        blocks = (plan.blocks.q.block, plan.blocks.k.block) if plan.blocks is not None else (128, 128)  # type: ignore[union-attr]
        shipped = settings(architecture(q.device), q.shape[-1], q.element_size(), flags_of(plan), *blocks)
        call = partial(attend, q, k, v, plan, backend="triton")
        with trial(shipped):
            want = call().float()  # type: ignore[union-attr]
        try_each(results, TABLE, name, {"case": name}, (shipped, *TRIED), shipped, call, want, until, dry)
