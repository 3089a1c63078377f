"""Rotary axes as the host's models keep them: multi-axis embedders, and the interleaved sections of Qwen3-VL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .base import RopeAxis, RopePlane


@dataclass(frozen=True)
class Axes:
    """How a head is divided among time, height and width, for models that make their tables without an embedder that tells."""

    axes_dim: Sequence[int]
    theta: float


def first_axis(embedder: Any) -> RopeAxis | None:
    """The temporal axis of the host's multi-axis embedder: the first of ``axes_dim``, frequencies ``theta^(-i/n)``.

    None if the frequencies cannot be read.
    """
    found = _readable(embedder)
    if found is None:
        return None
    n = found.axes_dim[0] // 2
    pair_of = torch.full((1, sum(found.axes_dim) // 2), -1)
    pair_of[0, :n] = torch.arange(n)
    return RopeAxis(float(found.theta) ** (-torch.arange(n, dtype=torch.float64) / n), pair_of)


def last_axes(embedder: Any, scale_y: float = 1.0, scale_x: float = 1.0) -> RopePlane | None:
    """Height and width in the host's multi-axis embedder, the second and third of ``axes_dim``; None if they cannot be read."""
    found = _readable(embedder)
    if found is None or len(found.axes_dim) != 3:
        return None
    freqs = torch.zeros(2, 1, sum(found.axes_dim) // 2, dtype=torch.float64)
    at = found.axes_dim[0] // 2
    for axis, (dim, scale) in enumerate(zip(found.axes_dim[1:], (scale_y, scale_x), strict=True)):
        freqs[axis, 0, at : at + dim // 2] = scale * float(found.theta) ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
        at += dim // 2
    return RopePlane(freqs)


def stretched_axes(embedder: Any, stretch: dict[str, Any] | None) -> RopePlane | None:
    """:func:`last_axes` where the host lets other nodes stretch both. stretch: its ``rope_options``."""
    stretch = stretch or {}
    return last_axes(embedder, float(stretch.get("scale_y", 1.0)), float(stretch.get("scale_x", 1.0)))


def interleaved_axes(width: int, theta: float, sections: Sequence[int]) -> RopePlane:
    """Height and width as Qwen3-VL rotates by them: every third frequency each, as many as ``sections`` (time, height, width) says."""
    every = float(theta) ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    freqs = torch.zeros(2, 1, len(every), dtype=torch.float64)
    for axis in (0, 1):
        own = slice(axis + 1, 3 * sections[axis + 1], 3)
        freqs[axis, 0, own] = every[own]
    return RopePlane(freqs, pairing="halves")


def _readable(embedder: Any) -> Any:
    """The embedder, or the one inside a module that another pack has put around it (one level is looked through), or None."""
    around = [embedder, *vars(embedder).values(), *getattr(embedder, "_modules", {}).values()]
    return next((x for x in around if hasattr(x, "axes_dim") and hasattr(x, "theta")), None)
