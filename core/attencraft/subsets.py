"""Which concepts a training step shows: all ways to pick some of them, with their probabilities.

Source: AttenCraft, arXiv 2405.17965. Uniform: every non-empty subset alike (a third each for two concepts). Reweighted (the paper names it, its formula is
ours): single concepts in inverse proportion to the attention they get, so that the weaker is seen more often; subsets of several keep the
share they have under uniform sampling, so that equal scores give the uniform scheme again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch

LARGEST = 3
"""Concepts in one prompt at most, but where all are shown together."""
SCHEMES = ("uniform", "reweighted", "all")
Scheme = Literal["uniform", "reweighted", "all"]
FAINT = 1e-8


def subsets(count: int) -> list[tuple[int, ...]]:
    """
    >>> subsets(2)
    [(0,), (1,), (0, 1)]
    """
    return [found for size in range(1, min(count, LARGEST) + 1) for found in combinations(range(count), size)]


def probabilities(scheme: Scheme, count: int, scores: Sequence[float]) -> dict[tuple[int, ...], float]:
    """Probability of each subset. scores: mean attention on each concept, for "reweighted".

    >>> probabilities("reweighted", 2, [0.1, 0.3])[(0,)]
    0.5
    """
    if scheme == "all":
        return {tuple(range(count)): 1.0}
    every = subsets(count)
    each = 1.0 / len(every)
    found = dict.fromkeys(every, each)
    if scheme == "reweighted":
        need = [1.0 / max(score, FAINT) for score in scores]
        found |= {(c,): round(count * each * need[c] / sum(need), 12) for c in range(count)}
    return found


def draw(chances: dict[tuple[int, ...], float], generator: torch.Generator) -> tuple[int, ...]:
    """One subset, in random order."""
    every = list(chances)
    weights = torch.tensor([chances[s] for s in every], dtype=torch.float64)
    picked = every[int(torch.multinomial(weights, 1, generator=generator))]
    order = torch.randperm(len(picked), generator=generator).tolist()
    return tuple(picked[i] for i in order)
