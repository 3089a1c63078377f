"""Radial attention: each frame reads its neighbours whole and ever narrower bands of frames ever farther away.

One mask for all heads, layers and steps; O(n log n) of the pairs. The block rule (B tokens per block, s tokens per frame,
d frames apart, bits(x) the number of binary digits of x, L(d) = 2^(bits(s) - bits(d))):

1. frame 0 (the sink, if wanted) and d <= 1: the whole frame pair;
2. L(d) < 128: the pair is dropped unless d is a multiple of int(128 / L(d));
3. else block a of the query frame reads block b of the key frame where |a - b| <= floor(max(decay L(d), B) / B + 1/6).

Frames are padded to whole blocks, so the rule holds at every resolution: blocks never straddle frames.
Source: Radial Attention, arXiv 2506.19852; ``specs``: radial (c).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from ..blocks import BlockPlan
from ..builders import from_bool
from ..order import Grid, best_tile, by_frame, by_tile
from .base import GeometryPattern, Tokens, with_free

THIN_BELOW = 128
"""Bands narrower than this many tokens are read on some frames only. The published results use it for every block size."""


@dataclass(frozen=True)
class Radial(GeometryPattern):
    """decay: width of the bands; the paper's lie in (0, 1], beyond 1 they widen on up to whole frames. sink: every frame reads frame 0 whole.

    spatial: "raster" reads the blocks next in reading order, which are full-width stripes of the frame; "tiles" cuts frames
    into tiles and reads as many of the nearest ones.
    """

    name: ClassVar[str] = "radial"
    needs_grid: ClassVar[bool] = True

    decay: float = 0.2
    sink: bool = True
    spatial: Literal["raster", "tiles"] = "raster"

    def __post_init__(self) -> None:
        if not 0 < self.decay < math.inf:
            raise ValueError(f"the decay of radial is {self.decay}; expected a number above 0, usually at most 1")
        if self.spatial not in ("raster", "tiles"):
            raise ValueError(f"spatial of radial is {self.spatial!r}; expected 'raster' or 'tiles'")

    @property
    def label(self) -> str:
        sink, tiles = "_sink" if self.sink else "", "_tiles" if self.spatial == "tiles" else ""
        return f"{self.name}_b{self.block}_d{self.decay:.2f}{sink}{tiles}"

    def make(self, tokens: Tokens, device: str) -> BlockPlan:
        assert tokens.grid is not None
        frames, per_frame = tokens.grid[0], tokens.grid[1] * tokens.grid[2]
        far = reach(frames, per_frame, self.block, self.decay, self.sink)
        if self.spatial == "raster":
            order = by_frame(tokens.count, self.block, tokens.grid, tokens.start, device)
            rank = _raster_steps(-(-per_frame // self.block))
            grid_mask = rank[None, :, None, :] <= far[:, None, :, None]
        else:
            tile = best_tile(tokens.grid, self.block)
            order = by_tile(tokens.count, self.block, tokens.grid, tokens.start, tile, device)
            steps = _raster_steps(order.grid_blocks // frames)
            budget = (steps[None] <= np.arange(-1, len(steps))[:, None, None]).sum(-1)  # [reach + 1, block]: what raster reads
            grid_mask = _tile_ranks(tokens.grid, tile)[None, :, None, :] < budget[far + 1].transpose(0, 2, 1)[:, :, :, None]
        mask = torch.zeros(order.blocks, order.blocks, dtype=torch.bool)
        mask[: order.grid_blocks, : order.grid_blocks] = torch.from_numpy(grid_mask.reshape(order.grid_blocks, -1))
        mask = with_free(mask, order, order)
        return from_bool(mask.to(device), order, order, tail=self.tail, capacity=int(mask.sum()))


def reach(frames: int, per_frame: int, block: int, decay: float, sink: bool) -> np.ndarray:
    """int [F, F]: how many blocks away inside a key frame the blocks of a query frame read; -1 = the pair is dropped."""
    whole = -(-per_frame // block) - 1
    by_distance = []
    for d in range(frames):
        width = 2.0 ** (per_frame.bit_length() - d.bit_length())
        if d <= 1:
            by_distance.append(whole)
        elif width < THIN_BELOW and d % int(THIN_BELOW / width):
            by_distance.append(-1)
        else:
            by_distance.append(min(whole, math.floor(max(decay * width, block) / block + 1 / 6)))
    index = np.arange(frames)
    out = np.array(by_distance)[np.abs(index[:, None] - index[None, :])]
    if sink:
        out[:, 0] = whole
    return out


def _raster_steps(blocks: int) -> np.ndarray:
    """int [blocks, blocks]: how many blocks apart two blocks of a frame are in reading order."""
    index = np.arange(blocks)
    return np.abs(index[:, None] - index[None, :])


def _tile_ranks(grid: Grid, tile: Grid) -> np.ndarray:
    """int [tiles, tiles]: the how-many-th nearest each tile of a frame is to each other, by distance of their origins."""
    y, x = np.meshgrid(np.arange(0, grid[1], tile[1]), np.arange(0, grid[2], tile[2]), indexing="ij")
    y, x = y.ravel(), x.ravel()
    apart = (y[:, None] - y[None, :]) ** 2 + (x[:, None] - x[None, :]) ** 2
    return apart.argsort(-1, kind="stable").argsort(-1, kind="stable")


def main() -> None:
    """Draw the mask of a short video with some text behind it."""
    from .draw import draw_main

    draw_main(Radial(block=64), Tokens(18 * 20 * 32 + 100, (18, 20, 32)))


if __name__ == "__main__":
    main()
