"""Heads grouped by the pattern of their attention: principal components and k-means, both deterministic.

Features per head, 32 x 32 each: the offset map on a log scale with zero mean and unit variance, and how popular each key is
against the mean key, on a log scale.
Li et al., arXiv 2303.13731, summarise patterns by an autoencoder; principal components need no training and give the same
picture each time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

COMPONENTS = 16
ROUNDS = 50


def features(offsets: Tensor, popular: Tensor) -> Tensor:
    """fp64 [n, 2 * 32 * 32] of offset maps and popularity maps [n, 32, 32]."""
    shape = torch.log(1e-6 + offsets.double()).flatten(1)
    shape = shape - shape.mean(1, keepdim=True)
    # a map that is the same everywhere has no direction: it stays 0
    spread = shape.square().mean(1, keepdim=True).sqrt()
    shape = torch.where(spread > 1e-9, shape / spread.clamp(min=1e-9), 0.0)
    keys = popular.double().flatten(1)
    # not by its own spread: where all keys are equally popular that is noise
    keys = torch.log(0.01 + keys / keys.mean(1, keepdim=True).clamp(min=1e-30))
    return torch.cat([shape, keys], 1)


def components(x: Tensor, count: int = COMPONENTS) -> Tensor:
    """The first ``count`` principal components: [n, f] -> [n, min(count, n, f)]. The sign is fixed: the largest weight is positive."""
    x = x - x.mean(0)
    _, _, v = torch.linalg.svd(x, full_matrices=False)
    v = v[:count]
    largest = v.abs().argmax(1, keepdim=True)
    return x @ (v * v.gather(1, largest).sign()).T


@dataclass(frozen=True, eq=False)
class Clusters:
    """of int64 [n]: cluster of each point, numbered by size; medoids int64 [k]: the point nearest to each centre; centres [k, d]."""

    of: Tensor
    medoids: Tensor
    centres: Tensor


def clusters(points: Tensor, k: int, restarts: int = 10, seed: int = 0) -> Clusters:
    """k-means (k-means++ starts, the best of ``restarts``) on [n, d]; at most n clusters, empty ones are left out.

    Deterministic, and independent of the order of the points: they are sorted first.
    """
    n = len(points)
    order = sorted(range(n), key=lambda i: [round(v, 9) for v in points[i].tolist()])
    x = points[order].double()
    make = torch.Generator().manual_seed(seed)
    best: tuple[float, Tensor] | None = None
    for _ in range(restarts):
        found = _lloyd(x, _spread(x, min(k, n), make))
        loss = float((x - found[1][found[0]]).square().sum())
        if best is None or loss < best[0] - 1e-12:
            best = (loss, found[0])
    assert best is not None
    sizes = torch.bincount(best[1])
    kept = [c for c in sizes.argsort(descending=True, stable=True).tolist() if sizes[c]]
    sorted_of = torch.tensor([kept.index(c) for c in best[1].tolist()])
    centres = torch.stack([x[sorted_of == c].mean(0) for c in range(len(kept))])
    medoids = [order[int(torch.where(sorted_of == c, (x - centres[c]).square().sum(1), torch.inf).argmin())] for c in range(len(kept))]
    of = torch.empty(n, dtype=torch.int64)
    of[order] = sorted_of
    return Clusters(of, torch.tensor(medoids), centres)


def _spread(x: Tensor, k: int, make: torch.Generator) -> Tensor:
    """k starting centres, each drawn with a chance that grows with the squared distance to those before."""
    chosen = [int(torch.randint(len(x), (1,), generator=make))]
    for _ in range(k - 1):
        near = (x[:, None] - x[chosen]).square().sum(-1).amin(1)
        if float(near.sum()) <= 0:
            break
        chosen.append(int(torch.multinomial(near / near.sum(), 1, generator=make)))
    return x[chosen].clone()


def _lloyd(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    of = torch.zeros(len(x), dtype=torch.int64)
    for _ in range(ROUNDS):
        of = (x[:, None] - centres).square().sum(-1).argmin(1)
        moved = torch.stack([x[of == c].mean(0) if bool((of == c).any()) else centres[c] for c in range(len(centres))])
        if torch.equal(moved, centres):
            break
        centres = moved
    return of, centres
