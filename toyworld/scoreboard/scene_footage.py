"""What is read from every picture and clip of the second world, and the rendered truth they are held against."""

from __future__ import annotations

import random

import torch

from ..fidelity import fidelity
from ..latent import pixel_frames
from ..readings import NAMES, Reading, read
from ..scenes import Caption, random_scene, render
from ..scenes.grammar import SCALINGS
from ..scenes.tracks import NATIVE_FRAMES
from ..scores import score_reading
from ..traits import STILL, motion_name
from ..world import SHAPES, STRAIGHT
from .footage import Footage

READERS = tuple(
    f"toyworld/{name}.py" for name in ("edits", "fidelity", "on_path", "readings", "scores", "stability", "surfaces", "traits", "world", "scoreboard/scene_footage")
) + tuple(f"toyworld/scenes/{name}.py" for name in ("grammar", "layout", "render", "textures", "tracks"))
"""What these numbers depend on."""
BROKEN = 0.45
"""Overlap with the named shape below which a frame shows something else, as in the first world."""

COLUMNS = {
    "right": "1 for a picture in which every named thing is seen with its colour and its shape, and nothing else; share of such frames in a clip",
    "broken": f"share of (thing, frame) whose overlap with the named shape is below {BROKEN}, things that are not seen included; 0..1, truth 0",
    "motion_kept": "share of (thing, native window) that shows the named motion, windows of 33 frames; after the first a straight mover may have turned "
    "back at a wall: it has to move, on its axis; growing and shrinking things do not count; 0..1, truth 1",
}


def measure_scene(footage: Footage) -> dict[str, float]:
    """All of `scores.COLUMNS`, those above, and `fidelity.COLUMNS` against the stock picture or clip where there is one of the same shape."""
    reading = read(footage.frames, footage.caption)
    found = score_reading(reading) | {"right": right(reading), "broken": broken(reading)}
    if reading.caption.moving:
        found["motion_kept"] = motion_kept(reading)
    if footage.stock is not None and footage.stock.shape == footage.frames.shape:
        found |= fidelity(footage.frames, footage.stock)
    return found


def right(reading: Reading) -> float:
    """Share of frames that show exactly the named things, each with its colour and its shape."""
    things = reading.caption.things
    colour = reading.colour == torch.tensor([[NAMES.index(thing.colour)] for thing in things])
    shape = reading.shape == torch.tensor([[SHAPES.index(thing.shape)] for thing in things])
    return float(((colour & shape & reading.found).all(0) & (reading.blobs == len(things))).float().mean())


def broken(reading: Reading) -> float:
    """Share of (thing, frame) whose overlap with the named shape is below BROKEN."""
    own = torch.stack([reading.iou[i, :, SHAPES.index(thing.shape)] for i, thing in enumerate(reading.caption.things)])
    return float((own < BROKEN).float().mean())


def motion_kept(reading: Reading, native: int = NATIVE_FRAMES) -> float:
    """Share of (thing, native window) that shows the named motion; nan if all things grow or shrink. Windows share one frame."""
    starts = range(0, max(1, len(reading.frames) - native + 1), native - 1)
    kept = []
    for thing, *track in zip(reading.caption.things, reading.x, reading.y, reading.radius, strict=True):
        if thing.motion not in SCALINGS:
            kept += [_shows(*(part[start : start + native] for part in track), thing.motion, start == 0) for start in starts]
    return sum(kept) / len(kept) if kept else float("nan")


def _shows(x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor, motion: str, first: bool) -> bool:
    name = motion_name(x, y, radius)
    if first or motion not in STRAIGHT or name == "none":
        return name == motion
    along, across = (x, y) if STRAIGHT[motion][0] else (y, x)
    return _range(along) >= STILL > _range(across)


def _range(values: torch.Tensor) -> float:
    seen = values[~values.isnan()]
    return float(seen.max() - seen.min())


def rendered_clip(caption: str, seed: int, latent_frames: int, side: int = 64) -> torch.Tensor:
    """Frames [4 T - 3, side, side, 3] in 0..1 of the scene that the seed draws for a caption."""
    return render(random_scene(random.Random(seed), Caption.parse(caption)), pixel_frames(latent_frames), side)


def rendered_picture(caption: str, seed: int, latent_frames: int = 1, side: int = 128) -> torch.Tensor:
    """The same for pictures: [1, side, side, 3]."""
    return rendered_clip(caption, seed, 1, side)
