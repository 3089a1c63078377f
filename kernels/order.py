"""Orders of the tokens: raster, whole frames padded to blocks, and spatial or space-time tiles.

Every order puts the grid first and the free tokens (text, references, anything that is not the generated picture or video)
behind it in blocks of their own, so a block never holds both and never straddles two frames of a video.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .blocks import TokenOrder
from .caching import remembered

Grid = tuple[int, int, int]


@remembered(8)
def raster(tokens: int, block: int, device: str = "cpu") -> TokenOrder:
    """Tokens as they stand, the last block padded: for masks without geometry. No token is on a grid."""
    places = torch.arange(tokens)
    return _finish(tokens, block, places, torch.full((tokens,), -1), torch.tensor([], dtype=torch.long), None, device, identity=True)


@remembered(8)
def by_frame(tokens: int, block: int, grid: Grid, start: int, device: str = "cpu") -> TokenOrder:
    """Each frame in raster order, padded with dead places to whole blocks; then the free tokens.

    tokens: N. grid (T, Y, X) at tokens ``start`` to ``start + T*Y*X``.
    """
    frames, per_frame = grid[0], grid[1] * grid[2]
    blocks = -(-per_frame // block)
    f, p = torch.arange(frames)[:, None], torch.arange(per_frame)[None, :]
    places = (f * blocks * block + p).flatten()
    return _with_free(tokens, block, places, torch.arange(frames).repeat_interleave(blocks), grid, start, device)


@remembered(8)
def by_tile(tokens: int, block: int, grid: Grid, start: int, tile: Grid, device: str = "cpu") -> TokenOrder:
    """Tiles of ``tile`` (t, y, x) tokens, one per block; tiles run in raster order, tokens in raster order inside a tile.

    Tiles at the edges hold fewer tokens: the live ones come first. A tile of several frames has no frame id.
    """
    size = math.prod(tile)
    if size > block:
        raise ValueError(f"a tile of {tile[0]} x {tile[1]} x {tile[2]} tokens does not fit a block of {block}")
    count = [-(-g // t) for g, t in zip(grid, tile, strict=True)]
    axes = torch.meshgrid(*(torch.arange(g) for g in grid), indexing="ij")
    index = torch.zeros(grid, dtype=torch.long)
    rank = torch.zeros(grid, dtype=torch.long)
    for at, g, t, n in zip(axes, grid, tile, count, strict=True):
        which = at // t
        live = torch.minimum(torch.full_like(which, t), g - which * t)
        index, rank = index * n + which, rank * live + at % t
    frame = torch.arange(count[0]).repeat_interleave(count[1] * count[2]) if tile[0] == 1 else torch.full((math.prod(count),), -1)
    return _with_free(tokens, block, (index * block + rank).flatten(), frame, grid, start, device)


def best_tile(grid: Grid, block: int) -> Grid:
    """The tile (1, h, w) with h*w <= block that wastes least: padded area + 0.05 * abs(log2(h/w)) (DraftAttention spec)."""
    _, rows, cols = grid
    best, tile = math.inf, (1, 1, 1)
    for h in range(1, min(rows, block) + 1):
        for w in range(1, min(cols, block // h) + 1):
            cost = -(-rows // h) * -(-cols // w) * block / (rows * cols) + 0.05 * abs(math.log2(h / w))
            if cost < best - 1e-12:
                best, tile = cost, (1, h, w)
    return tile


def _with_free(tokens: int, block: int, grid_places: Tensor, frame: Tensor, grid: Grid, start: int, device: str) -> TokenOrder:
    inside = math.prod(grid)
    if start < 0 or start + inside > tokens:
        raise ValueError(f"a grid of {inside} tokens from token {start} on does not fit {tokens} tokens")
    free = torch.cat([torch.arange(start), torch.arange(start + inside, tokens)])
    places = torch.empty(tokens, dtype=torch.long)
    places[start : start + inside] = grid_places
    places[free] = frame.shape[0] * block + torch.arange(free.shape[0])
    flat = torch.full((tokens,), -1)
    flat[start : start + inside] = torch.arange(inside)
    same = bool((places == torch.arange(tokens)).all())
    return _finish(tokens, block, places, flat, frame, grid, device, identity=same)


def _finish(tokens: int, block: int, places: Tensor, flat: Tensor, frame: Tensor, grid: Grid | None, device: str, identity: bool) -> TokenOrder:
    blocks = max(frame.shape[0], int(places.max()) // block + 1)
    perm = torch.full((blocks * block,), -1)
    perm[places] = torch.arange(tokens)
    pos = torch.full((blocks * block,), -1)
    pos[places] = flat
    frames = torch.full((blocks,), -1)
    frames[: frame.shape[0]] = frame
    valid = (perm >= 0).view(blocks, block).sum(1)

    def to(x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).contiguous().to(device)

    return TokenOrder(
        tokens, block, to(perm, torch.int32), to(places, torch.int32), to(valid, torch.int32), to(frames, torch.int16), to(pos, torch.int32),
        grid, frame.shape[0], identity,
    )  # fmt: skip
