"""Prompts and seeds of the scoreboard: no setting of any method was chosen on them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ..world import random_caption

ORDER = ("right", "clockwise", "still", "up", "counterclockwise", "left", "down")
"""Motions in turn: a few prompts already hold straight ones, orbits and a rest."""
MOVING = tuple(motion for motion in ORDER if motion != "still")
FIRST_SEED = 3000


def held_out(count: int, motions: Sequence[str] = ORDER) -> list[tuple[str, int]]:
    """(caption, seed) of `count` clips. The studies, in which settings were chosen, use another generator and other seeds.

    The first m of n prompts are the m prompts: more seeds keep what was drawn.
    """
    rng = random.Random(20261122)
    return [(str(random_caption(rng, motions[i % len(motions)])), FIRST_SEED + i) for i in range(count)]


def moving(count: int) -> list[tuple[str, int]]:
    """The same without objects that stand still, for measures that a resting object cannot pass or fail."""
    return held_out(count, MOVING)
