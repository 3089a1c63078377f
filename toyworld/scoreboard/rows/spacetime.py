"""Space-time attention (arXiv 2304.03869): two objects side by side, by a description for each place inside cross-attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...scenes import Caption
from ..graphs import Graph, Shot, base, through, wired
from ..regions import SIDE_BY_SIDE, halves
from ..row import Arm, Judge, Row
from ..scene_prompts import pictures

CODE = ("core/methods/spacetime.py", "core/regions.py", "core/fade.py", "kernels/aside.py", "nodes/spacetime.py")
JUDGES = (
    Judge("placement", "placement"),
    Judge("right", "all right"),
    Judge("presence", "presence"),
    Judge("binding", "binding"),
    Judge("leakage", "leakage", "lower"),
)
WORDS = ("left", "right")
BOXES = ("0, 0, 0.5, 1", "0.5, 0, 1, 1")
"""The halves that areas and masks have."""
SIDES = pictures(2, WORDS)
WHAT = (
    "The first object is on the left, the second on the right. Place Subjects is the paper's form: contrast, weight 5/2, a disc of radius 0.2 at each place, described by the "
    "object's phrase alone; its other forms are shown beside it, each with one thing changed. Areas and masks have a caption for each half, as in the stock rows, because "
    "without the ground they would not know it; the form *with the ground* has the same. Areas show the model half of the picture, a size it was not trained at; masks do not. Areas and masks evaluate the model once more "
    "per region."
)


def phrases(shot: Shot) -> tuple[str, ...]:
    """Each object as the caption writes it, without its place."""
    return tuple(str(replace(thing, place="")) for thing in Caption.parse(shot.caption).things)


def placed(places: tuple[str, str] = WORDS, texts: Callable[[Shot], tuple[str, ...]] = phrases, **settings: Any) -> Callable[[Shot], Graph]:
    """Place Subjects. No prefix: the toy world has no photos."""

    def graph(shot: Shot) -> Graph:
        regions = "\n".join(f"{text} @ {place}" for text, place in zip(texts(shot), places, strict=True))
        return wired(base(shot), ("LoomSpaceTime", {"clip": ["clip", 0], "regions": regions, "strength": 1.0, "prefix": "", **settings}))

    return graph


def unnamed(graph: Callable[[Shot], Graph]) -> Callable[[Shot], Graph]:
    """The same graph with a prompt that names no places."""

    def without(shot: Shot) -> Graph:
        nodes, caption = graph(shot), Caption.parse(shot.caption)
        nodes["positive"]["inputs"]["text"] = str(replace(caption, things=tuple(replace(thing, place="") for thing in caption.things)))
        return nodes

    return without


STOCK = Arm("stock", through())
OURS = Arm("Place Subjects", placed(), CODE)
ALTERNATIVES = (
    *SIDE_BY_SIDE,
    Arm("Place Subjects, halves", placed(BOXES), CODE),
    Arm("Place Subjects, with the ground", placed(texts=halves), CODE),
    Arm("Place Subjects, affine", placed(mode="affine"), CODE),
    Arm("Place Subjects, convex", placed(mode="convex"), CODE),
)


def row(name: str, claim: str, notes: str, change: Callable[[Callable[[Shot], Graph]], Callable[[Shot], Graph]]) -> Row:
    """All arms with their graphs changed in one way."""

    def changed(arm: Arm) -> Arm:
        assert arm.graph is not None
        return replace(arm, graph=change(arm.graph))

    return Row(
        name=f"spacetime-{name}",
        method="spacetime",
        claim=claim,
        latent_frames=1,
        stock=changed(STOCK),
        alternatives=tuple(changed(arm) for arm in ALTERNATIVES),
        ours=changed(OURS),
        judges=JUDGES,
        notes=notes,
        world="scenes_sd15",
        prompts=SIDES,
    )


ROWS = (
    row(
        "named",
        "With places named in the prompt and given to the node, both objects stand there with their own colours more often than stock draws them.",
        WHAT,
        lambda graph: graph,
    ),
    row(
        "unnamed",
        "With places given to the node alone, both objects stand there with their own colours at least as often as with areas.",
        f"The prompt names both objects and no places, so stock can only guess. {WHAT}",
        unnamed,
    ),
)
