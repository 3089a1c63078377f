"""A window on the place inside a frame: a token reads the tokens near its own place, in every frame.

For a picture, or without a grid, that is a 1-D window on the token number; windows are clipped at the ends of a frame, not
shifted. Source: the masks of Re-ttention, arXiv 2505.22918; ``specs``: Re-ttention (c).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..blocks import Band, BlockPlan
from ..builders import from_bool
from ..order import Grid, best_tile, by_frame, by_tile
from .base import GeometryPattern, Tokens, with_free


@dataclass(frozen=True)
class FrameBand(GeometryPattern):
    """density: width of the window as a share of the frame, in (0, 1].

    spatial: "raster" is the window itself, with a test for every pair at its rim; "tiles" reads whole blocks only: each tile
    of a frame reads the tile at its own place in every frame, whatever the density.
    """

    name: ClassVar[str] = "band"

    density: float = 0.03125
    spatial: Literal["raster", "tiles"] = "raster"

    def __post_init__(self) -> None:
        if not 0.0 < self.density <= 1.0:
            raise ValueError(f"the density of band is {self.density}; expected a number above 0 and at most 1")
        if self.spatial not in ("raster", "tiles"):
            raise ValueError(f"spatial of band is {self.spatial!r}; expected 'raster' or 'tiles'")

    @property
    def label(self) -> str:
        return f"{self.name}_b{self.block}_" + (f"d{self.density:.4f}" if self.spatial == "raster" else "tiles")

    def make(self, tokens: Tokens, device: str) -> BlockPlan:
        grid, start = _grid(tokens), tokens.start if tokens.grid else 0
        if self.spatial == "tiles":
            order = by_tile(tokens.count, self.block, grid, start, best_tile(grid, self.block), device)
            tiles = order.grid_blocks // grid[0]
            whole, some = torch.eye(tiles, dtype=torch.bool).repeat(grid[0], grid[0]), None
        else:
            order = by_frame(tokens.count, self.block, grid, start, device)
            one_whole, one_some = _frame_pair(grid[1] * grid[2], self.block, self.half_width(tokens))
            whole, some = one_whole.repeat(grid[0], grid[0]), one_some.repeat(grid[0], grid[0])
        free = order.blocks - order.grid_blocks
        mask = with_free(torch.nn.functional.pad(whole, (0, free, 0, free)), order, order)
        if some is None:
            return from_bool(mask.to(device), order, order, tail=self.tail, capacity=int(mask.sum()))
        partial = torch.nn.functional.pad(some, (0, free, 0, free))
        return from_bool(
            mask.to(device), order, order, partial=partial.to(device), test=Band(self.half_width(tokens)),
            tail=self.tail, capacity=max(int(mask.sum()), int(partial.sum())),
        )  # fmt: skip

    def half_width(self, tokens: Tokens) -> int:
        """How far a token reads to either side inside a frame."""
        _, y, x = _grid(tokens)
        return math.floor(y * x * self.density + 1e-9) // 2


def pairs(tokens: Tokens, half_width: int) -> int:
    """How many pairs the window admits, those of free tokens included."""
    frames, y, x = _grid(tokens)
    n, w, free = y * x, min(half_width, y * x - 1), tokens.count - frames * y * x
    per_frame_pair = n * (2 * w + 1) - w * (w + 1)
    return frames * frames * per_frame_pair + 2 * free * frames * n + free * free


def _grid(tokens: Tokens) -> Grid:
    return tokens.grid or (1, 1, tokens.count)


def _frame_pair(per_frame: int, block: int, half: int) -> tuple[Tensor, Tensor]:
    """(blocks admitted whole, blocks admitted in part) of one frame against another: bool [blocks, blocks] each."""
    first = torch.arange(0, per_frame, block)
    last = (first + block).clamp(max=per_frame) - 1
    nearest = torch.maximum(first[:, None] - last[None, :], first[None, :] - last[:, None]).clamp(min=0)
    farthest = torch.maximum(last[:, None] - first[None, :], last[None, :] - first[:, None])
    return farthest <= half, (nearest <= half) & (farthest > half)


def main() -> None:
    """Draw the window of a short video with some text in front of it."""
    from .draw import draw_main

    draw_main(FrameBand(block=64, density=0.125), Tokens(5 * 16 * 24 + 100, (5, 16, 24), 100))


if __name__ == "__main__":
    main()
