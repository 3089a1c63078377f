"""What a sparse call pays before it multiplies anything: building the lists of a ready block map, and bringing K and V into place order.

Measured apart from the call, on windows (the pattern that moves every token), and held against the whole call that does both.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels.attend import attend
from ..kernels.lists import launch_order, work_lists
from ..kernels.plan import AttentionPlan
from ..kernels.triton.launch import choose, place_keys
from . import inputs, masks
from .measure import SHORT, Protocol, milliseconds
from .results import Results
from .shapes import Shape

TABLE = "overhead"
DENSITIES = (0.1, 0.25)


def measure(results: Results, shapes: tuple[Shape, ...], device: str, dtype: torch.dtype, until: float, protocol: Protocol | None = SHORT) -> None:
    """A row for each shape and density. protocol None: the code runs and nothing is timed."""
    for shape in shapes:
        missing = [density for density in DENSITIES if f"{shape.name} {density:g}" not in results.names(TABLE)]
        if not missing or time.monotonic() > until:
            continue
        q, k, v = inputs.random(shape, dtype, device)
        for density in missing:
            mask = masks.make("window", density, shape, q, k)
            row: dict[str, object] = {"name": f"{shape.name} {density:g}", "shape": shape.name, "tokens": shape.count, "density": mask.density}
            row |= _times(_calls(shape, mask, q, k, v), protocol)
            results.put(TABLE, **row)
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def _times(calls: dict[str, Callable[[], object]], protocol: Protocol | None) -> dict[str, float]:
    if protocol is None:
        for call in calls.values():
            call()
        return {}
    took = {name: milliseconds(call, protocol).median for name, call in calls.items()}
    return took | {"share": (took["lists_ms"] + took["permutation_ms"]) / took["call_ms"]}


def _calls(shape: Shape, mask: masks.Mask, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], object]]:
    """The whole call, and the two parts of it that come before the kernel."""

    def whole() -> object:
        return attend(q, k, v, AttentionPlan(blocks=mask.rebuilt()), backend="triton")

    def lists() -> object:
        plan = mask.rebuilt()
        s = choose(q, (), False, (plan.q.block, plan.k.block))
        found = work_lists(AttentionPlan(blocks=plan), shape.count, shape.count, s.block_m, s.block_n)
        assert found is not None
        return launch_order(found, 1, shape.heads, found.block_q // s.block_m)

    def permutation() -> object:
        order = mask.plan.k
        return place_keys(k, v, order.perm, order.blocks, order.block, pool=False)

    return {"call_ms": whole, "lists_ms": lists, "permutation_ms": permutation}
