"""DDPM self-attention bucketing: what noise a real picture is shown with while its features are read.

Source: DiffUHaul (arXiv 2406.01594), which reads a real picture's features without inverting it: the clean latent is noised to the level of the
step. Steps are grouped into buckets; each bucket has a noise of its own, and features are read once for all steps of a bucket.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import LoomError


@dataclass(frozen=True)
class Buckets:
    """count: of buckets, 0 for one per step; seed: of all noises but the first bucket's, which is the sampler's own; fresh: each bucket has a noise
    of its own (the paper), or all have the sampler's (ours: what the result began with).
    """

    count: int = 0
    seed: int = 0
    fresh: bool = True

    def check(self, steps: int) -> None:
        """Raises LoomError where there are more buckets than steps."""
        if self.count > steps:
            raise LoomError(f"{self.count} buckets and {steps} steps were given; a bucket holds at least one step, so give at most {steps}, or 0 for one per step.")

    def number(self, step: int, steps: int) -> int:
        """Bucket of a step, both from 0."""
        return min(step, steps - 1) if self.count == 0 else min(step, steps - 1) * self.count // steps

    def held(self, steps: int) -> bool:
        """Whether features are kept for more than one evaluation."""
        return 0 < self.count < steps

    def noise(self, bucket: int, first: Tensor) -> Tensor:
        """Noise of a bucket in the shape of ``first`` [1, ...], the sampler's own noise, which is that of bucket 0."""
        if bucket == 0 or not self.fresh:
            return first
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + bucket) % 2**63)
        return torch.randn(first.shape, generator=generator).to(first)
