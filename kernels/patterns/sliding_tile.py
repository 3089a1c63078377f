"""Sliding tile attention: every tile of a video reads the box of tiles around it, whole.

The grid is cut into tiles of (t, y, x) tokens, one per block. A query tile reads the window of (wt, wy, wx) tiles centred on
it; at the borders the window is shifted inwards, so every tile reads equally many. There are no partly read blocks: the
window moves by whole tiles, which is what makes it cheaper than a window around each token.
Source: Sliding Tile Attention, arXiv 2502.04507.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..blocks import BlockPlan
from ..builders import from_bool
from ..caching import remembered
from ..order import Grid, by_tile
from .base import GeometryPattern, Tokens, with_free


@dataclass(frozen=True)
class SlidingTile(GeometryPattern):
    """window: (t, y, x) in tiles. tile: (t, y, x) in tokens, or None for a compact one that wastes little.

    A window longer than the grid along an axis takes the whole axis.
    """

    name: ClassVar[str] = "sliding_tile"
    needs_grid: ClassVar[bool] = True

    window: Grid = (3, 3, 3)
    tile: Grid | None = None

    def __post_init__(self) -> None:
        if len(self.window) != 3 or min(self.window) < 1:
            raise ValueError(f"the window of sliding_tile is {_by(self.window)} tiles; expected three numbers of at least 1")
        if self.tile is not None and (len(self.tile) != 3 or min(self.tile) < 1 or math.prod(self.tile) > self.block):
            raise ValueError(f"the tile of sliding_tile is {_by(self.tile)}; expected at least 1 x 1 x 1 and at most {self.block} tokens")

    @property
    def label(self) -> str:
        tile = "" if self.tile is None else "_t" + "x".join(map(str, self.tile))
        return f"{self.name}_b{self.block}_w{'x'.join(map(str, self.window))}{tile}"

    def make(self, tokens: Tokens, device: str) -> BlockPlan:
        assert tokens.grid is not None
        tile = self.tile or compact_tile(tokens.grid, self.block)
        order = by_tile(tokens.count, self.block, tokens.grid, tokens.start, tile, device)
        t, y, x = (_reads(-(-n // size), w) for n, size, w in zip(tokens.grid, tile, self.window, strict=True))
        box = t[:, None, None, :, None, None] & y[None, :, None, None, :, None] & x[None, None, :, None, None, :]
        mask = torch.zeros(order.blocks, order.blocks, dtype=torch.bool)
        mask[: order.grid_blocks, : order.grid_blocks] = box.reshape(order.grid_blocks, order.grid_blocks)
        mask = with_free(mask, order, order)
        return from_bool(mask.to(device), order, order, tail=self.tail, capacity=int(mask.sum()))


def _reads(tiles: int, window: int) -> Tensor:
    """bool [tiles, tiles] along one axis: which tiles each tile reads, always min(window, tiles) of them."""
    window = min(window, tiles)
    index = torch.arange(tiles)
    first = (index - window // 2).clamp(0, tiles - window)
    return (index >= first[:, None]) & (index < first[:, None] + window)


@remembered(8)
def compact_tile(grid: Grid, block: int) -> Grid:
    """The tile (t, h, w) with t*h*w <= block of least padded area + 0.1 log2(longest side / shortest side).

    Sides of one token count where the grid has no more along that axis: a picture has flat tiles.
    """
    best, tile = math.inf, (1, 1, 1)
    for t in range(1, min(grid[0], block) + 1):
        for h in range(1, min(grid[1], block // t) + 1):
            for w in range(1, min(grid[2], block // (t * h)) + 1):
                sides = [side for side, n in zip((t, h, w), grid, strict=True) if n > 1] or [1]
                padded = math.prod(-(-n // side) for n, side in zip(grid, (t, h, w), strict=True)) * block / math.prod(grid)
                cost = padded + 0.1 * math.log2(max(sides) / min(sides))
                if cost < best - 1e-12:
                    best, tile = cost, (t, h, w)
    return tile


def _by(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def main() -> None:
    """Draw the mask of a short video with some text behind it."""
    from .draw import draw_main

    draw_main(SlidingTile(block=64), Tokens(16 * 24 * 40 + 100, (16, 24, 40)))


if __name__ == "__main__":
    main()
