"""Every block: what attention is without a pattern. A yardstick for tests and benchmarks of the machinery itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from ..blocks import BlockPlan
from ..builders import from_bool
from ..caching import remembered
from ..order import by_frame, raster
from .base import Pattern, Situation, Tokens


@dataclass(frozen=True)
class Dense(Pattern):
    """Reads all blocks, frames padded to whole blocks where there is a grid."""

    name: ClassVar[str] = "dense"
    reads: ClassVar[Literal["geometry", "q and k", "history"]] = "geometry"

    @property
    def label(self) -> str:
        return f"{self.name}_b{self.block}"

    def blocks(self, s: Situation) -> BlockPlan:
        return self.plan(s.tokens, str(s.q.device))

    def plan(self, tokens: Tokens, device: str = "cpu") -> BlockPlan:
        """The plan for ``tokens``, which is all it depends on."""
        self.check(tokens)
        return _plan(self, tokens, device)


@remembered(8)
def _plan(pattern: Dense, tokens: Tokens, device: str) -> BlockPlan:
    order = raster(tokens.count, pattern.block, device) if tokens.grid is None else by_frame(tokens.count, pattern.block, tokens.grid, tokens.start, device)
    return from_bool(torch.ones(order.blocks, order.blocks, dtype=torch.bool, device=device), order, order, tail=pattern.tail)


def main() -> None:
    """Draw it: a full square."""
    from .draw import draw_main

    draw_main(Dense(block=64), Tokens(4 * 12 * 20 + 77, (4, 12, 20), 77))


if __name__ == "__main__":
    main()
