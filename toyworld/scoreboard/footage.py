"""A drawn clip as measures see it, and what is read from every video clip."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..fidelity import fidelity
from ..measures import measure_clip


@dataclass(frozen=True)
class Footage:
    """One drawn clip with all that measures may need.

    frames: [F, H, W, 3] in 0..1. stock: the stock arm's clip of the same prompt and seed, None for the stock arm itself. report: text
    of the graph's What Ran node, empty without one.
    """

    caption: str
    frames: torch.Tensor
    stock: torch.Tensor | None
    report: str


def measure_video(footage: Footage) -> dict[str, float]:
    """All of `measures.COLUMNS`, and `fidelity.COLUMNS` against the stock clip where there is one of the same shape."""
    found = measure_clip(footage.frames, footage.caption)
    if footage.stock is not None and footage.stock.shape == footage.frames.shape:
        found |= fidelity(footage.frames, footage.stock)
    return found
