"""Which prompt holds for which frame of an endless clip.

A conditioning entry may carry the frame from which it holds, under :data:`FROM`; entries without one always hold. Of those with
one, the latest that has begun holds alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from ..errors import LoomError

FROM = "loom_from_frame"
"""Key of a conditioning entry: the latent frame of the clip from which it holds."""
Switch = Literal["each frame", "whole queue"]
SWITCHES = ("each frame", "whole queue")
_LINE = re.compile(r"^\s*(\d+)\s*:\s*(.*?)\s*$")

Entry = dict[str, Any]
Conds = dict[str, list[Entry]]


@dataclass(frozen=True)
class Scene:
    """A prompt and the latent frame from which it holds."""

    frame: int
    text: str


def scenes(text: str) -> list[Scene]:
    """Lines "frame: prompt" in any order, the first at frame 0; a text without numbers is one scene. Raises LoomError naming the line."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise LoomError("no prompt was given; write lines like '0: a fox sleeps' and '40: the fox wakes up', the number being the latent frame.")
    if not any(_LINE.match(line) for line in lines):
        return [Scene(0, " ".join(line.strip() for line in lines))]
    found = []
    for number, line in enumerate(lines, 1):
        match = _LINE.match(line)
        if match is None:
            raise LoomError(f"line {number}, '{line.strip()}', does not begin with a frame; write 'frame: prompt' in every line, like '40: the fox wakes up'.")
        found.append(Scene(int(match[1]), match[2]))
    found.sort(key=lambda scene: scene.frame)
    if found[0].frame != 0:
        raise LoomError(f"the first prompt begins at frame {found[0].frame}; one must begin at 0.")
    for a, b in pairwise(found):
        if a.frame == b.frame:
            raise LoomError(f"two prompts begin at frame {a.frame}; give each a frame of its own.")
    return found


def begins(conds: Conds) -> list[int]:
    """The frames at which a prompt changes, ascending, without 0."""
    return sorted({entry[FROM] for entries in conds.values() for entry in entries if entry.get(FROM, 0) > 0})


def check(conds: Conds) -> None:
    """Raises LoomError where no prompt holds at frame 0."""
    for name, entries in conds.items():
        if entries and all(entry.get(FROM, 0) > 0 for entry in entries):
            raise LoomError(f"the first {name} prompt begins at frame {min(entry[FROM] for entry in entries)}; one must begin at 0.")


def holding(conds: Conds, frame: int, window: int | None = None) -> Conds:
    """The entries that hold at a frame. window: they get an identity of their own for each window of the queue, by which others keep
    apart what they remember of it.
    """
    return {name: [_of(entry, window) for entry in _now(entries, frame)] for name, entries in conds.items()}


def scene(conds: Conds) -> int:
    """The frame from which the positive prompt of these entries holds."""
    return max((entry.get(FROM, 0) for entry in conds.get("positive", ())), default=0)


def _now(entries: list[Entry], frame: int) -> list[Entry]:
    begun = [entry[FROM] for entry in entries if FROM in entry and entry[FROM] <= max(0, frame)]
    return [entry for entry in entries if FROM not in entry or (begun and entry[FROM] == max(begun))]


def _of(entry: Entry, window: int | None) -> Entry:
    return entry if window is None else entry | {"uuid": (entry.get("uuid"), window)}
