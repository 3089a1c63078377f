"""How far a map of attention is from a mask: the attention loss.

Source: AttenCraft, arXiv 2405.17965, training, and its released code for the numbers: Jensen-Shannon divergence with natural logarithms of softmaxes
over all places. By nature small: 0 for equal maps, 0.028535 for nothing against half of a 32 x 32 frame, 0.110944 for a half against the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .refine import resized, scaled

TINY = 1e-16


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """[n] of distributions [n, N]: ``(sum p log p + sum q log q) / 2 - sum r log r`` with ``r = (p + q) / 2``."""

    def negentropy(x: Tensor) -> Tensor:
        return (x * (x + TINY).log()).sum(-1)

    return 0.5 * (negentropy(p) + negentropy(q)) - negentropy((p + q) / 2)


def from_masks(maps: Tensor, masks: Tensor) -> Tensor:
    """[n]: divergence of what words get of the attention, maps [n, y, x], from their masks [n, Y, X], which are constants. Differentiable in ``maps``."""
    large = scaled(resized(maps, (masks.shape[1], masks.shape[2])))
    target = masks.detach().to(large)
    return jensen_shannon(torch.softmax(large.flatten(1), -1), torch.softmax(target.flatten(1), -1))
