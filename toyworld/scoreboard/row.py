"""What a row of the scoreboard is: a claim, the graphs that are compared, the measures that judge it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from .footage import Footage
from .graphs import Shot
from .worlds import World, world

TRUTH = "rendered truth"


@dataclass(frozen=True)
class Arm:
    """One way to draw a clip or picture. graph: API-format graph of a shot (its contract: `graphs`); None for the rendered truth, which no
    host draws. code: files of the pack, relative to its root, on which it depends; the shared core and kernels are not listed. What
    was drawn is drawn anew when one of them changes.
    """

    name: str
    graph: Callable[[Shot], dict[str, Any]] | None
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
    """One claim of one method, or of a stock model: what it fails at is what methods must cure.

    method: what METHODS selects. claim: one sentence that could turn out false. latent_frames: 1 for pictures. ours: None for a row on a stock
    model. judges: the first one ranks what the pictures show. notes: what a reader must know about the choice of settings. world: a name in
    `worlds.WORLDS`. prompts: (caption, seed) of n shots, the first m of n are those of m; None takes the world's. measure: numbers of one
    clip or picture by name; None takes the world's. more: checkpoint file -> folder of the host's models, besides the world's own. side:
    pixels a side of pictures that are not of the world's size; the graphs say it too, and the rendered truth stays at the world's. outline: a box
    (x0, y0, x1, y1) in picture widths per frame, drawn into the clips that are shown.
    """

    name: str
    method: str
    claim: str
    latent_frames: int
    stock: Arm
    alternatives: tuple[Arm, ...]
    ours: Arm | None
    judges: tuple[Judge, ...]
    notes: str = ""
    world: str = "wan"
    prompts: Callable[[int], list[tuple[str, int]]] | None = None
    measure: Callable[[Footage], dict[str, float]] | None = None
    more: tuple[tuple[str, str], ...] = ()
    side: int | None = None
    outline: tuple[tuple[float, float, float, float], ...] = ()

    @property
    def setting(self) -> World:
        """The world it is drawn in."""
        return world(self.world)

    @property
    def models(self) -> tuple[tuple[str, str], ...]:
        """Checkpoint file -> folder of the host's models."""
        return (*self.setting.models, *self.more)

    @property
    def reader(self) -> Callable[[Footage], dict[str, float]]:
        """What measures: the row's own function or the world's."""
        return self.measure or self.setting.measure

    @cached_property
    def truth(self) -> Arm | None:
        """The rendered truth of the same prompts, where the world has one: the anchor of every measure."""
        return Arm(TRUTH, None, self.setting.readers) if self.setting.truth else None

    @property
    def subject(self) -> Arm:
        """What the row speaks of: ours, or the stock model."""
        return self.ours or self.stock

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All arms as tables and pictures show them: truth, stock, alternatives, ours."""
        return tuple(arm for arm in (self.truth, self.stock, *self.alternatives, self.ours) if arm is not None)

    def shots(self, seeds: int, steps: int | None = None) -> list[Shot]:
        """What is drawn for that many seeds; None takes the world's sampling steps."""
        steps = steps or self.setting.bundle.settings.steps
        return [Shot(caption, seed, self.latent_frames, steps, self.world) for caption, seed in (self.prompts or self.setting.prompts)(seeds)]

    def __post_init__(self) -> None:
        if self.setting.picture and self.latent_frames != 1:
            raise ValueError(f"The row {self.name} is drawn in {self.world}, which draws pictures: latent_frames is 1, not {self.latent_frames}.")
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"The row {self.name} has two arms of one name: {', '.join(names)}.")
        if not self.judges:
            raise ValueError(f"The row {self.name} has no measure that judges its claim.")
