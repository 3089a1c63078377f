"""Stock picture models on one, two and three objects: what methods for several subjects must cure, and what the host offers against it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...scenes.grammar import PLACES
from ..graphs import through
from ..regions import SIDE_BY_SIDE
from ..row import Arm, Judge, Row
from ..scene_prompts import pictures

JUDGES = (Judge("right", "all right"), Judge("presence", "presence"), Judge("binding", "binding"), Judge("count", "count right"))
PLACED = (*JUDGES, Judge("placement", "placement"))
MODELS = {"sd3": "scenes_sd3", "sd15": "scenes_sd15"}


def stock(model: str, name: str, claim: str, prompts: Callable[[int], list[tuple[str, int]]], **more: Any) -> Row:
    """A row on a stock model, with or without alternatives."""
    return Row(f"{model}-{name}", "pictures", claim, 1, Arm("stock", through()), ours=None, world=MODELS[model], prompts=prompts, **{"alternatives": (), "judges": JUDGES, **more})


def of(model: str) -> tuple[Row, ...]:
    """One, two, two with places, and three objects."""
    return (
        stock(model, "one", "The stock model draws one object as the caption says: colour, shape and place.", pictures(1, *((place,) for place in PLACES)), judges=PLACED),
        stock(model, "two", "Of two objects the stock model often drops, fuses or doubles one.", pictures(2), notes="The captions name no places."),
        stock(
            model,
            "sides",
            "Of two objects whose places are named the stock model often drops, fuses or doubles one, and a half of the picture for each saves them.",
            pictures(2, ("left", "right")),
            alternatives=SIDE_BY_SIDE,
            judges=PLACED,
            notes="The first object is on the left, the second on the right. Areas and masks: each half has its object's own caption, without the place, at strength 1.",
        ),
        stock(model, "three", "Of three objects the stock model mostly drops, fuses or doubles one.", pictures(3), notes="The captions name no places."),
    )


ROWS = tuple(row for model in MODELS for row in of(model))
