"""Portraits and a scene: prompts, rendered truth and measures of rows on subjects that stay the same.

The caption of a shot names the two subjects whole, patterns included. Each portrait's prompt is its subject alone, large, in the centre of a plain
grey ground. The scene's prompt names colour, shape and place: that a subject is striped it can only have from its portrait. What is drawn is
one batch of pictures: both portraits, then the scene.
"""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from ..likeness import likeness, pattern_likeness
from ..readings import read
from ..scenes import Caption, random_scene, render
from ..scenes.grammar import Ground, Thing
from ..scores import score_reading
from .footage import Footage
from .scene_footage import READERS, right
from .scene_prompts import pictures

SUBJECTS = 2
COLUMNS = {
    "own_likeness": "likeness of each subject in the scene to its own portrait (`likeness.likeness`), 0 where it is not seen; mean over subjects; 0..1, truth about 0.95",
    "cross_likeness": "the same to the other subject's portrait; 0..1, truth about 0: colours differ",
    "pattern_likeness": "likeness of the patterns of each subject and its portrait, 0 where the scene's has none; nan if both portraits are plain; 0..1, truth above 0.9",
    "portraits": "share of portraits in which their subject is seen with its colour and its shape; 0..1, truth 1",
}
READS = (*READERS, "toyworld/likeness.py", "toyworld/scoreboard/portraits.py")
"""What these numbers depend on."""
_DRAWN = pictures(SUBJECTS, ("left", "right"))


def prompts(count: int) -> list[tuple[str, int]]:
    """Two subjects of unlike colours on the left and the right of a plain ground."""
    found: list[tuple[str, int]] = []
    for caption, seed in _DRAWN(3 * count + 8):  # more than are needed: those of one colour are left out
        given = Caption.parse(caption)
        if len({thing.colour for thing in given.things}) == SUBJECTS:
            plain = Caption(tuple(replace(thing, size="") for thing in given.things), Ground(given.ground.colour))
            found.append((str(plain), seed))
    return found[:count]


def portrait(thing: Thing) -> str:
    """The prompt of a subject's portrait."""
    return str(Caption((replace(thing, size="large", place="centre"),), Ground("grey")))


def scene(caption: Caption) -> str:
    """The prompt of the scene: what the portraits show besides colour and shape is left out."""
    return str(replace(caption, things=tuple(replace(thing, texture="plain") for thing in caption.things)))


def rendered(caption: str, seed: int, latent_frames: int = 1, side: int = 128) -> torch.Tensor:
    """[3, side, side, 3]: portraits and scene with the same individuals."""
    given, rng = Caption.parse(caption), random.Random(seed)
    whole = random_scene(rng, given)
    alone = [random_scene(rng, Caption.parse(portrait(body.thing)), seeds=(body.seed,)) for body in whole.bodies]
    return torch.cat([render(one, 1, side) for one in (*alone, whole)])


def measure(footage: Footage) -> dict[str, float]:
    """COLUMNS, and all measures of the scene by its whole caption."""
    things = Caption.parse(footage.caption).things
    alone = [read(footage.frames[i : i + 1], portrait(thing)) for i, thing in enumerate(things)]
    whole = read(footage.frames[-1:], footage.caption)
    pairs = [(i, j) for i in range(len(things)) for j in range(len(things))]
    alike = {(i, j): likeness(whole, i, alone[j], 0) for i, j in pairs}
    found = {
        "own_likeness": _mean([alike[i, j] for i, j in pairs if i == j]),
        "cross_likeness": _mean([alike[i, j] for i, j in pairs if i != j]),
        "pattern_likeness": _mean([pattern_likeness(whole, i, one, 0) for i, one in enumerate(alone)]),
        "portraits": sum(right(one) for one in alone) / len(alone),
    }
    return score_reading(whole) | {"right": right(whole)} | found


def _mean(values: list[float]) -> float:
    kept = [value for value in values if value == value]
    return sum(kept) / len(kept) if kept else float("nan")
