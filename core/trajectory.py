"""Boxes of moving objects on a token grid, and the positions their tokens take (STD-RoPE of DiTraj).

Source: "DiTraj: training-free trajectory control for video diffusion transformer", arXiv 2509.21839. Every token of an object
keeps its time and takes the place in the picture that it would have if the object stood still in one *anchor box*, the smallest
box of its path: then all tokens of the object see each other, in all frames, as neighbours. A background token that stands
where another token claims to be (a *twin*) is kept from seeing the objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from .errors import LoomError

Resample = Literal["nearest", "linear"]
SMALLEST = 2
"""Tokens a box has at least on each side."""
EPS = 1e-9
"""Keeps 0.29 * 100 = 28.999... in row 29."""


@dataclass(frozen=True, eq=False)
class Paths:
    """tokens int64 [objects, frames, 4]: rows r0 to r1-1 and columns c0 to c1-1 of each object's box, as (r0, r1, c0, c1); all 0
    where the object is absent. anchors: per object (row, column, rows, columns), of the whole clip even if ``tokens`` is a part.
    inclusive: corners are read as the paper's code reads them for positions, without the last row and column.
    """

    tokens: Tensor
    anchors: tuple[tuple[int, int, int, int], ...]
    inclusive: bool = False

    def at(self, frames: tuple[int, ...] | None) -> Paths:
        """The path in these frames of the clip only; beyond its ends the first and the last frame hold."""
        if frames is None:
            return self
        last = self.tokens.shape[1] - 1
        return Paths(self.tokens[:, [min(max(f, 0), last) for f in frames]], self.anchors, self.inclusive)


@dataclass(frozen=True, eq=False)
class Moved:
    """What the tokens of a grid [T, Y, X], flattened, become.

    subject int64 [N]: 0 for background, 1 + o inside the box of object o. shift fp32 [N, 2]: rows and columns by which a token's
    position moves, 0 for background. twin bool [N]: background tokens that stand where a token of an object claims to be.
    """

    subject: Tensor
    shift: Tensor
    twin: Tensor


def paths(boxes: Tensor, y: int, x: int, inclusive: bool = False) -> Paths:
    """Boxes [objects, frames, 4] = (x0, y0, x1, y1) in 0..1, NaN for absent, on a picture of y by x tokens.

    Raises LoomError for a box below 2 x 2 tokens, for an object that is never there, and where two objects share a token.
    """
    scaled = boxes[..., [1, 3, 0, 2]].double() * torch.tensor([y, y, x, x], dtype=torch.float64)
    tokens = torch.nan_to_num(scaled + EPS, nan=0.0).floor().long()
    tokens = torch.minimum(tokens, torch.tensor([y, y, x, x]))
    there = ~torch.isnan(boxes).any(-1)
    _large_enough(tokens, there, y, x)
    _apart(tokens, y, x)
    return Paths(tokens, tuple(_anchor(row, inclusive) for row in tokens), inclusive)


def moved(found: Paths, y: int, x: int, resample: Resample = "nearest") -> Moved:
    """The tokens of all frames of ``found`` on a picture of y by x tokens."""
    frames = found.tokens.shape[1]
    subject = torch.zeros(frames, y, x, dtype=torch.long)
    shift = torch.zeros(frames, y, x, 2)
    claimed = torch.zeros(frames, y, x, dtype=torch.bool)
    for number, (boxes, (ar, ac, ah, aw)) in enumerate(zip(found.tokens.tolist(), found.anchors, strict=True), 1):
        for frame, (r0, r1, c0, c1) in enumerate(boxes):
            subject[frame, r0:r1, c0:c1] = number
            h, w = _size(r0, r1, c0, c1, found.inclusive)
            if h <= 0 or w <= 0 or (r0, c0, h, w) == (ar, ac, ah, aw):
                continue
            rows, columns = ar + _spread(ah, h, resample), ac + _spread(aw, w, resample)
            shift[frame, r0 : r0 + h, c0 : c0 + w, 0] = (rows - torch.arange(r0, r0 + h))[:, None].float()
            shift[frame, r0 : r0 + h, c0 : c0 + w, 1] = (columns - torch.arange(c0, c0 + w))[None].float()
            if resample == "linear":  # places between tokens meet nobody exactly: the whole anchor counts as claimed
                claimed[frame, ar : ar + ah, ac : ac + aw] = True
            else:
                claimed[frame, rows.long()[:, None], columns.long()[None]] = True
    return Moved(subject.flatten(), shift.flatten(0, 2), (claimed & (subject == 0)).flatten())


def doubts(found: Paths, y: int, x: int) -> list[str]:
    """Sentences on what is legal and odd: whole-frame boxes, jumps, very unequal sizes."""
    said = []
    for number, boxes in enumerate(found.tokens.tolist(), 1):
        areas = [(r1 - r0) * (c1 - c0) for r0, r1, c0, c1 in boxes]
        if y * x in areas:
            said.append(f"the box of object {number} covers the whole of frame {areas.index(y * x)}, so no background is left there")
        least, most = min(a for a in areas if a), max(areas)
        if most > 9 * least:
            said.append(f"the boxes of object {number} differ {most / least:.0f} times in area; positions of all frames follow the smallest, so fine detail is lost")
        for frame, (a, b) in enumerate(pairwise(boxes)):
            if areas[frame] and areas[frame + 1] and not _meet(a, b) and abs(a[2] + a[3] - b[2] - b[3]) > x:
                said.append(f"object {number} jumps by more than half the width between latent frames {frame} and {frame + 1}")
    return said


def _spread(anchor: int, size: int, resample: Resample) -> Tensor:
    """Offsets fp64 [size] inside an anchor of ``anchor`` tokens; nearest rounds half to even."""
    offsets = torch.linspace(0, anchor - 1, size, dtype=torch.float64)
    return offsets if resample == "linear" else offsets.round()


def _size(r0: int, r1: int, c0: int, c1: int, inclusive: bool) -> tuple[int, int]:
    less = 1 if inclusive else 0
    return r1 - r0 - less, c1 - c0 - less


def _anchor(boxes: Tensor, inclusive: bool) -> tuple[int, int, int, int]:
    """The smallest box of a path, the earliest of equal ones."""
    sizes = [(r0, c0, *_size(r0, r1, c0, c1, inclusive)) for r0, r1, c0, c1 in boxes.tolist()]
    return min((s for s in sizes if s[2] > 0 and s[3] > 0), key=lambda s: s[2] * s[3])


def _meet(a: list[int], b: list[int]) -> bool:
    return min(a[1], b[1]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[2], b[2])


def _large_enough(tokens: Tensor, there: Tensor, y: int, x: int) -> None:
    for number, (boxes, present) in enumerate(zip(tokens.tolist(), there.tolist(), strict=True), 1):
        if not any(present):
            raise LoomError(f"object {number} has no box in any frame; give it one, or take the object out.")
        for frame, ((r0, r1, c0, c1), here) in enumerate(zip(boxes, present, strict=True)):
            if here and min(r1 - r0, c1 - c0) < SMALLEST:
                raise LoomError(
                    f"the box of object {number} in latent frame {frame} covers {c1 - c0} x {r1 - r0} tokens of a picture of {x} x {y}; it needs {SMALLEST} x {SMALLEST}, "
                    f"so make it wider than {SMALLEST / x:.3f} and higher than {SMALLEST / y:.3f} of the picture."
                )


def _apart(tokens: Tensor, y: int, x: int) -> None:
    taken = torch.zeros(tokens.shape[1], y, x, dtype=torch.long)
    for number, boxes in enumerate(tokens.tolist(), 1):
        for frame, (r0, r1, c0, c1) in enumerate(boxes):
            place = taken[frame, r0:r1, c0:c1]
            if bool(place.any()):
                other = int(place[place > 0][0])
                raise LoomError(f"the boxes of objects {other} and {number} overlap in latent frame {frame}; paths of two objects must not share a token.")
            taken[frame, r0:r1, c0:c1] = number
