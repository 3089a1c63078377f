"""Crops of the second world with their exact latents, on which decoders are trained.

Half of the crops show the world, the other half things it never shows: merged and odd outlines, fading, other colours, sizes, speeds and
patterns. So a decoder draws what a failing model says instead of inventing the nearest clean scene.
"""

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

from .. import latent, picture_latent
from ..scenes import random_scene, render
from ..scenes.grammar import GROUNDS
from ..scenes.textures import darkness, pattern
from ..world import COLOURS, SHAPES, coverage
from .pools import CLIP_SIZE, PICTURE_SIZE

CLIP_CROP, FRAMES = 48, 13  # pixels; four latent frames, so that the doubled frames see warm caches as well as cold ones
PICTURE_CROP = 64
PER_SCENE = 8  # crops taken of a rendered scene


def clips(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Crops of clips: normalised latents [count, 16, 4, 6, 6] and pixels [count, 3, 13, 48, 48] in -1..1, both in half precision."""

    def draw(rng: random.Random, odd_one: bool) -> Tensor:
        return odd(rng, FRAMES, CLIP_SIZE) if odd_one else render(random_scene(rng), size=CLIP_SIZE)

    return _pool(count, seed, draw, FRAMES, CLIP_CROP, latent.encode)


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Crops of pictures: normalised latents [count, 16, 8, 8] and pixels [count, 3, 64, 64] in -1..1, both in half precision."""

    def draw(rng: random.Random, odd_one: bool) -> Tensor:
        return odd(rng, 1, PICTURE_SIZE) if odd_one else render(random_scene(rng, moving=False), size=PICTURE_SIZE)

    latents, pixels = _pool(count, seed, draw, 1, PICTURE_CROP, lambda frames: picture_latent.encode(frames[0]))
    return latents, pixels[:, :, 0]


def _pool(count: int, seed: int, draw: Callable[[random.Random, bool], Tensor], frames: int, side: int, encode: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    rng = random.Random(seed)
    latents, pixels = [], []
    while len(latents) < count:
        scene = draw(rng, bool(len(latents) // PER_SCENE % 2))
        for _ in range(PER_SCENE):
            first = rng.randint(0, len(scene) - frames)
            left, top = (8 * rng.randint(0, (scene.shape[1] - side) // 8) for _ in range(2))
            crop = scene[first : first + frames, top : top + side, left : left + side]
            latents.append(encode(crop).half())
            pixels.append((crop * 2 - 1).permute(3, 0, 1, 2).half())
    return torch.stack(latents[:count]), torch.stack(pixels[:count])


def odd(rng: random.Random, frames: int, size: int) -> Tensor:
    """Frames [F, size, size, 3] in 0..1 of things outside the world on an odd ground."""
    canvas = _odd_ground(rng, size).repeat(frames, 1, 1, 1)
    for _ in range(rng.choice((1, 2, 2, 3))):
        _odd_thing(rng, canvas)
    return canvas


def _colour(rng: random.Random, known: dict[str, tuple[float, float, float]]) -> Tensor:
    """One of the world's colours, or any."""
    return torch.tensor(rng.choice(list(known.values())) if rng.random() < 0.6 else [rng.random() for _ in range(3)])


def _odd_ground(rng: random.Random, size: int) -> Tensor:
    """A background [size, size, 3] with a pattern of any period and contrast."""
    base, other = _colour(rng, GROUNDS), _colour(rng, GROUNDS)
    light = base * rng.uniform(1, 1.6) + rng.uniform(0, 0.1) if rng.random() < 0.7 else other
    drawn = pattern(rng.choice(("plain", "striped", "checkered", "dotted")), rng.getrandbits(31), (0.1, 0.4))
    grid = (torch.arange(size) + 0.5) / size
    return (base + (light - base) * darkness(drawn, grid[None, :], grid[:, None], float(size))[..., None].expand(size, size, 1)).clamp(0, 1)


def _odd_thing(rng: random.Random, canvas: Tensor) -> None:
    """Draw one object of any size, speed, colour, outline and pattern, perhaps fading, into frames [F, S, S, 3]."""
    frames, size = canvas.shape[:2]
    t = torch.arange(frames, dtype=torch.float32)
    heading, speed = rng.uniform(0, 2 * math.pi), size / 64 * rng.choice((0.0, 1.0, rng.uniform(0, 3)))
    x = size * rng.uniform(0.1, 0.9) + math.cos(heading) * speed * t
    y = size * rng.uniform(0.1, 0.9) + math.sin(heading) * speed * t
    radius = size * rng.uniform(0.05, 0.25) * (1 + rng.choice((0.0, rng.uniform(-0.4, 0.4))) * t / frames)
    cover = coverage(rng.choice(SHAPES), x, y, radius, size)
    if rng.random() < 0.4:  # two outlines merged or intersected give shapes the world does not have
        shift = size * rng.uniform(-0.1, 0.1), size * rng.uniform(-0.1, 0.1)
        other = coverage(rng.choice(SHAPES), x + shift[0], y + shift[1], radius, size)
        cover = torch.maximum(cover, other) if rng.random() < 0.6 else torch.minimum(cover, other)
    strength = 1.0 if rng.random() < 0.6 else torch.linspace(rng.random(), rng.random(), frames).view(-1, 1, 1)
    colour, grid, r = _colour(rng, COLOURS), torch.arange(size) + 0.5, radius[:, None, None]
    drawn = pattern(rng.choice(("plain", "striped", "dotted")), rng.getrandbits(31), (0.5, 1.4))
    dark = darkness(drawn, (grid - x[:, None, None]) / r, (grid[:, None] - y[:, None, None]) / r, r)
    colour = colour * (1 - rng.uniform(0.2, 0.7) * dark[..., None])
    canvas.lerp_(colour.expand_as(canvas), (cover * strength)[..., None].expand_as(canvas))
