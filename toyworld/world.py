"""Renderer of the shapes world: captions, scenes, frames and their ground truth.

One flat-coloured object on a plain grey ground, 64 x 64 pixels. A native clip has 21 frames (6 latent frames of the Wan VAE). Inside a native
clip nothing contradicts the caption: straight movers never reach a wall, so they never turn back. Orbits go on for ever, which gives a
clip of any length a right answer; straight movers reflect at the walls when a clip is longer than native.
"""

import math
import random
from dataclasses import dataclass

import torch

SIZE = 64  # pixels, both axes
NATIVE_FRAMES = 21
BACKGROUND = 0.2  # grey level of the ground, 0..1
SPEED = 1.5  # pixels per frame of straight movers
ORBIT_PERIOD = 40.0  # frames per turn
COLOURS = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.75, 0.15),
    "blue": (0.15, 0.25, 0.95),
    "yellow": (0.95, 0.85, 0.1),
    "purple": (0.65, 0.15, 0.8),
    "white": (0.95, 0.95, 0.95),
}
SHAPES = ("circle", "square", "triangle")
STRAIGHT = {"right": (1.0, 0.0), "left": (-1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}  # unit (x, y), y grows downwards
ORBITS = {"clockwise": 1.0, "counterclockwise": -1.0}  # sign of the angle, as seen on the screen
MOTIONS = (*STRAIGHT, "still", *ORBITS)
# Radius of the object as a share of the picture; an orbit's radius as a share of the picture.
RADIUS = (0.14, 0.17)
ORBIT_RADIUS = (0.22, 0.30)


@dataclass(frozen=True)
class Caption:
    """What a caption says. `str()` gives the caption, `Caption.parse` reads one.

    Example: `str(Caption("red", "circle", "clockwise")) == "a red circle orbiting clockwise"`.
    """

    colour: str
    shape: str
    motion: str

    def __str__(self) -> str:
        verb = "standing" if self.motion == "still" else "orbiting" if self.motion in ORBITS else "moving"
        return f"a {self.colour} {self.shape} {verb} {self.motion}"

    @classmethod
    def parse(cls, text: str) -> "Caption":
        """Read a caption of the grammar; a ValueError names the grammar for any other text."""
        words = text.split()
        if len(words) == 5 and words[1] in COLOURS and words[2] in SHAPES and words[4] in MOTIONS:
            caption = cls(words[1], words[2], words[4])
            if str(caption) == text.strip():
                return caption
        raise ValueError(
            f"{text!r} is not a caption of the shapes world; write 'a <{'|'.join(COLOURS)}> <{'|'.join(SHAPES)}> "
            "<moving right|moving left|moving up|moving down|standing still|orbiting clockwise|orbiting counterclockwise>'."
        )


@dataclass(frozen=True)
class Scene:
    """A caption plus everything it leaves open: start, size and orbit of the object, in pixels and radians."""

    caption: Caption
    radius: float
    x: float  # start of a straight or still object, or the centre of the orbit
    y: float
    orbit_radius: float = 0.0
    phase: float = 0.0


def random_caption(rng: random.Random, motion: str | None = None) -> Caption:
    """Draw colour, shape and (unless given) motion uniformly."""
    return Caption(rng.choice(list(COLOURS)), rng.choice(SHAPES), motion or rng.choice(MOTIONS))


def random_scene(rng: random.Random, caption: Caption | None = None) -> Scene:
    """Draw a scene for a caption such that its native clip stays inside the picture without touching a wall."""
    caption = caption or random_caption(rng)
    radius = SIZE * rng.uniform(*RADIUS)
    low, high = radius, SIZE - radius
    if caption.motion in ORBITS:
        orbit = SIZE * rng.uniform(*ORBIT_RADIUS)
        x, y = (rng.uniform(radius + orbit, SIZE - radius - orbit) for _ in range(2))
        return Scene(caption, radius, x, y, orbit, rng.uniform(0, 2 * math.pi))
    way = SPEED * (NATIVE_FRAMES - 1)
    start = []
    for direction in STRAIGHT.get(caption.motion, (0.0, 0.0)):
        start.append(rng.uniform(low, high - way) if direction > 0 else rng.uniform(low + way, high) if direction < 0 else rng.uniform(low, high))
    return Scene(caption, radius, start[0], start[1])


def track(scene: Scene, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre of the object in every frame: x [F] and y [F] in pixels. Straight movers reflect at the walls."""
    t = torch.arange(frames, dtype=torch.float32)
    if scene.caption.motion in ORBITS:
        angle = scene.phase + ORBITS[scene.caption.motion] * 2 * math.pi / ORBIT_PERIOD * t
        return scene.x + scene.orbit_radius * torch.cos(angle), scene.y + scene.orbit_radius * torch.sin(angle)
    dx, dy = STRAIGHT.get(scene.caption.motion, (0.0, 0.0))
    return _reflect(scene.x + SPEED * dx * t, scene.radius), _reflect(scene.y + SPEED * dy * t, scene.radius)


def coverage(shape: str, x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor | float, size: int = SIZE) -> torch.Tensor:
    """Antialiased coverage 0..1 of a shape at centres x [F], y [F] with radius (a number or [F]), all in pixels: [F, size, size]."""
    grid = torch.arange(size, dtype=torch.float32) + 0.5
    radius = torch.as_tensor(radius, dtype=torch.float32).reshape(-1, 1, 1)
    dx, dy = grid[None, None, :] - x[:, None, None], grid[None, :, None] - y[:, None, None]
    if shape == "circle":
        distance = torch.sqrt(dx * dx + dy * dy) - radius
    elif shape == "square":
        distance = torch.maximum(dx.abs(), dy.abs()) - radius * 0.86
    elif shape == "triangle":
        slope = dx.abs() * (math.sqrt(3) / 2) - dy * 0.5
        distance = torch.maximum(dy - radius * 0.75, slope - radius * 0.62)
    else:
        raise ValueError(f"Shape {shape!r} is unknown; the shapes are {', '.join(SHAPES)}.")
    return (0.5 - distance).clamp(0, 1)


def render(scene: Scene, frames: int = NATIVE_FRAMES) -> torch.Tensor:
    """Frames [F, 64, 64, 3] in 0..1 of a scene."""
    x, y = track(scene, frames)
    cover = coverage(scene.caption.shape, x, y, scene.radius)[..., None]
    return BACKGROUND * (1 - cover) + cover * torch.tensor(COLOURS[scene.caption.colour])


def _reflect(position: torch.Tensor, radius: float) -> torch.Tensor:
    """Fold positions back between the walls at `radius` and SIZE - radius."""
    span = SIZE - 2 * radius
    phase = (position - radius) % (2 * span)
    return radius + torch.where(phase <= span, phase, 2 * span - phase)
