"""Measures that compare two pictures, or a clip with a commanded path: what an edit should have changed and what it should not.

| measure | range | perfect | broken |
|---|---|---|---|
| `background_change` | 0..1 | 0 | the mean change outside the mask |
| `old_place_trace` | 0..1 | 0: the old place shows the ground | 1: the object still stands there, 0.3: a ghost of 30 % |
| `follow_path` iou | 0..1 | above 0.8 at 64 pixels, median 0.93 | 0 beside the path |
| `follow_path` error | picture widths | below 0.015 | the distance |
"""

import math

import torch

from .readings import Reading, widen


def background_change(before: torch.Tensor, after: torch.Tensor, mask: torch.Tensor) -> float:
    """Mean absolute change (0..1) of the pixels outside a mask, between two pictures or clips [..., S, S, 3]; mask [..., S, S] bool.

    For "the ground stays the same" over a clip take its first frame as `before`, repeated, and the things' masks of both frames as mask.
    """
    if before.shape != after.shape:
        raise ValueError(f"Both need one shape; they have {list(before.shape)} and {list(after.shape)}.")
    outside = ~mask.bool().expand(after.shape[:-1])
    return float((after - before).abs().mean(-1)[outside].mean()) if bool(outside.any()) else math.nan


def drift(reading: Reading) -> float:
    """Mean absolute change of the ground since the first frame, 0..1, where no thing is in either frame (masks widened by two pixels)."""
    things = widen(reading.masks.any(0).float(), 5) > 0
    return background_change(reading.frames[:1].expand_as(reading.frames), reading.frames, things | things[:1])


def old_place_trace(before: torch.Tensor, after: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> float:
    """How much of an object is still seen where it was: 0..1 for pictures [S, S, 3] and masks [S, S] of its old and new place.

    In the old place outside the new one, the part of `before`'s contrast with the surrounding ground that is left in `after`:
    clamp(<after - g, before - g> / |before - g|^2), g the mean of `before` in a ring around the old place. nan if the places coincide.
    """
    old, new = old.float(), new.float()
    free = (old > 0) & (widen(new, 5) == 0)
    ring = (widen(old, 9) > 0) & (widen(old, 5) == 0)
    if not bool(free.any()) or not bool(ring.any()):
        return math.nan
    ground = before[ring].mean(0)
    was, now = before[free] - ground, after[free] - ground
    return min(1.0, max(0.0, float((was * now).sum() / (was * was).sum().clamp(min=1e-6))))


def follow_path(reading: Reading, thing: int, boxes: torch.Tensor) -> tuple[float, float]:
    """A thing's track against commanded boxes [F, 4] (left, top, right, bottom; picture widths): mean IoU per frame and mean centre distance.

    A frame that lacks the thing counts 0 for the IoU and is left out of the distance (nan if all lack it).
    """
    got = reading.boxes()[thing]
    if boxes.shape != got.shape:
        raise ValueError(f"Boxes are [{len(got)}, 4], one for each frame, not {list(boxes.shape)}.")
    low, high = torch.maximum(got[:, :2], boxes[:, :2]), torch.minimum(got[:, 2:], boxes[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    union = (got[:, 2:] - got[:, :2]).prod(1) + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared
    distance = ((got[:, :2] + got[:, 2:]) / 2 - (boxes[:, :2] + boxes[:, 2:]) / 2).norm(dim=1)
    return float((shared / union).nan_to_num(0.0).mean()), float(distance[~distance.isnan()].mean())
