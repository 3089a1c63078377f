"""Paths from values other nodes make: the host's point tracks (TRACKS) and boxes (BOUNDING_BOX).

Both give a place per frame; a :class:`Tracks` keeps only the key frames that are needed to come within two pixels of
them, so what was measured can be edited by hand afterwards. ComfyUI 0.3.75 has neither value; later versions have both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .errors import LoomError
from .tracks import MAX_OBJECTS, Box, KeyFrame, Track, Tracks, stretched

TOLERANCE = 2.0
"""Pixels of the longer side: far below the 16 pixels that the models' tokens stand for, and few enough keys to edit."""

Samples = list[tuple[int, Box | None]]
"""(frame of the clip, box or None where absent), frames increasing from 0 to the last."""


def from_points(value: Mapping[str, Any], frames: int, width: int, height: int, box_width: float, box_height: float) -> Tracks:
    """Boxes of one size around points that move. Raises LoomError.

    value: ``track_path`` [T, N, 2] in pixels (x, y) and ``track_visibility`` [T, N] or [T, 1], as the host's TRACKS.
    box_width, box_height: in parts of the picture, above 0 and at most 1.
    """
    if not isinstance(value, Mapping) or "track_path" not in value:
        raise LoomError(f"tracks is {type(value).__name__} without track_path; connect a node that gives TRACKS.")
    path = torch.as_tensor(value["track_path"]).detach().double().cpu()
    if path.ndim != 3 or path.shape[-1] != 2 or 0 in path.shape:
        raise LoomError(f"track_path of tracks has the shape {list(path.shape)}; [frames, points, 2] fits.")
    count, points, _ = path.shape
    _few_enough(points, "tracks has {} points; at most {} fit: keep fewer points.")
    seen = value.get("track_visibility")
    visible = torch.ones(count, points, dtype=torch.bool) if seen is None else torch.as_tensor(seen).detach().cpu().bool()
    if visible.ndim != 2 or visible.shape[0] != count or visible.shape[1] not in (1, points):
        raise LoomError(f"track_visibility of tracks has the shape {list(visible.shape)}; [{count}, {points}] fits.")
    visible = visible.expand(count, points) & torch.isfinite(path).all(-1)
    half = torch.tensor([box_width, box_height], dtype=torch.float64) / 2
    centre = path / torch.tensor([width, height], dtype=torch.float64)
    boxes = torch.cat([centre - half, centre + half], -1)
    per_point = [[_box(boxes[t, n].tolist()) if visible[t, n] else None for t in range(count)] for n in range(points)]
    return _tracks(per_point, "point", frames, width, height)


def from_bounding_boxes(value: Any, frames: int, width: int, height: int) -> Tracks:
    """Boxes in pixels: one box, one per frame, or a list of them per frame. Raises LoomError.

    value: ``{x, y, width, height}``, a list of those (one per frame), or a list of lists (per frame, one per object; the
    place in the list says which object it is). A single box or frame stays for the whole clip.
    """
    listed = [value] if isinstance(value, Mapping) else value
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        raise LoomError("boxes holds no box; connect a node that gives BOUNDING_BOX.")
    per_frame = [[item] if isinstance(item, Mapping) else list(item) for item in listed]
    objects = max(len(items) for items in per_frame)
    if not objects:
        raise LoomError("boxes holds no box in any frame; nothing was found in the pictures it was made from.")
    _few_enough(objects, "boxes has {} boxes in a frame; at most {} fit: keep fewer.")
    per_object = [[_pixels(items[n], t, width, height) if n < len(items) else None for t, items in enumerate(per_frame)] for n in range(objects)]
    return _tracks(per_object, "box", frames, width, height)


def _tracks(per_object: list[list[Box | None]], word: str, frames: int, width: int, height: int) -> Tracks:
    tolerance = TOLERANCE / max(width, height)
    objects = []
    for n, boxes in enumerate(per_object):
        samples = _spread(boxes, frames)
        if all(box is None for _, box in samples):
            raise LoomError(f"{word} {n + 1} is not visible in any frame of the clip; leave it out.")
        objects.append(Track(f"{word} {n + 1}", _keys(samples, tolerance)))
    return Tracks(frames, width, height, tuple(objects), clip=True)


def _spread(boxes: list[Box | None], frames: int) -> Samples:
    """Measured frames at their places in the clip; one box alone stays where it is."""
    count = len(boxes)
    if count == 1:
        return [(0, boxes[0])] if frames == 1 else [(0, boxes[0]), (frames - 1, boxes[0])]
    if count <= frames:
        return [(stretched(t, count, frames), box) for t, box in enumerate(boxes)]
    return [(f, boxes[stretched(f, frames, count) if frames > 1 else 0]) for f in range(frames)]


def _keys(samples: Samples, tolerance: float) -> tuple[KeyFrame, ...]:
    """Key frames whose straight lines pass every sample within ``tolerance``; absent stretches are invisible keys."""
    keys: list[KeyFrame] = []
    known = next((box for _, box in samples if box is not None), None)
    run: list[tuple[int, Box]] = []
    for frame, box in [*samples, (samples[-1][0] + 1, None)]:
        if box is not None:
            run.append((frame, box))
            known = box
            continue
        keys += [KeyFrame(f, b) for f, b in _thin(run, tolerance)]
        if known is not None and frame <= samples[-1][0] and (not keys or keys[-1].visible):
            keys.append(KeyFrame(frame, known, visible=False))
        run = []
    if keys[-1].frame < samples[-1][0]:  # absent to the end
        keys.append(KeyFrame(samples[-1][0], keys[-1].box, visible=False))
    return tuple(keys)


def _thin(run: list[tuple[int, Box]], tolerance: float) -> list[tuple[int, Box]]:
    """Ramer, Douglas and Peucker on four edges over time: split where the straight line errs most."""
    if len(run) <= 2:
        return run
    kept, open_parts = {0, len(run) - 1}, [(0, len(run) - 1)]
    while open_parts:
        a, b = open_parts.pop()
        worst, at = tolerance, None
        for i in range(a + 1, b):
            u = (run[i][0] - run[a][0]) / (run[b][0] - run[a][0])
            error = max(abs(p + (q - p) * u - v) for p, q, v in zip(run[a][1], run[b][1], run[i][1]))
            if error > worst:
                worst, at = error, i
        if at is not None:
            kept.add(at)
            open_parts += [(a, at), (at, b)]
    return [run[i] for i in sorted(kept)]


def _pixels(item: Any, frame: int, width: int, height: int) -> Box | None:
    """One host box in parts of the picture; an empty one counts as absent."""
    try:
        x, y, w, h = (float(item[k]) for k in ("x", "y", "width", "height"))
    except (KeyError, TypeError, ValueError):
        raise LoomError(f"boxes, frame {frame}: {str(item)[:60]} is not a box; x, y, width and height in pixels fit.") from None
    if not all(map(math.isfinite, (x, y, w, h))):
        raise LoomError(f"boxes, frame {frame}: x {x:g}, y {y:g}, width {w:g}, height {h:g} are not all finite numbers.")
    return _box((x / width, y / height, (x + w) / width, (y + h) / height))


def _box(edges: Sequence[float]) -> Box | None:
    """Four edges of a path that may leave the picture (Tracks.clip); None if there is nothing between them."""
    x0, y0, x1, y1 = edges
    far = [min(11.0, max(-10.0, v)) for v in edges]
    return (far[0], far[1], far[2], far[3]) if x0 < x1 and y0 < y1 and far[0] < far[2] and far[1] < far[3] else None


def _few_enough(count: int, sentence: str) -> None:
    if count > MAX_OBJECTS:
        raise LoomError(sentence.format(count, MAX_OBJECTS))
