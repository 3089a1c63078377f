"""Paths of objects through a clip: boxes at key frames, read from JSON, interpolated to one box per pixel frame.

The JSON is the whole state of the path editor and may as well be written by hand; docs/track-schema.md describes it. The
editor draws with the same arithmetic (``web/js/track_geometry.js``), in the same order of operations, so both come to the
same 64-bit numbers; tests/fixtures/track_cases.json holds both to it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from .errors import LoomError

VERSION = 1
EASES = ("linear", "ease_in", "ease_out", "ease_in_out", "hold")
EXTENDS = ("none", "hold")
MAX_FRAMES, MAX_SIDE, MAX_OBJECTS = 16384, 16384, 16
FAR = 10.0
"""With clip on, edges may lie outside the picture, at most this many pictures away."""

Box = tuple[float, float, float, float]
EDGES = ("x0", "y0", "x1", "y1")
DOCUMENT = {"version", "frames", "width", "height", "extend", "clip", "objects"}
OBJECT = {"name", "keys"}
KEY = {"frame", "box", "ease", "visible"}


def ease(kind: str, u: float) -> float:
    """How far towards the next key frame at the part ``u`` in [0, 1) of the time between. ``hold`` waits and then jumps."""
    if kind == "linear":
        return u
    if kind == "ease_in":
        return u * u
    if kind == "ease_out":
        return u * (2 - u)
    if kind == "ease_in_out":
        return u * u * (3 - 2 * u)
    return 0.0


@dataclass(frozen=True)
class KeyFrame:
    """A box (x0, y0, x1, y1) in parts of the picture at one pixel frame; ``ease`` and ``visible`` hold until the next key."""

    frame: int
    box: Box
    ease: str = "linear"
    visible: bool = True


@dataclass(frozen=True)
class Track:
    """One object: its key frames in the order of time, the first at frame 0, the last at the last frame of the clip."""

    name: str
    keys: tuple[KeyFrame, ...]

    def box_at(self, frame: int) -> Box | None:
        """The box at a pixel frame as drawn (not clipped to the picture); None where the object is absent."""
        i = max(i for i, key in enumerate(self.keys) if key.frame <= frame)
        here = self.keys[i]
        if not here.visible:
            return None
        if i + 1 == len(self.keys):
            return here.box
        there = self.keys[i + 1]
        e = ease(here.ease, (frame - here.frame) / (there.frame - here.frame))
        x0, y0, x1, y1 = (a + (b - a) * e for a, b in zip(here.box, there.box))
        return x0, y0, x1, y1


@dataclass(frozen=True)
class Tracks:
    """The paths of all objects of a clip of ``frames`` pixel frames of ``width`` x ``height`` pixels.

    ``clip``: boxes may leave the picture; what is outside is cut off and a box wholly outside counts as absent. Without it
    every box lies inside, which :meth:`parse` checks.
    """

    frames: int
    width: int
    height: int
    objects: tuple[Track, ...]
    clip: bool = False

    @classmethod
    def parse(cls, text: str, frames: int | None = None, width: int | None = None, height: int | None = None) -> Tracks:
        """Read the JSON of docs/track-schema.md. Raises LoomError naming object and key frame.

        ``frames``, ``width``, ``height``: what the clip really has; None takes what the JSON says. A path drawn for another
        number of frames is played at another speed: its key frames move in proportion, by :func:`stretched`.
        """
        data = _load(text)
        _fields(data, DOCUMENT, "The track")
        if data.get("version") != VERSION:
            raise LoomError(f"The track has version {_show(data.get('version'))}; this pack reads version {VERSION}.")
        drawn = _whole(data["frames"], "frames of the track", 1, MAX_FRAMES) if "frames" in data else None
        frames = _whole(frames if frames is not None else _needed(data, "frames"), "frames", 1, MAX_FRAMES)
        width = _whole(width if width is not None else _needed(data, "width"), "width", 1, MAX_SIDE)
        height = _whole(height if height is not None else _needed(data, "height"), "height", 1, MAX_SIDE)
        extend, clip = data.get("extend", "none"), data.get("clip", False)
        if extend not in EXTENDS:
            raise LoomError(f"extend of the track is {_show(extend)}; choose one of {', '.join(EXTENDS)}.")
        if not isinstance(clip, bool):
            raise LoomError(f"clip of the track is {_show(clip)}; it is true or false.")
        listed = data.get("objects")
        if not isinstance(listed, list) or not listed:
            raise LoomError("The track has no objects; draw at least one box.")
        if len(listed) > MAX_OBJECTS:
            raise LoomError(f"The track has {len(listed)} objects; at most {MAX_OBJECTS} fit.")
        objects = tuple(_track(i + 1, item, drawn or frames, frames, extend == "hold", clip) for i, item in enumerate(listed))
        _different_names(objects)
        return cls(frames, width, height, objects, clip)

    def json(self) -> str:
        """The JSON that :meth:`parse` reads back as exactly this value, one key frame per line."""
        objects = []
        for track in self.objects:
            keys = ",\n".join(f"      {json.dumps(_key_json(key))}" for key in track.keys)
            objects.append(f'    {{"name": {json.dumps(track.name, ensure_ascii=False)}, "keys": [\n{keys}\n    ]}}')
        head = f'"version": {VERSION}, "frames": {self.frames}, "width": {self.width}, "height": {self.height}'
        return f'{{\n  {head}, "clip": {json.dumps(self.clip)},\n  "objects": [\n' + ",\n".join(objects) + "\n  ]\n}"

    def boxes(self) -> torch.Tensor:
        """Boxes [objects, frames, 4], float64, (x0, y0, x1, y1) in parts of the picture; NaN where an object is not seen."""
        absent = (math.nan,) * 4
        return torch.tensor([[self._seen(track.box_at(f)) or absent for f in range(self.frames)] for track in self.objects], dtype=torch.float64)

    def _seen(self, box: Box | None) -> Box | None:
        """The part of a box inside the picture; None if there is none."""
        if box is None or not self.clip:
            return box
        x0, y0, x1, y1 = (min(1.0, max(0.0, edge)) for edge in box)
        return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def stretched(frame: int, drawn: int, frames: int) -> int:
    """The place of a frame of a clip of ``drawn`` frames in one of ``frames`` frames: first and last stay, half rounds up."""
    if drawn == frames or drawn == 1:
        return frame
    return (2 * frame * (frames - 1) + (drawn - 1)) // (2 * (drawn - 1))


def _track(number: int, item: Any, drawn: int, frames: int, hold: bool, clip: bool) -> Track:
    """One object of the JSON, its key frames moved to the clip's own frames and reaching from its first to its last."""
    where = f"object {number}"
    if not isinstance(item, dict):
        raise LoomError(f"{where} is {_show(item)}; it is an object with name and keys.")
    name = item.get("name")
    if not isinstance(name, str) or not name.strip() or len(name) > 80:
        raise LoomError(f"{where} has the name {_show(name)}; give it one of 1 to 80 letters.")
    where = f'object {number} "{name}"'
    _fields(item, OBJECT, where)
    if not isinstance(item.get("keys"), list) or not item["keys"]:
        raise LoomError(f"{where} has no key frames; draw at least one box.")
    keys = [_key(f"{where}, key frame number {i + 1}", where, key, drawn, clip) for i, key in enumerate(item["keys"])]
    for before, after in pairwise(keys):
        if after.frame <= before.frame:
            wrong = (
                f"two key frames at {after.frame}; keep one of them"
                if after.frame == before.frame
                else f"the key frame at {after.frame} after the one at {before.frame}; order them by frame"
            )
            raise LoomError(f"{where} has {wrong}.")
    return Track(name, _reach(_stretch(keys, where, drawn, frames), where, frames, hold))


def _key(unnamed: str, where: str, item: Any, drawn: int, clip: bool) -> KeyFrame:
    """One key frame of the JSON; ``unnamed`` is what to call it while its frame is not known."""
    if not isinstance(item, dict):
        raise LoomError(f"{unnamed} is {_show(item)}; it is an object with frame and box.")
    if "frame" not in item:
        raise LoomError(f"{unnamed} has no frame; say at which frame of the clip it lies.")
    frame = _whole(item["frame"], f"{unnamed}: frame", 0, drawn - 1)
    where = f"{where}, key frame at {frame}"
    _fields(item, KEY, where)
    kind, visible = item.get("ease", "linear"), item.get("visible", True)
    if kind not in EASES:
        raise LoomError(f"{where}: ease is {_show(kind)}; choose one of {', '.join(EASES)}.")
    if not isinstance(visible, bool):
        raise LoomError(f"{where}: visible is {_show(visible)}; it is true or false.")
    return KeyFrame(frame, _box(item.get("box"), where, clip), kind, visible)


def _box(value: Any, where: str, clip: bool) -> Box:
    """Four edges: finite, in order, inside the picture unless clip is on."""
    if not isinstance(value, list) or len(value) != 4 or any(isinstance(v, bool) or not isinstance(v, int | float) for v in value):
        raise LoomError(f"{where}: box is {_show(value)}; it is four numbers [x0, y0, x1, y1] in parts of the picture.")
    low, high = (-FAR, 1 + FAR) if clip else (0.0, 1.0)
    for edge, v in zip(EDGES, value):
        if not math.isfinite(v):
            raise LoomError(f"{where}: {edge} is {v}, which is not a finite number.")
        if not low <= v <= high:
            advice = f"keep it between {low:g} and {high:g}" if clip else 'keep the box inside the picture, 0 to 1, or set "clip": true to let it leave'
            raise LoomError(f"{where}: {edge} is {_number(v)}; {advice}.")
    x0, y0, x1, y1 = (float(v) + 0.0 for v in value)  # + 0.0: no negative zero
    for a, b, first, last, side, length in ((x0, x1, "x0", "x1", "left of", "width"), (y0, y1, "y0", "y1", "above", "height")):
        if a == b:
            raise LoomError(f"{where}: {first} and {last} are both {_number(a)}; a box needs a {length} above 0.")
        if b < a:
            raise LoomError(f"{where}: {last} {_number(b)} is {side} {first} {_number(a)}; swap them.")
    return x0, y0, x1, y1


def _stretch(keys: list[KeyFrame], where: str, drawn: int, frames: int) -> list[KeyFrame]:
    """Key frames of a path drawn for ``drawn`` frames at their places in a clip of ``frames``."""
    moved = [replace(key, frame=stretched(key.frame, drawn, frames)) for key in keys]
    for i, (before, after) in enumerate(pairwise(moved)):
        if after.frame == before.frame:
            raise LoomError(
                f"{where}, drawn for {drawn} frames, does not fit into {frames}: the key frames at {keys[i].frame} and "
                f"{keys[i + 1].frame} both fall on frame {after.frame}; use more frames or fewer key frames."
            )
    return moved


def _reach(keys: list[KeyFrame], where: str, frames: int, hold: bool) -> tuple[KeyFrame, ...]:
    """Key frames from the first to the last frame of the clip; with ``hold`` the outer boxes stay as they are."""
    first, last = keys[0], keys[-1]
    advice = 'add one there or set "extend": "hold" to keep the box as it is'
    if first.frame > 0:
        if not hold:
            raise LoomError(f"{where} has its first key frame at {first.frame} and none at 0; {advice}.")
        keys = [KeyFrame(0, first.box, "linear", first.visible), *keys]
    if last.frame < frames - 1:
        if not hold:
            raise LoomError(f"{where} has its last key frame at {last.frame} and none at {frames - 1}, the last of {frames} frames; {advice}.")
        # the last key's own ease leads nowhere: between equal boxes every ease is the same
        keys = [*keys, KeyFrame(frames - 1, last.box, "linear", last.visible)]
    return tuple(keys)


def _different_names(objects: tuple[Track, ...]) -> None:
    seen: dict[str, int] = {}
    for i, track in enumerate(objects):
        if track.name in seen:
            raise LoomError(f'objects {seen[track.name]} and {i + 1} are both called "{track.name}"; give each its own name.')
        seen[track.name] = i + 1


def _key_json(key: KeyFrame) -> dict[str, Any]:
    out: dict[str, Any] = {"frame": key.frame, "box": list(key.box), "ease": key.ease}
    return out if key.visible else out | {"visible": False}


def _load(text: str) -> dict[str, Any]:
    if not isinstance(text, str) or not text.strip():
        raise LoomError("The track is empty; draw a path or send the JSON of docs/track-schema.md.")
    try:
        data = json.loads(text, object_pairs_hook=_no_repeats)
    except json.JSONDecodeError as error:
        raise LoomError(f"The track is not JSON: line {error.lineno}, column {error.colno}: {error.msg}.") from None
    except RecursionError:
        raise LoomError("The track is not JSON that can be read: it is nested too deep.") from None
    if not isinstance(data, dict):
        raise LoomError(f"The track is {_show(data)}; it is one JSON object with version and objects.")
    return data


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a field written twice would silently lose the first value."""
    out: dict[str, Any] = {}
    for name, value in pairs:
        if name in out:
            raise LoomError(f'The track has the field "{name}" twice in one place; keep one.')
        out[name] = value
    return out


def _fields(data: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(data) - known)
    if unknown:
        raise LoomError(f'{where} has the field "{unknown[0]}", which is not known here; known are {", ".join(sorted(known))}.')


def _needed(data: dict[str, Any], name: str) -> Any:
    if name not in data:
        raise LoomError(f'The track says nothing of {name}; add "{name}" to it.')
    return data[name]


def _whole(value: Any, what: str, low: int, high: int) -> int:
    whole = not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
    if not whole or not low <= value <= high:
        raise LoomError(f"{what} is {_show(value)}; it is a whole number from {low} to {high}.")
    return int(value)


def _number(value: float) -> str:
    return f"{value:.2f}" if round(value, 2) == value else f"{value:.6g}"


def _show(value: Any) -> str:
    """A JSON value as the user wrote it, cut short."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
