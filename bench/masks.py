"""Block plans of a wanted density: random rows, radial, window, and the top-k of q and k."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..kernels.blocks import BlockPlan
from ..kernels.builders import from_bool
from ..kernels.order import raster
from ..kernels.patterns.base import Moment, Situation, Tokens
from ..kernels.patterns.radial import Radial
from ..kernels.patterns.sla_topk import SlaTopk
from ..kernels.patterns.sliding_tile import SlidingTile, compact_tile
from ..kernels.plan import AttentionPlan
from .shapes import Shape

PATTERNS = ("random", "radial", "window", "topk")
DENSITIES = (0.5, 0.25, 0.1, 0.05)


class NoPlan(Exception):
    """The pattern has no meaning for the shape; the message says why."""


@dataclass(frozen=True, eq=False)
class Mask:
    """A plan, the block map it was built from (bool [G, nQ, nK]) and, for windows, the window in tokens (t, y, x)."""

    plan: BlockPlan
    kept: Tensor
    density: float
    window: tuple[int, int, int] | None = None

    def rebuilt(self) -> BlockPlan:
        """The plan made anew from the block map: what a pattern that changes from step to step pays each time."""
        p = self.plan
        return from_bool(self.kept, p.q, p.k, head_map=p.head_map, tail=p.tail, capacity=int(p.full.col.shape[0]))


def make(pattern: str, density: float, shape: Shape, q: Tensor, k: Tensor) -> Mask:
    """A plan of ``pattern`` whose density is as near to ``density`` as its parameters allow. Raises :class:`NoPlan`."""
    plan, window = _MAKERS[pattern](density, shape, q, k)
    kept = plan.kinds() != 0
    return Mask(plan, kept, float(plan.density()), window)


Made = tuple[BlockPlan, tuple[int, int, int] | None]


def _random(density: float, shape: Shape, q: Tensor, k: Tensor) -> Made:
    """Equally many blocks in each row, drawn for each head: no locality for a cache to use, no imbalance."""
    order = raster(shape.count, shape.block, str(q.device))
    generator = torch.Generator(q.device).manual_seed(1)
    scores = torch.rand(shape.heads, order.blocks, order.blocks, device=q.device, generator=generator)
    each = max(1, round(density * order.blocks))
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, scores.topk(each, dim=-1).indices, True)
    return from_bool(mask, order, order, capacity=int(mask.sum())), None


def _radial(density: float, shape: Shape, q: Tensor, k: Tensor) -> Made:
    if shape.grid[0] < 3:
        raise NoPlan("radial reads everything where there are fewer than three frames")
    device = str(q.device)

    def at(decay: float) -> BlockPlan:
        return Radial(decay=decay, block=shape.block).plan(shape.tokens, device)

    low, high = 1e-3, 64.0  # density rises with the decay
    for _ in range(16):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if float(at(middle).density()) < density else (low, middle)
    return _nearest((at(low), at(high)), density), None


def _window(density: float, shape: Shape, q: Tensor, k: Tensor) -> Made:
    tile = compact_tile(shape.grid, shape.block)
    tiles = tuple(-(-n // size) for n, size in zip(shape.grid, tile, strict=True))
    windows = itertools.product(*(range(1, n + 1) for n in tiles))
    best = min(((t, y, x) for t, y, x in windows), key=lambda w: _misfit(w, tiles, density))
    plan = SlidingTile(window=best, tile=tile, block=shape.block).plan(shape.tokens, str(q.device))
    t, y, x = (min(n, w * size) for n, w, size in zip(shape.grid, best, tile, strict=True))
    return plan, (t, y, x)


def _misfit(window: tuple[int, ...], tiles: tuple[int, ...], density: float) -> float:
    """How far a window is from the density, and a little from reading the same share of every axis."""
    shares = [w / n for w, n in zip(window, tiles, strict=True)]
    share = shares[0] * shares[1] * shares[2]
    return abs(share - density) / density + 0.1 * (max(shares) - min(shares))


def _topk(density: float, shape: Shape, q: Tensor, k: Tensor) -> Made:
    pattern = SlaTopk(keep=density, diagonal=False, first_frame=False, block=shape.block)
    tokens = shape.tokens
    situation = Situation(tokens, Moment(), q, k, q, AttentionPlan(), shape.width**-0.5, False)
    return pattern.blocks(situation), None


def _nearest(plans: Iterable[BlockPlan], density: float) -> BlockPlan:
    return min(plans, key=lambda plan: abs(float(plan.density()) - density))


_MAKERS: dict[str, Callable[[float, Shape, Tensor, Tensor], Made]] = {"random": _random, "radial": _radial, "window": _window, "topk": _topk}


def everything(shape: Shape, device: str) -> BlockPlan:
    """All blocks: dense attention through the sparse kernel."""
    order = raster(shape.count, shape.block, device)
    return from_bool(torch.ones(order.blocks, order.blocks, dtype=torch.bool, device=device), order, order)


@cache
def tokens_label(tokens: Tokens) -> str:
    """``32760 (21x30x52)``, with text as ``+ 256``."""
    grid = "" if tokens.grid is None else f" ({'x'.join(map(str, tokens.grid))}{f' + {tokens.free}' if tokens.free else ''})"
    return f"{tokens.count}{grid}"
