"""Random captions, with the mix of a training set as a parameter.

A model that saw few scenes of two and three objects drops or fuses objects by itself. That is the failure some methods must cure, so the share
of such scenes is a setting and nothing else is done to cause it.
"""

import random
from dataclasses import dataclass

from ..world import COLOURS, SHAPES
from .grammar import GROUND_TEXTURES, GROUNDS, MOTIONS, PLACES, SIZES, SPEEDS, TEXTURES, WITH_SPEED, Caption, Ground, Thing


@dataclass(frozen=True)
class Mix:
    """How often a drawn caption has what. Shares are 0..1; the rest of `two + three` has one object.

    sized, textured, fast, placed: share of objects that name a size, a texture, a speed, a place. grounded: share of textured grounds.
    same_colour, same_shape: share of further objects that take the first object's colour or shape (else both are drawn freely).
    """

    two: float = 0.3
    three: float = 0.1
    sized: float = 0.5
    textured: float = 0.5
    fast: float = 0.4
    placed: float = 0.5
    grounded: float = 0.5
    same_colour: float = 0.1
    same_shape: float = 0.2
    motions: tuple[str, ...] = MOTIONS

    def __post_init__(self):
        if self.two < 0 or self.three < 0 or self.two + self.three > 1:
            raise ValueError(f"two and three are shares of captions, 0..1 together; they are {self.two} and {self.three}.")


def random_caption(rng: random.Random, moving: bool = True, mix: Mix | None = None, count: int | None = None) -> Caption:
    """Draw a caption of a clip (`moving`) or of a picture; `count` fixes the number of objects."""
    mix = mix or Mix()
    draw = rng.random()
    count = count or (3 if draw < mix.three else 2 if draw < mix.three + mix.two else 1)
    ground = Ground(rng.choice(list(GROUNDS)), rng.choice(GROUND_TEXTURES[1:]) if rng.random() < mix.grounded else "plain")
    free = [colour for colour in COLOURS if colour != ground.colour]
    places = rng.sample(list(PLACES), count)
    named = rng.random() < mix.placed  # of a picture's objects either all have a place or none: "left" beside "anywhere" teaches little
    things: list[Thing] = []
    while len(things) < count:
        colour, shape = rng.choice(free), rng.choice(SHAPES)
        if things and rng.random() < mix.same_colour:
            colour = things[0].colour
        if things and rng.random() < mix.same_shape:
            shape = things[0].shape
        if any((thing.colour, thing.shape) == (colour, shape) for thing in things):
            continue
        motion = rng.choice(mix.motions) if moving else ""
        things.append(
            Thing(
                colour,
                shape,
                rng.choice(SIZES[::2]) if rng.random() < mix.sized and motion not in ("growing", "shrinking") else "",
                rng.choice(TEXTURES[1:]) if rng.random() < mix.textured else "plain",
                motion,
                rng.choice(SPEEDS[::2]) if motion in WITH_SPEED and rng.random() < mix.fast else "",
                places[len(things)] if named and not moving else "",
            )
        )
    return Caption(tuple(things), ground)
