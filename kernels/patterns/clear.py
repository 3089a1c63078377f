"""CLEAR: every token reads a circle around itself, on a video an ellipsoid, and all free tokens.

The grid is cut into tiles, one per block; a pair of tiles is read whole where its farthest corners are inside the radius, is
tested pair by pair where only its nearest ones are, and is left out otherwise. Without the tiles a row of a picture would
make a block, and most of what is computed would lie outside of the circle.
Source: CLEAR, arXiv 2412.16112; ``specs``: clear (c), (d). The published pictures need weights trained with the window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ..blocks import BlockPlan, Window
from ..builders import from_bool
from ..order import Grid, best_tile, by_tile
from .base import GeometryPattern, Tokens, with_free


@dataclass(frozen=True)
class Clear(GeometryPattern):
    """radius: in tokens; a pair is read when dy^2 + dx^2 < radius^2, strictly.

    frame_radius: on a video, how far the window reaches in frames: dy^2 + dx^2 + (dt radius / frame_radius)^2 < radius^2.
    None: all frames, the window is a tube. tile: (t, h, w) or None for the flat one that wastes least. trained: the model
    was trained with this window, so dense attention is no stand-in for it (:attr:`BlockPlan.approximate`).
    """

    name: ClassVar[str] = "clear"
    needs_grid: ClassVar[bool] = True

    radius: float = 16.0
    frame_radius: float | None = None
    tile: Grid | None = None
    trained: bool = False

    def __post_init__(self) -> None:
        for what, value in (("radius", self.radius), ("frame_radius", self.frame_radius)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"the {what} of clear is {value}; expected a number above 0")
        if self.tile is not None and (min(self.tile) < 1 or math.prod(self.tile) > self.block):
            raise ValueError(f"the tile of clear is {' x '.join(map(str, self.tile))}; expected at least 1 x 1 x 1 and at most {self.block} tokens")

    @property
    def label(self) -> str:
        frames = "" if self.frame_radius is None else f"_f{self.frame_radius:g}"
        tile = "" if self.tile is None else "_t" + "x".join(map(str, self.tile))
        return f"{self.name}_b{self.block}_r{self.radius:g}{frames}{tile}" + ("_trained" if self.trained else "")

    @property
    def window(self) -> Window:
        """The test on pairs.

        A token exactly frame_radius frames away is outside. radius / frame_radius is seldom exact, so it is raised by more
        than any backend rounds in fp32; no pair is moved across the border by that unless it lies within 1e-6 of it.
        """
        return Window(self.radius, 0.0 if self.frame_radius is None else self.radius / self.frame_radius * (1 + 2**-22))

    def make(self, tokens: Tokens, device: str) -> BlockPlan:
        assert tokens.grid is not None
        tile = self.tile or best_tile(tokens.grid, self.block)
        order = by_tile(tokens.count, self.block, tokens.grid, tokens.start, tile, device)
        some, whole = (torch.zeros(order.blocks, order.blocks, dtype=torch.bool) for _ in range(2))
        own = order.grid_blocks
        some[:own, :own], whole[:own, :own] = map(torch.from_numpy, inside(self.window, tokens.grid, tile))
        whole = with_free(whole, order, order)
        partial = some & ~whole
        most = int(max(whole.sum(), partial.sum()))
        return from_bool(
            whole.to(device), order, order, partial=partial.to(device), test=self.window, tail=self.tail,
            approximate=not self.trained, capacity=most,
        )  # fmt: skip


def inside(window: Window, grid: Grid, tile: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(some, all) bool [tiles, tiles]: whether any, and whether every pair of tokens of two tiles is in the window.

    Tiles are boxes of whole tokens, so the nearest and the farthest pair are corners and the answer is exact.
    """
    scales = (window.frame_scale, 1.0, 1.0)
    near, far = zip(*(_distances(n, size, scale) for n, size, scale in zip(grid, tile, scales, strict=True)), strict=True)
    limit = window.radius**2
    tiles = math.prod(len(axis) for axis in near)
    some, whole = np.empty((tiles, tiles), bool), np.empty((tiles, tiles), bool)
    row = 0
    for t in range(len(near[0])):  # one row of tiles at a time: all distances at once would be eight bytes per block
        for y in range(len(near[1])):
            rows = slice(row, row + len(near[2]))
            for out, (dt, dy, dx) in ((some, near), (whole, far)):
                square = dt[t][None, :, None, None] + dy[y][None, None, :, None] + dx[:, None, None, :]
                out[rows] = (square < limit).reshape(len(dx), tiles)
            row = rows.stop
    return some, whole


def _distances(tokens: int, size: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """(nearest, farthest) float64 [tiles, tiles]: squared distances along an axis of ``tokens`` cut into tiles of ``size``."""
    first = np.arange(0, tokens, size, dtype=np.float64)
    last = np.minimum(first + size, tokens) - 1
    near = np.maximum(0, np.maximum(first[None, :] - last[:, None], first[:, None] - last[None, :]))
    far = np.maximum(last[None, :] - first[:, None], last[:, None] - first[None, :])
    return (scale * near) ** 2, (scale * far) ** 2


def main() -> None:
    """Draw the mask of a picture with some text in front."""
    from .draw import draw_main

    draw_main(Clear(block=64, radius=12), Tokens(48 * 64 + 77, (1, 48, 64), 77))


if __name__ == "__main__":
    main()
