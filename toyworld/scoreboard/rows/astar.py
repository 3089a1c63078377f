"""A-STAR (arXiv 2306.14544): two and three objects, each kept by a step on the latent, against stock and Attend-and-Excite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...scenes import Caption
from ..graphs import Graph, Shot, base, through, wired
from ..row import Arm, Judge, Row
from ..scene_prompts import pictures

CODE = (
    "core/methods/astar.py",
    "core/methods/guided.py",
    "core/latent.py",
    "core/columns.py",
    "core/concepts.py",
    "core/differentiable.py",
    "nodes/astar.py",
    "nodes/prompt.py",
)
JUDGES = (
    Judge("complete", "all objects seen"),
    Judge("right", "all right"),
    Judge("binding", "binding"),
    Judge("count", "count right"),
    Judge("leakage", "leakage", "lower"),
)
MODELS = {"sd3": "scenes_sd3", "sd15": "scenes_sd15"}
TIMES = 2.5
"""How often as long a run with the node takes: five evaluations of the model per step in place of two."""
WHAT = (
    "All arms have the node's own settings for the model; the concepts are each object's colour and shape, in the caption's words. A gradient costs about three evaluations of "
    "the model, so a run takes about two and a half times as long as stock; the arm with more steps says what time alone gives. Attend-and-Excite is drawn by our node: its loss, "
    "with the step of A-STAR and without its refinement rounds; its paper stops after half of the steps."
)


def concepts(shot: Shot) -> str:
    """Each object's colour and shape, one per line."""
    return "\n".join(f"{thing.colour} {thing.shape}" for thing in Caption.parse(shot.caption).things)


def kept(**settings: Any) -> Callable[[Shot], Graph]:
    """Keep Every Subject on the prompt of the stock graph."""

    def graph(shot: Shot) -> Graph:
        inputs = {"clip": ["clip", 0], "prompt": shot.caption, "concepts": concepts(shot), "positive": ["positive", 0], "strength": 1.0, "preset": "auto", "loss": "a_star"}
        return wired(base(shot), ("LoomAStar", {**inputs, **settings}))

    return graph


def longer(shot: Shot) -> Graph:
    """Stock with as much to spend."""
    return base(Shot(shot.caption, shot.seed, shot.latent_frames, round(TIMES * shot.steps), shot.world))


def row(model: str, things: int) -> Row:
    """Objects without places."""
    number = {2: "two", 3: "three"}[things]
    return Row(
        name=f"astar-{model}-{number}",
        method="astar",
        claim=f"Of {number} objects without places more pictures show all, each with its own colour and shape, than with the stock model or Attend-and-Excite.",
        latent_frames=1,
        stock=Arm("stock", through()),
        alternatives=(
            Arm("2.5x the steps", longer),
            Arm("Attend-and-Excite", kept(loss="attend_excite", end_percent=0.5), CODE),
            Arm("segregation alone", kept(loss="seg only"), CODE),
            Arm("retention alone", kept(loss="ret only"), CODE),
        ),
        ours=Arm("A-STAR", kept(), CODE),
        judges=JUDGES,
        notes=f"The captions name no places. {WHAT}",
        world=MODELS[model],
        prompts=pictures(things),
    )


ROWS = tuple(row(model, things) for model in MODELS for things in (2, 3))
