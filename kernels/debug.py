"""Debug mode, LOOM_DEBUG=1: calls are checked value by value before they run, which waits for the device at each one."""

from __future__ import annotations

import os

from torch import Tensor

from .blocks import BlockPlan
from .check_blocks import check_blocks


class FoundInDebugMode(ValueError):
    """A value that a call must not hold. No other backend would do better, so "auto" does not try one."""


def debugging() -> bool:
    """Whether the environment asks for debug mode."""
    return os.environ.get("LOOM_DEBUG", "") not in ("", "0")


def check_values(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise :class:`FoundInDebugMode` where q, k or v holds NaN or infinity."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        counts = {"NaN": int(x.isnan().sum()), "infinite": int(x.isinf().sum())}
        if any(counts.values()):
            found = " and ".join(f"{n} {what}" for what, n in counts.items() if n)
            raise FoundInDebugMode(f"{name} holds {found} of {x.numel()} values (found in debug mode); look at what ran before this attention call")


def check_plan(blocks: object) -> None:
    """Raise :class:`FoundInDebugMode` where a block plan breaks an invariant; anything else passes."""
    if isinstance(blocks, BlockPlan):
        try:
            check_blocks(blocks)
        except ValueError as error:
            raise FoundInDebugMode(f"{error} (found in debug mode)") from error
