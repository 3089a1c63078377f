"""The launch settings one could choose from, timed on this GPU: what the shipped table is corrected by.

For each head width, block size and density the candidates of :mod:`kernels.triton.candidates` run the same call. A row holds the time and
how far the output is from that of the shipped setting, so a fast way that is wrong is seen as such.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..kernels.attend import attend
from ..kernels.plan import AttentionPlan
from ..kernels.triton.candidates import candidates
from ..kernels.triton.launch import architecture
from ..kernels.triton.settings import Settings, settings
from ..kernels.triton.tuning import trial
from . import inputs, masks
from .measure import Protocol, milliseconds, relative_l2
from .results import Results
from .shapes import Shape

TABLE = "settings"
CASES = (
    (Shape("d128", "head width 128", 24, 128, (8, 32, 64)), (1.0, 0.25, 0.1)),
    (Shape("d128-64", "head width 128, blocks of 64", 24, 128, (8, 32, 64), block=64), (0.25,)),
    (Shape("d64", "head width 64", 24, 64, (8, 32, 64)), (1.0, 0.1)),
)
"""16,384 tokens: enough to fill the GPU, short enough to try everything. What matters most comes first."""
TINY = ((Shape("d64", "head width 64", 1, 64, (2, 8, 8), block=64), (0.5,)),)
BRIEF = Protocol(5, 20, 0.3)


def measure(results: Results, device: str, dtype: torch.dtype, until: float, dry: bool = False) -> None:
    """A row for each candidate and case; what is there already is left."""
    for shape, densities in TINY if dry else CASES:
        q, k, v = inputs.random(shape, dtype, device)
        arch = architecture(q.device)
        sizes = (shape.block, shape.block)
        shipped = settings(arch, shape.width, q.element_size(), (), *sizes)
        # The kernel with roles has a stage of its own (``specialised.py``).
        others = [c for c in candidates(arch, shape.width, q.element_size()) if "specialised" not in c.variant]
        tried = list(dict.fromkeys([shipped, *(c.within(*sizes) for c in others)]))
        for density in densities:
            plan = AttentionPlan(blocks=None if density == 1 else masks.make("random", density, shape, q, k).plan)
            with trial(shipped):
                want = attend(q, k, v, plan, backend="triton").float()  # type: ignore[union-attr]
            call = partial(attend, q, k, v, plan, backend="triton")
            try_each(results, TABLE, f"{shape.name} {density:g}", {"case": shape.name, "density": density}, tried[:3] if dry else tried, shipped, call, want, until, dry)


def try_each(
    results: Results, table: str, case: str, more: dict[str, Any], tried: Sequence[Settings], shipped: Settings,
    call: Callable[[], Any], want: Tensor, until: float, dry: bool,
) -> None:  # fmt: skip
    """A row of ``table`` for each of the settings ``tried`` in one call; want: what the ``shipped`` ones give. more: columns of all rows."""
    for s in tried:
        name = f"{case} {label(s)}"
        if name in results.names(table) or time.monotonic() > until:
            continue
        row = {"name": name, **more, "settings": list(astuple(s)), "shipped": s == shipped, **_tried(s, call, want, dry)}
        results.put(table, **row)
        print(f"{name}: {row.get('ms', row.get('failed', 'ran'))}", flush=True)


def _tried(s: Settings, call: Callable[[], Any], want: Tensor, dry: bool) -> dict[str, object]:
    try:
        with trial(s):
            found: dict[str, object] = {"rel_l2_to_shipped": relative_l2(call(), want)}
            return found if dry else found | {"ms": milliseconds(call, BRIEF).median}
    except Exception as error:  # a candidate may not fit this GPU, and says so
        return {"failed": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"}


def label(s: Settings) -> str:
    """``128x64 w8 s3 ahead``."""
    return f"{s.block_m}x{s.block_n} w{s.warps} s{s.stages}{'' if s.variant == 'plain' else ' ' + s.variant}"
