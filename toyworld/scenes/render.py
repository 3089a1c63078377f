"""From a scene to pixels: antialiased frames of any size and number, the same for the same scene."""

import torch

from ..world import COLOURS, coverage
from .grammar import GROUNDS
from .layout import Scene
from .textures import GROUND_PERIOD, PERIOD, darkness, pattern
from .tracks import REACH, Body, follow

SHADE = 0.55  # brightness of the dark part of an object's pattern
GROUND_LIFT = 1.3, 0.05  # the light part of a ground's pattern: factor and offset


def render(scene: Scene, frames: int | None = None, size: int = 64) -> torch.Tensor:
    """Frames [F, size, size, 3] in 0..1. `frames` is the native length for a clip and 1 for a picture unless given.

    The ground does not move. Where objects overlap (only if the scene was asked to allow it) the one named first is in front.
    """
    frames = frames or (scene.native if scene.caption.moving else 1)
    canvas = ground(scene, size).repeat(frames, 1, 1, 1)
    for index in reversed(range(len(scene.bodies))):
        _paint(canvas, scene.bodies[index], scene.native)
    return canvas


def render_batch(scenes: list[Scene], frames: int | None = None, size: int = 64) -> torch.Tensor:
    """Frames [B, F, size, size, 3] of several scenes of one length."""
    return torch.stack([render(scene, frames, size) for scene in scenes])


def masks(scene: Scene, frames: int | None = None, size: int = 64) -> torch.Tensor:
    """True coverage [things, F, size, size] in 0..1 of every object, as if it were alone."""
    frames = frames or (scene.native if scene.caption.moving else 1)
    tracks = [[value * size for value in follow(body, frames, scene.native)] for body in scene.bodies]
    return torch.stack([coverage(body.thing.shape, x, y, radius, size) for body, (x, y, radius) in zip(scene.bodies, tracks)])


def ground(scene: Scene, size: int = 64) -> torch.Tensor:
    """The background alone: [size, size, 3]."""
    grid = (torch.arange(size) + 0.5) / size
    drawn = pattern(scene.caption.ground.texture, scene.ground_seed, GROUND_PERIOD)
    dark = torch.tensor(GROUNDS[scene.caption.ground.colour])
    light = dark * GROUND_LIFT[0] + GROUND_LIFT[1]
    return dark + (light - dark) * darkness(drawn, grid[None, :], grid[:, None], float(size))[..., None].expand(size, size, 1)


def _paint(canvas: torch.Tensor, body: Body, native: int) -> None:
    """Draw one object into frames [F, S, S, 3]. Only a window around it is computed: that is six times fewer pixels."""
    frames, size = canvas.shape[:2]
    x, y, radius = (value * size for value in follow(body, frames, native))
    width = min(size, int(2 * max(REACH[body.thing.shape][:3]) * float(radius.max())) + 4)
    left, top = ((value - width / 2).floor().clamp(0, size - width) for value in (x, y))
    x, y = x - left, y - top
    cover = coverage(body.thing.shape, x, y, radius, width)[..., None]
    colour = torch.tensor(COLOURS[body.thing.colour])
    if body.thing.texture != "plain":
        grid, r = torch.arange(width) + 0.5, radius[:, None, None]
        dark = darkness(pattern(body.thing.texture, body.seed, PERIOD), (grid - x[:, None, None]) / r, (grid[:, None] - y[:, None, None]) / r, r)
        colour = colour * (1 - (1 - SHADE) * dark[..., None])
    step = torch.arange(width)
    where = (torch.arange(frames)[:, None, None], (top.long()[:, None] + step)[:, :, None], (left.long()[:, None] + step)[:, None, :])
    behind = canvas[where]
    canvas[where] = behind + cover * (colour - behind)
