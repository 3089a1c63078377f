"""From a caption to a scene: where everything is, so that nothing in the native clip contradicts the caption.

Many layouts are drawn at once and the first in which the objects keep apart in every native frame is taken. Whether objects are apart is
judged by the circles around them, so objects that are apart never hide each other.
"""

import itertools
import random
from dataclasses import dataclass, replace

import torch

from .draws import Mix, random_caption
from .grammar import SCALINGS, Caption, Thing
from .tracks import HOP_HEIGHT, NATIVE_FRAMES, ORBIT_RADIUS, RADII, REACH, SCALED, Body, follow, room
from .tracks import boxes as body_boxes

DRAWS = (64, 2048)  # layouts tried for a caption, then, if none will do, once more
# Least distance of two centres, in summed radii of the circles around the objects, over all native frames. Objects of one colour must not
# touch, or nobody could tell them apart; others may by a corner.
APART, ALIKE = 0.9, 1.06
ANCHORS = {"left": (0.24, 0.5), "right": (0.76, 0.5), "top": (0.5, 0.24), "bottom": (0.5, 0.76), "centre": (0.5, 0.5)}
LOOSE = 0.05  # a placed object is at most this far from its place's anchor, per axis, unless the picture's border keeps it away


@dataclass(frozen=True)
class Scene:
    """A caption and what it leaves open: one body per thing, in order, the seed of the ground's pattern, and the length of the native clip."""

    caption: Caption
    bodies: tuple[Body, ...]
    ground_seed: int = 0
    native: int = NATIVE_FRAMES

    def boxes(self, frames: int) -> torch.Tensor:
        """True bounding boxes [things, F, 4] (left, top, right, bottom) in picture widths."""
        return torch.stack([body_boxes(body, frames, self.native) for body in self.bodies])


def random_scene(
    rng: random.Random,
    caption: Caption | None = None,
    native: int = NATIVE_FRAMES,
    apart: float = APART,
    seeds: tuple[int, ...] | None = None,
    moving: bool = True,
    mix: Mix | None = None,
) -> Scene:
    """Draw a scene for a caption, or for a drawn one (`moving`, `mix`: see `random_caption`).

    `apart` = 0 lets objects cross and hide each other. `seeds` fixes the patterns of the objects: the same seed is the same individual. A
    ValueError tells of a caption whose objects find no room; a drawn caption is replaced instead.
    """
    while True:
        asked = caption or random_caption(rng, moving, mix)
        if seeds is not None and len(seeds) != len(asked.things):
            raise ValueError(f"{len(seeds)} pattern seeds do not fit the {len(asked.things)} objects of {str(asked)!r}.")
        bodies = _place(rng, asked, native if asked.moving else 1, apart)
        if bodies is not None:
            drawn = seeds or tuple(rng.getrandbits(31) for _ in bodies)
            return Scene(asked, tuple(replace(body, seed=seed) for body, seed in zip(bodies, drawn)), rng.getrandbits(31), native)
        if caption is not None:
            raise ValueError(f"The objects of {str(caption)!r} find no room beside each other; make them smaller or slower, or allow them to cross with apart=0.")


def separation(bodies: list[Body], frames: int, native: int) -> torch.Tensor:
    """Least distance over all pairs and frames, in summed radii of the circles around the objects: [K] for bodies of tensors [K, 1].

    The distance of objects of one colour counts less, by APART / ALIKE.
    """
    tracks = [follow(body, frames, native) for body in bodies]
    corner = [REACH[body.thing.shape][3] for body in bodies]
    least = torch.full(tracks[0][0].shape[:-1], float("inf"))
    for i, j in itertools.combinations(range(len(bodies)), 2):
        (ax, ay, ar), (bx, by, br) = tracks[i], tracks[j]
        alike = APART / ALIKE if bodies[i].thing.colour == bodies[j].thing.colour else 1.0
        least = torch.minimum(least, alike * (torch.hypot(ax - bx, ay - by) / (corner[i] * ar + corner[j] * br)).amin(-1))
    return least


def _place(rng: random.Random, caption: Caption, native: int, apart: float) -> list[Body] | None:
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    for draws in DRAWS if len(caption.things) > 1 and apart > 0 else (1,):
        bodies = [_draw(thing, draws, native, generator) for thing in caption.things]
        good = separation(bodies, native, native) >= apart
        if bool(good.any()):
            first = int(good.float().argmax())
            return [Body(body.thing, *(float(value[first]) for value in (body.radius, body.x, body.y, body.swing, body.phase))) for body in bodies]
    return None


def _draw(thing: Thing, draws: int, native: int, generator: torch.Generator) -> Body:
    """A body whose numbers are tensors [draws, 1]."""

    def uniform(low, high) -> torch.Tensor:
        return low + (high - low) * torch.rand(draws, 1, generator=generator)

    radius = torch.full((draws, 1), SCALED[1]) if thing.motion in SCALINGS else uniform(*RADII[thing.size])
    swing = torch.zeros(draws, 1)
    if thing.motion == "bouncing":
        swing = uniform(*HOP_HEIGHT)
    elif thing.motion in ("clockwise", "counterclockwise"):
        low, high = room(thing, radius, torch.zeros(1), native)[0]
        swing = uniform(ORBIT_RADIUS[0], torch.minimum((high - low) / 2, torch.tensor(ORBIT_RADIUS[1])))
    x_range, y_range = room(thing, radius, swing, native)
    if thing.place:
        ax, ay = ANCHORS[thing.place]
        x = torch.clamp(uniform(ax - LOOSE, ax + LOOSE), *x_range)
        y = torch.clamp(uniform(ay - LOOSE, ay + LOOSE), *y_range)
    else:
        x, y = uniform(*x_range), uniform(*y_range)
    return Body(thing, radius, x, y, swing, uniform(0.0, 1.0))
