"""A threshold that parts values into two groups."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 256


def otsu(values: Tensor) -> Tensor:
    """The threshold in 0..1 that parts the values into two groups of the largest variance between them (Otsu 1979)."""
    counts = torch.histc(values.float(), BINS, 0.0, 1.0).double()
    centres = (torch.arange(BINS, dtype=torch.float64, device=values.device) + 0.5) / BINS
    below, first = counts.cumsum(0), (counts * centres).cumsum(0)
    above, rest = below[-1] - below, first[-1] - first
    between = below * above * (first / below.clamp_min(1) - rest / above.clamp_min(1)) ** 2
    best = between == between.max()  # empty bins between two groups tie: their middle is taken
    return ((centres * best).sum() / best.sum() + 0.5 / BINS).to(values)
