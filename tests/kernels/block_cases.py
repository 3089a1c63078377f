"""Block plans for the case table: awkward orders, ragged blocks, every element test, empty rows, head groups."""

from __future__ import annotations

import torch
from attention_loom.kernels import (
    Bits,
    BlockPlan,
    TokenOrder,
    block_list,
    by_frame,
    by_tile,
    from_bool,
    raster,
)
from torch import Tensor

GRID = (3, 5, 7)
START = 4  # tokens before the grid; those behind it are free as well


def _g(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(2000 + seed)


def orders(kind: str, n_q: int, n_k: int, block: int, device: str) -> tuple[TokenOrder, TokenOrder]:
    """raster: any sizes. frame, tile: a grid of 105 tokens from token 4 on, on both sides."""
    if kind == "raster":
        return raster(n_q, block, device), raster(n_k, block, device)
    if kind == "frame":
        return by_frame(n_q, block, GRID, START, device), by_frame(n_k, block, GRID, START, device)
    return by_tile(n_q, block, GRID, START, (1, 4, 5), device), by_tile(n_k, block, GRID, START, (1, 4, 5), device)


def chosen(groups: int, q: TokenOrder, k: TokenOrder, density: float, seed: int = 0) -> Tensor:
    return (torch.rand(groups, q.blocks, k.blocks, generator=_g(seed)) < density).to(q.perm.device)


def sparse(s, device, *, order="raster", block=32, density=0.5, groups=1, test=None, share=0.6, tail="off", per_batch=False, free=False) -> BlockPlan:
    """Random blocks; with ``test`` a share of them partial. groups > 1: a list set per head, or per batch element and head.

    free: the rows of free tokens read everything but block 1.
    """
    q, k = orders(order, s.n_q, s.keys, block, device)
    mask = chosen(groups, q, k, density)
    mask[:, q.grid_blocks if free else q.blocks :] = torch.arange(k.blocks, device=device) != 1
    head_map = torch.arange(groups, dtype=torch.int32).view(s.batch if per_batch else 1, -1).to(device)
    if test is None:
        return from_bool(mask, q, k, head_map=head_map, tail=tail)
    partial = chosen(groups, q, k, share, seed=1) & mask
    return from_bool(mask & ~partial, q, k, partial=partial, test=test, head_map=head_map, tail=tail)


def packed(s, device, *, order="frame", block=32, groups=2, inverted=False) -> BlockPlan:
    """Partial blocks by packed bits, a few masks shared by many blocks."""
    q, k = orders(order, s.n_q, s.keys, block, device)
    partial = chosen(groups, q, k, 0.5, seed=3)
    words = torch.randint(-(2**31), 2**31, (3, block, block // 32), generator=_g(4)).to(torch.int32).to(device)
    ids = torch.arange(int(partial.sum()), dtype=torch.int32, device=device) % 3
    return from_bool(chosen(groups, q, k, 0.3, seed=5) & ~partial, q, k, partial=partial, test=Bits(words, ids, inverted))


def empty_rows(s, device) -> BlockPlan:
    """Block rows 0 and 2 read nothing: builders would not make such a plan, the kernels must still survive it."""
    q, k = orders("raster", s.n_q, s.keys, 32, device)
    mask = chosen(1, q, k, 0.6)
    mask[:, 0::2] = False
    return BlockPlan(q, k, block_list(mask), torch.zeros(1, 1, dtype=torch.int32, device=device))
