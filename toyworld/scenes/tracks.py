"""Where an object is, and how large, in every frame.

Lengths are shares of the picture's width, times are frames; y grows downwards. A scene knows the length of its native clip. Inside it no straight mover
meets a wall and nothing that grows stops growing. Standing, orbiting and bouncing go on for ever, so a clip of any length has one right
answer; beyond the native clip straight movers turn back at the walls, and growing turns into shrinking.
"""

import math
from dataclasses import dataclass

import torch

from ..world import ORBITS, STRAIGHT
from .grammar import SCALINGS, Thing

NATIVE_FRAMES = 33  # 9 latent frames of a video VAE that packs four
# Radius for each size; growing objects go from one end of SCALED to the other in a native clip.
RADII = {"small": (0.095, 0.105), "": (0.135, 0.147), "large": (0.182, 0.195)}
SCALED = (0.095, 0.2)
# How far a shape reaches from its centre, in radii: to the sides, upwards, downwards, and to its farthest corner.
REACH = {"circle": (1.0, 1.0, 1.0, 1.0), "square": (0.86, 0.86, 0.86, 1.2163), "triangle": (1.149, 1.24, 0.75, 1.3722)}
WAY = {"slowly": 0.25, "": 0.39, "quickly": 0.54}  # of a straight mover in a native clip
TURN = {"slowly": 1.8, "": 1.2, "quickly": 0.8}  # native clips per turn of an orbit
HOP = {"slowly": 1.2, "": 0.8, "quickly": 0.55}  # native clips per hop
ORBIT_RADIUS = (0.2, 0.28)
HOP_HEIGHT = (0.28, 0.36)


@dataclass(frozen=True)
class Body:
    """What a caption leaves open about one object: radius, start (or centre of the orbit, or floor of the hops), and the pattern's seed.

    `swing` is the radius of an orbit or the height of the hops, `phase` the start within the turn or hop, in turns.
    """

    thing: Thing
    radius: float
    x: float
    y: float
    swing: float = 0.0
    phase: float = 0.0
    seed: int = 0


def speed(thing: Thing, native: int = NATIVE_FRAMES) -> float:
    """Speed of a straight mover in picture widths per frame."""
    return WAY[thing.speed] / max(1, native - 1)


def period(thing: Thing, radius: float, native: int = NATIVE_FRAMES) -> float:
    """Frames after which the object rightly is where it was, beyond the native clip too; infinite if it stands still."""
    if thing.motion in ORBITS:
        return TURN[thing.speed] * native
    if thing.motion == "bouncing":
        return HOP[thing.speed] * native
    if thing.motion in SCALINGS:
        return 2.0 * (native - 1)
    if thing.motion in STRAIGHT:
        low, high = _walls(thing, radius)[0 if STRAIGHT[thing.motion][0] else 1]
        return 2 * (high - low) / speed(thing, native)
    return math.inf


def follow(body: Body, frames: int, native: int = NATIVE_FRAMES) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centre x, y and radius of a body in every frame, [F] each, in picture widths; [K, F] if the body's numbers are tensors [K, 1]."""
    t = torch.arange(frames, dtype=torch.float32)
    thing = body.thing
    x, y, radius = (value + torch.zeros(frames) for value in (body.x, body.y, body.radius))
    if thing.motion in ORBITS:
        angle = 2 * math.pi * (body.phase + ORBITS[thing.motion] * t / period(thing, body.radius, native))
        return x + body.swing * torch.cos(angle), y + body.swing * torch.sin(angle), radius
    if thing.motion == "bouncing":
        hop = (body.phase + t / period(thing, body.radius, native)) % 1
        return x, y - body.swing * 4 * hop * (1 - hop), radius
    if thing.motion in SCALINGS:
        done = _fold(t / max(1, native - 1), 0.0, 1.0)
        low, high = SCALED if thing.motion == "growing" else SCALED[::-1]
        return x, y, low + (high - low) * done
    if thing.motion in STRAIGHT:
        dx, dy = STRAIGHT[thing.motion]
        step = speed(thing, native)
        across, along = _walls(thing, body.radius)
        return _fold(x + step * dx * t, *across), _fold(y + step * dy * t, *along), radius
    return x, y, radius


def boxes(body: Body, frames: int, native: int = NATIVE_FRAMES) -> torch.Tensor:
    """Bounding boxes [F, 4] (left, top, right, bottom) of a body, in picture widths."""
    x, y, radius = follow(body, frames, native)
    side, up, down, _ = REACH[body.thing.shape]
    return torch.stack([x - side * radius, y - up * radius, x + side * radius, y + down * radius], 1)


def _walls(thing: Thing, radius: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Lowest and highest x, and lowest and highest y, of the centre of a thing that stays inside the picture."""
    side, up, down, _ = REACH[thing.shape]
    return (side * radius, 1 - side * radius), (up * radius, 1 - down * radius)


def room(thing: Thing, radius: float, swing: float, native: int = NATIVE_FRAMES) -> tuple[tuple[float, float], tuple[float, float]]:
    """Range of Body.x and of Body.y such that the native clip stays inside the picture."""
    (left, right), (top, bottom) = _walls(thing, SCALED[1] if thing.motion in SCALINGS else radius)
    if thing.motion in ORBITS:
        return (left + swing, right - swing), (top + swing, bottom - swing)
    if thing.motion == "bouncing":
        return (left, right), (top + swing, bottom)
    way = WAY[thing.speed] if native > 1 else 0.0
    if thing.motion in ("right", "left"):
        return ((left, right - way) if thing.motion == "right" else (left + way, right)), (top, bottom)
    if thing.motion in ("down", "up"):
        return (left, right), ((top, bottom - way) if thing.motion == "down" else (top + way, bottom))
    return (left, right), (top, bottom)


def _fold(position: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Reflect positions at `low` and `high`."""
    span = high - low
    phase = (position - low) % (2 * span)
    return low + torch.where(phase <= span, phase, 2 * span - phase)
