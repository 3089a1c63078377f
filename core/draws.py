"""Which tokens take part at one step, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """What is drawn at one step for one token grid: the same for all layers, heads and halves of guidance, and for every run."""

    seed: int
    step: int
    tokens: int
    scene: int

    def kept(self, masks: Tensor, dropout: float) -> Tensor:
        """Masks bool [S, N] with a share of each one's tokens dropped; a mask that would lose all keeps all."""
        if dropout == 0:
            return masks
        seed = 0
        for part in (self.seed, self.step, self.tokens, self.scene):
            seed = (seed * 1_000_003 + part + 1) % 2**63
        drawn = masks & (torch.rand(masks.shape, generator=torch.Generator().manual_seed(seed)) >= dropout)
        return torch.where(drawn.any(1, keepdim=True), drawn, masks)
