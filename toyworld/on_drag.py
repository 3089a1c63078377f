"""Was an object dragged? Measures of two pictures: as it was, and with the object somewhere else."""

from __future__ import annotations

import math

import torch

from .edits import background_change, old_place_trace
from .readings import NAMES, Reading, widen
from .surfaces import same_individual
from .world import SHAPES

ARRIVED = 0.1
"""Picture widths: an object nearer than this to where it was sent has arrived."""
LOST = 0.5
"""Distance that counts where the object is not seen: half the picture."""
MARGIN = 16
"""Pixels by which old and new place are widened before anything else counts as background."""

COLUMNS = {
    "drag_arrived": f"1 if the object is seen with its own colour and its centre lies within {ARRIVED:g} picture widths of where it was sent, else 0",
    "drag_error": f"distance of its centre from there, in picture widths, {LOST:g} where it is not seen; 0 is perfect",
    "drag_shape": "overlap of what is seen with its own shape there; 0 where it is not seen; 0..1, perfect 0.97",
    "drag_identity": "likeness of its pattern before and after, 0 where colour or shape differ or it is not seen; nan if it is plain; 0..1, truth above 0.9",
    "drag_trace": "how much of it is left where it was; nan if the places coincide; 0..1, perfect 0",
    "drag_background": "mean change of the rest of the picture; 0..1, perfect 0",
}


def measure_drag(before: Reading, after: Reading, dx: float, dy: float) -> dict[str, float]:
    """COLUMNS for the first thing of a caption, in readings of one picture each. dx, dy: in picture widths.

    All nan where the picture did not show the object to begin with: nothing could be dragged.
    """
    thing = before.caption.things[0]
    colour, shape = NAMES.index(thing.colour), SHAPES.index(thing.shape)
    if not (bool(before.found[0, 0]) and int(before.colour[0, 0]) == colour):
        return dict.fromkeys(COLUMNS, math.nan)
    seen = bool(after.found[0, 0]) and int(after.colour[0, 0]) == colour
    wanted = (float(before.x[0, 0]) + dx, float(before.y[0, 0]) + dy)
    error = math.hypot(float(after.x[0, 0]) - wanted[0], float(after.y[0, 0]) - wanted[1]) if seen else LOST
    old = before.masks[0, 0]
    new = moved(old, round(dx * old.shape[1]), round(dy * old.shape[0]))
    both = widen((old | new).float(), 2 * MARGIN + 1) > 0
    return {
        "drag_arrived": float(seen and error < ARRIVED),
        "drag_error": min(error, LOST),
        "drag_shape": float(after.iou[0, 0, shape]) if seen else 0.0,
        "drag_identity": same_individual(before, 0, after, 0) if seen else 0.0,
        "drag_trace": old_place_trace(before.frames[0], after.frames[0], old, new),
        "drag_background": background_change(before.frames[0], after.frames[0], both),
    }


def moved(mask: torch.Tensor, right: int, down: int) -> torch.Tensor:
    """A mask [S, S] shifted by whole pixels; what leaves the picture is lost."""
    out = torch.zeros_like(mask)
    h, w = mask.shape
    rows, columns = slice(max(0, down), min(h, h + down)), slice(max(0, right), min(w, w + right))
    out[rows, columns] = mask[max(0, -down) : min(h, h - down), max(0, -right) : min(w, w - right)]
    return out


def perfectly(before: Reading, dx: float, dy: float) -> torch.Tensor:
    """The picture [1, S, S, 3] with the first thing cut out and put where it was sent, its old place filled with the ground around it.

    Exact on plain grounds: what a perfect drag would look like.
    """
    frame, old = before.frames[0], widen(before.masks[0, 0].float(), 5) > 0
    ring = (widen(old.float(), 9) > 0) & ~old
    right, down = round(dx * frame.shape[1]), round(dy * frame.shape[0])
    new = moved(old, right, down)
    out = torch.where(old[..., None], frame[ring].mean(0), frame)
    return torch.where(new[..., None], frame.roll((down, right), (0, 1)), out)[None]
