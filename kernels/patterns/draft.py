"""Draft attention: a small copy of the attention, tile by tile, says which tiles to read at full size.

Frames are cut into tiles of h x w tokens, one per block. Mean queries and keys of the tiles give the draft

    A = softmax over grid tiles of (scale <mean q, mean k> + log n),   n live tokens of the key tile,

and the largest entries of A are read. The log n keeps tiles at the edges, which hold fewer tokens, from counting as much as
whole ones; on whole tiles it changes nothing. Chosen anew for each batch row, head, layer and step; nothing is remembered.
Source: DraftAttention, arXiv 2505.14708; ``specs``: draft (c).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..blocks import BlockPlan, TokenOrder
from ..builders import from_bool
from ..order import best_tile, by_tile
from ..selection import global_mask, topk_mask
from .base import Pattern, Situation, Tokens, with_free
from .pooled import block_means

BYTES = 128 * 2**20
"""Temporaries of the draft: heads are taken a few at a time."""


@dataclass(frozen=True)
class Draft(Pattern):
    """sparsity: share of the tile pairs that is dropped, in [0, 1).

    tile: (h, w), or None for the one that wastes least. scope: "head" compares the tile pairs of a whole head, so rows where
    much matters read more; "row" lets every row read the same number.
    """

    name: ClassVar[str] = "draft"
    reads: ClassVar[Literal["geometry", "q and k", "history"]] = "q and k"
    needs_grid: ClassVar[bool] = True

    sparsity: float = 0.75
    tile: tuple[int, int] | None = None
    scope: Literal["head", "row"] = "head"

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"the sparsity of draft is {self.sparsity}; expected a share from 0 (dense) to below 1")
        if self.scope not in ("head", "row"):
            raise ValueError(f"the scope of draft is {self.scope!r}; expected 'head' or 'row'")
        if self.tile is not None and (min(self.tile) < 1 or math.prod(self.tile) > self.block):
            raise ValueError(f"the tile of draft is {self.tile[0]} x {self.tile[1]}; expected at least 1 x 1 and at most {self.block} tokens")

    @property
    def label(self) -> str:
        tile = "" if self.tile is None else f"_t{self.tile[0]}x{self.tile[1]}"
        return f"{self.name}_b{self.block}_s{self.sparsity:.2f}{tile}" + ("_row" if self.scope == "row" else "")

    def blocks(self, s: Situation) -> BlockPlan:
        self.check(s.tokens)
        assert s.tokens.grid is not None
        tile = best_tile(s.tokens.grid, self.block) if self.tile is None else (1, *self.tile)
        order = by_tile(s.tokens.count, self.block, s.tokens.grid, s.tokens.start, tile, str(s.q.device))
        mask = torch.zeros(*s.q.shape[:2], order.blocks, order.blocks, dtype=torch.bool, device=s.q.device)
        mask[..., : order.grid_blocks, : order.grid_blocks] = self._select(s, order)
        mask |= torch.eye(order.blocks, dtype=torch.bool, device=mask.device)  # a row may have none of the largest
        return from_bool(with_free(mask, order, order), order, order, tail=self.tail)

    @torch.no_grad()
    def _select(self, s: Situation, order: TokenOrder) -> Tensor:
        """bool [B, H, tiles, tiles] of the largest entries of the draft."""
        tiles, heads = order.grid_blocks, s.q.shape[1]
        q_mean = block_means(s.q, order, tiles)
        k_mean = block_means(s.k, order, tiles).repeat_interleave(heads // s.k.shape[1], dim=1)
        step = max(1, BYTES // (3 * 4 * tiles * tiles * s.q.shape[0]))
        parts = []
        for h in range(0, heads, step):
            scores = draft(q_mean[:, h : h + step], k_mean[:, h : h + step], order.valid[:tiles], s.scale)
            if self.scope == "row":
                parts.append(topk_mask(scores, tiles - int(self.sparsity * tiles + 1e-9 * tiles)))
            else:
                parts.append(global_mask(scores, self.sparsity))
        return torch.cat(parts, 1)


def draft(q_mean: Tensor, k_mean: Tensor, live: Tensor, scale: float) -> Tensor:
    """fp32 [B, H, S, S]: the draft of the attention, from the means [B, H, S, D] of S tiles with ``live`` [S] tokens each."""
    return torch.softmax(scale * q_mean @ k_mean.transpose(-1, -2) + live.float().log(), -1)


def main() -> None:
    """Draw the mask of a made-up call on six frames of 480 x 832 pixels, which do not divide into whole tiles."""
    from .draw import draw_main

    draw_main(Draft(block=64), Tokens(6 * 30 * 52 + 100, (6, 30, 52)))


if __name__ == "__main__":
    main()
