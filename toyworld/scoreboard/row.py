"""What a row of the scoreboard is: a claim, the graphs that are compared, the measures that judge it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from .footage import Footage, measure_video
from .graphs import WAN, Shot
from .prompts import held_out


@dataclass(frozen=True)
class Arm:
    """One way to draw a clip. graph: API-format graph of a shot (its contract: `graphs`). code: files of the pack, relative to its
    root, on which the clip depends; the shared core and kernels are not listed. Clips are drawn anew when one of them changes.
    """

    name: str
    graph: Callable[[Shot], dict[str, Any]]
    code: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judge:
    """A measure that judges the claim, under the name the table gives it. reads: its column in what the row measures."""

    reads: str
    title: str
    better: Literal["higher", "lower"] = "higher"

    @property
    def direction(self) -> int:
        """1 if more is better, -1 if less is."""
        return 1 if self.better == "higher" else -1


@dataclass(frozen=True)
class Row:
    """One claim of one method.

    method: what METHODS selects. claim: one sentence that could turn out false. judges: the first one ranks the clips that the pictures
    show and stands in the summary. models: checkpoint file -> folder of the host's models. prompts: (caption, seed) of n shots; the
    first m of n are those of m. measure: numbers of one clip by name. notes: what a reader must know about the choice of settings.
    """

    name: str
    method: str
    claim: str
    latent_frames: int
    stock: Arm
    alternatives: tuple[Arm, ...]
    ours: Arm
    judges: tuple[Judge, ...]
    notes: str = ""
    models: tuple[tuple[str, str], ...] = WAN
    prompts: Callable[[int], list[tuple[str, int]]] = held_out
    measure: Callable[[Footage], dict[str, float]] = measure_video

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All arms, stock first: others are measured against it."""
        return (self.stock, *self.alternatives, self.ours)

    def shots(self, seeds: int, steps: int) -> list[Shot]:
        """What is drawn for that many seeds."""
        return [Shot(caption, seed, self.latent_frames, steps) for caption, seed in self.prompts(seeds)]

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"The row {self.name} has two arms of one name: {', '.join(names)}.")
        if not self.judges:
            raise ValueError(f"The row {self.name} has no measure that judges its claim.")
