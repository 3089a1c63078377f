"""Top-k blocks by pooled scores: the selector of sparse-linear attention (SLA), without its trained weights.

Each block of queries and keys is pooled to its mean, keys less the mean key of the call, and each query block reads the
floor(keep nK) key blocks, at least one, whose pooled scores are highest; of equal scores the lower column. Every row reads
equally much, whatever q and k hold. Source: SLA, arXiv 2509.24006; ``specs``: sla (c), variant 2. The quality claims of the
paper are for weights trained with it; this is the selection alone, which wants more blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..blocks import BlockPlan, TokenOrder
from ..builders import from_bool
from ..order import by_frame, raster
from ..selection import topk_mask
from .base import Pattern, Situation, Tokens, with_free
from .pooled import block_means


@dataclass(frozen=True)
class SlaTopk(Pattern):
    """keep: share of the key blocks each query block reads, in (0, 1]; what is forced comes on top.

    diagonal: every block reads itself. first_frame: every block of a video reads the first frame. Works without a grid.
    """

    name: ClassVar[str] = "sla_topk"
    reads: ClassVar[Literal["geometry", "q and k", "history"]] = "q and k"

    keep: float = 0.3
    diagonal: bool = True
    first_frame: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep of sla_topk is {self.keep}; expected a share above 0 and at most 1")

    @property
    def label(self) -> str:
        diagonal, first = "_diagonal" if self.diagonal else "", "_first" if self.first_frame else ""
        return f"{self.name}_b{self.block}_k{self.keep:.2f}{diagonal}{first}"

    def blocks(self, s: Situation) -> BlockPlan:
        self.check(s.tokens)
        order = _order(s.tokens, self.block, str(s.q.device))
        own = order.grid_blocks or order.blocks  # free tokens are read anyway and take no places
        mask = torch.zeros(*s.q.shape[:2], order.blocks, order.blocks, dtype=torch.bool, device=s.q.device)
        mask[..., :own, :own] = topk_mask(pooled_scores(s.q, s.k, order, own), max(1, int(self.keep * own + 1e-9)))
        if self.diagonal:
            mask |= torch.eye(order.blocks, dtype=torch.bool, device=mask.device)
        if self.first_frame and s.tokens.grid is not None and s.tokens.grid[0] > 1:
            mask[..., : own // s.tokens.grid[0]] = True
        if order.grid is not None:
            mask = with_free(mask, order, order)
        return from_bool(mask, order, order, tail=self.tail)


def _order(tokens: Tokens, block: int, device: str) -> TokenOrder:
    if tokens.grid is None:
        return raster(tokens.count, block, device)
    return by_frame(tokens.count, block, tokens.grid, tokens.start, device)


@torch.no_grad()
def pooled_scores(q: Tensor, k: Tensor, order: TokenOrder, blocks: int) -> Tensor:
    """fp32 [B, H, blocks, blocks]: mean query times mean key less the mean key of all tokens, for the first ``blocks`` blocks.

    The scale is left out: it does not change an order of rank.
    """
    q_mean = block_means(q, order, blocks)
    k_mean = block_means(k, order, blocks) - k.mean(2, keepdim=True, dtype=torch.float32)
    return q_mean @ k_mean.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(-1, -2)


def main() -> None:
    """Draw the mask of a made-up call on a short video."""
    from .draw import draw_main

    draw_main(SlaTopk(block=64), Tokens(8 * 20 * 32 + 100, (8, 20, 32)))


if __name__ == "__main__":
    main()
