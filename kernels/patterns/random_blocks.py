"""Blocks drawn at random: the yardstick every pattern must beat at the same density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from ..blocks import BlockPlan
from ..builders import from_bool
from ..caching import remembered
from ..order import by_frame, raster
from .base import Pattern, Situation, Tokens, with_free


@dataclass(frozen=True)
class RandomBlocks(Pattern):
    """keep: share of the key blocks each query block reads, its own among them; every head draws for itself. seed: of the draw."""

    name: ClassVar[str] = "random"
    reads: ClassVar[Literal["geometry", "q and k", "history"]] = "geometry"

    keep: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.keep <= 1.0:
            raise ValueError(f"keep of random is {self.keep}; expected a share above 0 and at most 1")

    @property
    def label(self) -> str:
        return f"{self.name}_b{self.block}_k{self.keep:.2f}_s{self.seed}"

    def blocks(self, s: Situation) -> BlockPlan:
        return self.plan(s.tokens, str(s.q.device), s.q.shape[1])

    def plan(self, tokens: Tokens, device: str = "cpu", heads: int = 1) -> BlockPlan:
        """The plan for ``tokens`` and ``heads``, which is all it depends on."""
        return _plan(self, tokens, device, heads)


@remembered(8)
def _plan(pattern: RandomBlocks, tokens: Tokens, device: str, heads: int) -> BlockPlan:
    grid = tokens.grid
    order = raster(tokens.count, pattern.block, device) if grid is None else by_frame(tokens.count, pattern.block, grid, tokens.start, device)
    own = order.grid_blocks or order.blocks
    draw = torch.rand(heads, own, own, generator=torch.Generator().manual_seed(pattern.seed))
    draw.diagonal(dim1=1, dim2=2).fill_(-1.0)
    chosen = draw.argsort(-1).argsort(-1) < max(1, round(pattern.keep * own))
    mask = torch.zeros(1, heads, order.blocks, order.blocks, dtype=torch.bool)
    mask[..., :own, :own] = chosen
    mask = with_free(mask, order, order) if order.grid is not None else mask
    return from_bool(mask.to(device), order, order, tail=pattern.tail)


def main() -> None:
    """Draw it."""
    from .draw import draw_main

    draw_main(RandomBlocks(block=64), Tokens(4 * 12 * 20 + 77, (4, 12, 20), 77))


if __name__ == "__main__":
    main()
