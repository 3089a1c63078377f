"""Mean queries and keys of blocks for the patterns that choose by them, a few heads at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks import TokenOrder
from ..tail import pool

BYTES = 256 * 2**20
"""Temporaries at a time: the tokens in order, and once more with the dead places cleared."""


@torch.no_grad()
def block_means(x: Tensor, order: TokenOrder, blocks: int) -> Tensor:
    """fp32 [B, H, blocks, D]: means over the live tokens of the first ``blocks`` blocks of ``x [B, H, N, D]``."""
    per_head = 2 * order.padded * x.shape[3] * x.element_size()
    step = max(1, BYTES // (per_head * x.shape[0]))
    return torch.cat([pool(x[:, h : h + step], order)[:, :, :blocks] for h in range(0, x.shape[1], step)], 1)
