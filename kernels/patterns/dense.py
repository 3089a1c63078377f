"""Every block: what attention is without a pattern. A yardstick for tests and benchmarks of the machinery itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..blocks import BlockPlan
from ..builders import from_bool
from ..order import by_frame, raster
from .base import GeometryPattern, Tokens


@dataclass(frozen=True)
class Dense(GeometryPattern):
    """Reads all blocks, frames padded to whole blocks where there is a grid."""

    name: ClassVar[str] = "dense"

    @property
    def label(self) -> str:
        return f"{self.name}_b{self.block}"

    def make(self, tokens: Tokens, device: str) -> BlockPlan:
        order = raster(tokens.count, self.block, device) if tokens.grid is None else by_frame(tokens.count, self.block, tokens.grid, tokens.start, device)
        return from_bool(torch.ones(order.blocks, order.blocks, dtype=torch.bool, device=device), order, order, tail=self.tail)


def main() -> None:
    """Draw it: a full square."""
    from .draw import draw_main

    draw_main(Dense(block=64), Tokens(4 * 12 * 20 + 77, (4, 12, 20), 77))


if __name__ == "__main__":
    main()
