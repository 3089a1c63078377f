"""A weight that changes over the sampling: by name, or by keyframes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from .errors import LoomError

NAMES = ("constant", "early", "linear", "cosine", "keyframes")


@dataclass(frozen=True)
class Fade:
    """constant: 1; early: 1 until ``until``, then 0; linear and cosine: from 1 to 0; keyframes: straight between the points.

    points: (progress, weight) with progress rising from 0 to 1.
    """

    kind: str = "constant"
    until: float = 0.4
    points: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in NAMES:
            raise LoomError(f"the schedule '{self.kind}' was given; choose one of {', '.join(NAMES)}.")
        if not 0.0 <= self.until <= 1.0:
            raise LoomError(f"until {self.until:g} was given; it is a part of the sampling, 0 to 1.")
        if self.kind == "keyframes" and not self.points:
            raise LoomError("the schedule keyframes needs its points; write for instance 0:1, 0.5:0.5, 1:0.")

    def at(self, progress: float) -> float:
        """Weight at this part of the sampling, 0 first and 1 last."""
        if self.kind == "early":
            return 1.0 if progress < self.until else 0.0
        if self.kind == "linear":
            return 1.0 - progress
        if self.kind == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        return _between(self.points, progress) if self.kind == "keyframes" else 1.0


def keyframes(text: str) -> tuple[tuple[float, float], ...]:
    """``0:1, 0.5:0.5, 1:0`` as points. Raises LoomError naming the part that does not fit."""
    points: list[tuple[float, float]] = []
    for part in (p.strip() for p in text.replace(";", ",").split(",") if p.strip()):
        place, _, weight = part.partition(":")
        try:
            at, value = float(place), float(weight)
        except ValueError:
            raise LoomError(f"'{part}' is no keyframe; write place:weight, for instance 0:1, 0.5:0.5, 1:0.") from None
        if not 0.0 <= at <= 1.0 or not math.isfinite(value) or value < 0.0:
            raise LoomError(f"the keyframe '{part}' does not fit; places are 0 (start) to 1 (end) and weights are 0 or more.")
        if points and at <= points[-1][0]:
            raise LoomError(f"the keyframe '{part}' comes after {points[-1][0]:g}; write them in order.")
        points.append((at, value))
    return tuple(points)


def _between(points: tuple[tuple[float, float], ...], x: float) -> float:
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]
