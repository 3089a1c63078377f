"""Stripes, dots and checks: how dark a surface is at each point.

A pattern is drawn from a seed: direction, period and phase. That seed is the identity of an instance: the same seed gives the same stripes in
every scene. Object patterns live in the object's own coordinates (centre 0, unit = radius), so they move and grow with it.
"""

import math
import random
from dataclasses import dataclass

import torch

PERIOD = (0.72, 1.0)  # of an object's pattern, in radii
GROUND_PERIOD = (0.16, 0.24)  # of a ground's pattern, in picture widths
DOT = 0.31  # radius of a dot in periods


@dataclass(frozen=True)
class Pattern:
    """A drawn texture: direction in radians, period in the unit of the coordinates, phase along and across in periods."""

    kind: str
    angle: float
    period: float
    along: float
    across: float


def pattern(kind: str, seed: int, periods: tuple[float, float] = PERIOD) -> Pattern:
    """Draw the pattern of a seed; the same seed gives the same one for ever."""
    rng = random.Random(seed)
    return Pattern(kind, rng.uniform(0, math.pi), rng.uniform(*periods), rng.random(), rng.random())


def darkness(drawn: Pattern, u: torch.Tensor, v: torch.Tensor, pixels: torch.Tensor | float) -> torch.Tensor:
    """Antialiased darkness 0..1 at coordinates u, v (broadcast together); `pixels` is the size of one unit in pixels."""
    if drawn.kind == "plain":
        return torch.zeros(torch.broadcast_shapes(u.shape, v.shape))
    cos, sin = math.cos(drawn.angle), math.sin(drawn.angle)
    a = _to_centre((u * cos + v * sin) / drawn.period + drawn.along)
    scale = pixels * drawn.period
    if drawn.kind == "striped":
        return _soften((0.25 - a.abs()) * scale)
    b = _to_centre((v * cos - u * sin) / drawn.period + drawn.across)
    if drawn.kind == "dotted":
        return _soften((DOT - torch.sqrt(a * a + b * b)) * scale)
    if drawn.kind == "checkered":  # exclusive or of two stripe patterns
        first, second = _soften((0.25 - a.abs()) * scale), _soften((0.25 - b.abs()) * scale)
        return first + second - 2 * first * second
    raise ValueError(f"Texture {drawn.kind!r} is unknown.")


def _to_centre(position: torch.Tensor) -> torch.Tensor:
    """Distance -0.5..0.5 to the nearest whole number."""
    return position - position.round()


def _soften(distance: torch.Tensor) -> torch.Tensor:
    """Coverage of a pixel whose centre lies `distance` pixels inside an edge."""
    return (distance + 0.5).clamp(0, 1)
