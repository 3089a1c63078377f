"""Prompts and seeds in the second world: no setting of any method was chosen on them.

Every caption is one whose objects find room beside each other when the prompt's seed is rendered, so each prompt has its rendered truth.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..scenes import Caption, Mix, random_caption, random_scene

ORDER = ("right", "clockwise", "bouncing", "up", "counterclockwise", "left", "down")
"""Motions that are right for ever, in turn: straight movers turn back at the walls, orbits and hops go on."""
FIRST_SEED = 5000
DRAW = 20261123
"""Of the captions' generator. Training pools, gates and studies use others."""


def clips(count: int, motions: Sequence[str] = ORDER) -> list[tuple[str, int]]:
    """(caption, seed) of `count` clips of one patterned object: plain ones have no identity to keep. The first m of n are those of m."""
    rng = random.Random(DRAW)
    kinds = [Mix(two=0.0, three=0.0, textured=1.0, motions=(motion,)) for motion in motions]
    return [_drawn(rng, FIRST_SEED + i, lambda n=i: random_caption(rng, True, kinds[n % len(kinds)])) for i in range(count)]


def pictures(things: int, *places: Sequence[str]) -> Callable[[int], list[tuple[str, int]]]:
    """Prompts of pictures with so many objects. places: one name for each object, several such lists are taken in turn; none leaves all places open.

    Example: ``pictures(2, ("left", "right"))(3)`` has the first object on the left and the second on the right.
    """

    def draw(count: int) -> list[tuple[str, int]]:
        rng = random.Random(DRAW + things)
        named = [places[i % len(places)] if places else () for i in range(count)]
        return [_drawn(rng, FIRST_SEED + i, lambda n=i: _placed(random_caption(rng, False, Mix(placed=0.0), things), named[n])) for i in range(count)]

    return draw


def _placed(caption: Caption, places: Sequence[str]) -> Caption:
    if not places:
        return caption
    return Caption(tuple(replace(thing, place=place) for thing, place in zip(caption.things, places, strict=True)), caption.ground)


def _drawn(rng: random.Random, seed: int, caption: Callable[[], Caption]) -> tuple[str, int]:
    """A caption that finds room when this seed is rendered."""
    while True:
        drawn = caption()
        try:
            random_scene(random.Random(seed), drawn)
        except ValueError:
            continue
        return str(drawn), seed
