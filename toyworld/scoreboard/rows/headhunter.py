"""HeadHunter (arXiv 2506.10978): heads that were searched against heads drawn by lot and against whole layers, at the same cost."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from ...head_search import FOUND
from ..graphs import Graph, Shot, through
from ..row import Arm, Row
from .softpag import CODE, JUDGES, drawn, heads

LAYERS, HEADS = 3, 3
"""Of the SD3 model."""
CLAIM = "Heads that were searched for true shapes guide better than as many heads drawn by lot, and than any whole layer."
WHAT = (
    "{count} of the model's nine heads ({names}), found by `python -m attention_loom.toyworld.head_search` on {prompts} other prompts and seeds with measured shape as the goal, at CFG 1 and u 1. Here they "
    "guide beside CFG 3 at scale 3 and u 0.5, the node's own value. By lot: as many heads, another set for every prompt. A layer has three heads. All arms but the first make one evaluation more per step."
)


def found() -> dict[str, Any] | None:
    """The heads file of the search, None before there is one."""
    return json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.is_file() else None


def by_lot(count: int) -> Callable[[Shot], Graph]:
    """As many heads as were found, drawn anew for every prompt."""

    def graph(shot: Shot) -> Graph:
        every = [f"L{layer}H{head}" for layer in range(LAYERS) for head in range(HEADS)]
        chosen = random.Random(f"heads {shot.seed}").sample(every, count)
        return drawn((heads(heads=", ".join(sorted(chosen))),))(shot)

    return graph


def row(file: dict[str, Any]) -> Row:
    """Found heads beside CFG."""
    names = file["heads"]
    return Row(
        name="headhunter-sd3",
        method="headhunter",
        claim=CLAIM,
        latent_frames=1,
        stock=Arm("CFG 3", through()),
        alternatives=(Arm("heads by lot", by_lot(len(names)), CODE), *(Arm(f"layer {layer}", drawn((heads(heads=str(layer)),)), CODE) for layer in range(LAYERS))),
        ours=Arm("heads found", drawn((heads(heads=", ".join(names)),)), CODE),
        judges=JUDGES,
        notes=WHAT.format(count=len(names), names=", ".join(names), prompts=len(file["prompts"])),
        world="scenes_sd3",
    )


_FILE = found()
ROWS = () if _FILE is None else (row(_FILE),)
