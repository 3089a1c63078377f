"""Soft anchoring: how strongly an edited picture's features are drawn to those of its source, and when copying takes over.

Source: DiffUHaul (arXiv 2406.01594): in the early denoising steps the self-attention features of both are interpolated with a coefficient tied to
the time step; in the later ones features are copied (``core/nearest.py``). The direction of the coefficient is not stated where we could read
it, so both directions are here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import LoomError

Schedule = Literal["layout first", "source first", "constant"]
SCHEDULES = ("layout first", "source first", "constant")


@dataclass(frozen=True)
class Anchoring:
    """schedule: "layout first" w = u, "source first" w = 1 - u, "constant" w = level; u is the progress of the sampling, 0 to 1. end: where
    anchoring stops to change and copying begins; from there the weight stays what it is at ``end``. amount: factor on the weight.
    """

    schedule: Schedule = "layout first"
    end: float = 0.5
    level: float = 0.5
    amount: float = 1.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise LoomError(f"anchor_schedule '{self.schedule}' was given; choose one of {', '.join(SCHEDULES)}.")
        for name, value in (("anchor_end", self.end), ("anchor_level", self.level)):
            if not 0.0 <= value <= 1.0:
                raise LoomError(f"{name} {value:g} was given; it lies between 0 and 1.")

    def weight(self, u: float) -> float:
        """w of ``A + w (A_source - A)``."""
        at = min(u, self.end)
        return self.amount * {"layout first": at, "source first": 1.0 - at, "constant": self.level}[self.schedule]

    def copies(self, u: float) -> bool:
        """Whether features are copied at this part of the sampling."""
        return u >= self.end
