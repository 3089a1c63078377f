"""One knob for all patterns: the share of the attention that is computed.

It counts pairs of grid tokens; text and references come on top, since they are read anyway. Patterns that select take it as
it is. Patterns of geometry have a parameter of their own (a band, a radius, a window), which is fitted: the largest setting
whose counted density stays within the share asked for, or the smallest there is. What is computed beyond the share is said.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .. import patterns
from ..blocks import Tail
from ..caching import remembered
from ..order import Grid
from .band import FrameBand
from .base import Pattern, Tokens
from .clear import Clear
from .radial import Radial
from .rettention import Rettention
from .sliding_tile import SlidingTile, compact_tile
from .sparsed import SparseD

NAMES = ["radial", "draft", "adaspa", "sparsed", "rettention", "sla_topk", "clear", "sliding_tile"]
"""In the order users see. "dense" and "random" exist for tests and benchmarks."""

DECAYS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
"""Settings of radial that are tried."""
NEAR = 0.8
"""A sliding window may be this much smaller than the largest that fits, to be more even along the axes."""
STEPS = 20
"""Sizes of sliding windows that are tried."""
UNSAID = 0.1
"""What may be computed beyond the share asked for without a word about it."""


@dataclass(frozen=True)
class Choice:
    """What a user asked for. name: a pattern; density: share of the attention to compute, in (0, 1].

    block: tokens per block, None = 128, or 64 where that wastes less. decay (radial), radius (clear, tokens) and window
    (sliding tile, tokens t, y, x) set the pattern's own parameter; None fits it to the density.
    """

    name: str
    density: float = 0.3
    block: int | None = None
    tail: Tail = "off"
    decay: float | None = None
    radius: float | None = None
    window: tuple[int, int, int] | None = None

    @property
    def kind(self) -> type[Pattern]:
        """The pattern's class."""
        return patterns.PATTERNS[self.name]


@remembered(64)
def fit(choice: Choice, tokens: Tokens) -> tuple[Pattern, str]:
    """(the pattern for these tokens, a line for each reason why more than the density asked for is computed, or "").

    Raises ValueError with one clear sentence where the pattern has no meaning for the tokens.
    """
    pattern, note = _fitted(choice, tokens)
    return pattern, "\n".join(n for n in (note, _forced(choice, tokens)) if n)


def _forced(choice: Choice, tokens: Tokens) -> str:
    """A sentence where the tokens outside of the grid alone are a good part of the attention."""
    always = 0.0 if tokens.grid is None else 1 - (tokens.inside / tokens.count) ** 2
    own_budget = choice.name == "sparsed" and tokens.free > SparseD.keep_context
    if own_budget or always * (1 - choice.density) <= UNSAID:
        return ""
    return f"{100 * always:.0f}% of the pairs belong to text and reference tokens, which are always computed; the density {choice.density:g} counts for the others"


def _fitted(choice: Choice, tokens: Tokens) -> tuple[Pattern, str]:
    kind, block = choice.kind, choice.block or block_size(tokens)
    common: dict[str, Any] = {"block": block, "tail": choice.tail}
    if kind.needs_grid and tokens.grid is None:
        raise ValueError(f"the pattern {choice.name} needs a grid of tokens and this attention has none; choose adaspa, sparsed or sla_topk")
    if choice.name == "rettention":
        base, note = _base(choice, tokens, block)
        return Rettention(base=base, **common), note
    if choice.name == "clear":
        return _clear(choice, tokens, common)
    if choice.name in _GEOMETRY:
        return _geometry(choice, tokens, common)
    return kind(**_share(choice, tokens), **common), ""


def _share(choice: Choice, tokens: Tokens) -> dict[str, Any]:
    """The density as the selecting patterns call it."""
    if choice.name == "dense":
        return {}
    if choice.name in ("draft", "adaspa"):
        return {"sparsity": round(min(1.0 - choice.density, 0.999), 6)}
    if choice.name == "sla_topk" and tokens.grid is not None and tokens.grid[0] > 1:
        # it reads the first frame on top of what it selects
        return {"keep": max(choice.density - 1 / tokens.grid[0], choice.density / 2)}
    return {"keep": choice.density}


def block_size(tokens: Tokens) -> int:
    """128, or 64 where a frame fills whole blocks of 64 but not of 128."""
    if tokens.grid is None:
        return 128
    per_frame = tokens.grid[1] * tokens.grid[2]
    return 64 if per_frame % 64 == 0 and per_frame % 128 else 128


def _base(choice: Choice, tokens: Tokens, block: int) -> tuple[Pattern, str]:
    """What Re-ttention repairs: radial for a video, a window on the place inside the picture otherwise."""
    if tokens.grid is not None and tokens.grid[0] > 2:
        return _fitted(replace(choice, name="radial", block=block, tail="off"), tokens)
    return FrameBand(density=choice.density, block=block), ""


def _geometry(choice: Choice, tokens: Tokens, common: dict[str, Any]) -> tuple[Pattern, str]:
    own, candidates = _GEOMETRY[choice.name](choice, tokens, common)
    return (own, "") if own is not None else _largest_within(choice, tokens, candidates)


def _largest_within(choice: Choice, tokens: Tokens, candidates: Sequence[Callable[[], Pattern]]) -> tuple[Pattern, str]:
    """The last of ``candidates``, in order of density, that computes no more than was asked for on the grid.

    Counted with the others, a reference picture would use up the whole share and leave the picture the least setting there is.
    """
    grid = on_grid(tokens)

    def counted(i: int) -> float:
        return float(candidates[i]().plan(grid).density())  # type: ignore[attr-defined]

    most = bisect_right(range(len(candidates)), choice.density + 1e-6, key=counted)
    if most:
        return candidates[most - 1](), ""
    floor = f"{choice.name} computes {100 * counted(0):.0f}% of the pairs at the least here, more than the density {choice.density:g} asked for"
    return candidates[0](), floor + "; a longer or larger latent lowers it"


def on_grid(tokens: Tokens) -> Tokens:
    """The grid without the tokens before and behind it."""
    return Tokens(tokens.inside, tokens.grid)


def _radial(choice: Choice, tokens: Tokens, common: dict[str, Any]) -> tuple[Pattern | None, Sequence[Callable[[], Pattern]]]:
    assert tokens.grid is not None
    if tokens.grid[0] <= 2:
        raise ValueError(
            f"radial thins pairs of frames and this latent has {tokens.grid[0]} latent frame{'s' * (tokens.grid[0] > 1)}; choose draft, sla_topk or adaspa, or a longer video"
        )
    own = None if choice.decay is None else Radial(decay=choice.decay, **common)
    return own, [partial(Radial, decay=decay, **common) for decay in DECAYS]


def _clear(choice: Choice, tokens: Tokens, common: dict[str, Any]) -> tuple[Pattern, str]:
    """By the share of pairs inside the circle: computed blocks at its rim come on top, and fitting those would shrink the
    circle to a point wherever a tile is larger than the share. So it is said how much they are.
    """
    assert tokens.grid is not None
    if choice.radius is not None:
        return Clear(radius=choice.radius, **common), ""
    _, rows, cols = tokens.grid
    widest = math.ceil(math.hypot(rows, cols)) + 1
    most = bisect_right(range(1, widest + 1), choice.density + 1e-6, key=lambda r: circle_share(r, rows, cols))
    fitted = Clear(radius=float(max(1, most)), **common)
    counted = float(fitted.plan(on_grid(tokens)).density())
    if counted <= choice.density + UNSAID:
        return fitted, ""
    return fitted, f"clear computes {100 * counted:.0f}% of the pairs here, more than the density {choice.density:g} asked for: blocks at the rim of the circle are computed whole"


def circle_share(radius: float, rows: int, cols: int) -> float:
    """Share of the pairs of a rows x cols grid with squared distance below radius squared."""
    dy, dx = np.ogrid[1 - rows : rows, 1 - cols : cols]
    pairs = (rows - abs(dy)) * (cols - abs(dx))
    return float(pairs[dy * dy + dx * dx < radius * radius].sum()) / (rows * cols) ** 2


def _sliding(choice: Choice, tokens: Tokens, common: dict[str, Any]) -> tuple[Pattern | None, Sequence[Callable[[], Pattern]]]:
    assert tokens.grid is not None
    tile = compact_tile(tokens.grid, common["block"])
    tiles = [-(-n // size) for n, size in zip(tokens.grid, tile, strict=True)]
    own = None
    if choice.window is not None:
        own = SlidingTile(window=tuple(max(1, round(w / size)) for w, size in zip(choice.window, tile, strict=True)), **common)  # type: ignore[arg-type]
    return own, [partial(SlidingTile, window=window, **common) for window in _windows(tiles, choice.density)]


def _windows(tiles: list[int], density: float) -> list[Grid]:
    """Windows of up to the share asked for, by size: of those of nearly one size the one that is most even along the axes."""
    every = [(w[0], w[1], w[2]) for w in itertools.product(*(range(1, n + 1) for n in tiles))]
    share = {w: math.prod(w) / math.prod(tiles) for w in every}

    def uneven(window: Grid) -> float:
        sides = [w / n for w, n in zip(window, tiles, strict=True) if n > 1] or [1.0]
        return max(sides) / min(sides)

    found: dict[Grid, None] = {(1, 1, 1): None}
    for step in range(1, STEPS + 1):
        fitting = [w for w in every if share[w] <= density * step / STEPS + 1e-6]
        most = max((share[w] for w in fitting), default=0.0)
        if fitting:
            found[min((w for w in fitting if share[w] >= NEAR * most), key=uneven)] = None
    return sorted(found, key=lambda w: share[w])


_GEOMETRY = {"radial": _radial, "sliding_tile": _sliding}
