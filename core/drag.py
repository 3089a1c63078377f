"""A drag: one object of a picture moved and scaled, as tokens of any grid. Pure geometry.

Source: Avrahami et al., "DiffUHaul: A Training-Free Method for Object Dragging in Images", arXiv 2406.01594. Written from the rules, no code was
released. Displacements are rounded to whole tokens on every grid, so an object keeps its tokens as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.caching import remembered
from .blob import Blob, Edges
from .errors import LoomError

LEAST_SCALE, MOST_SCALE = 0.25, 4.0
OVERLAP = 0.5
"""Share of the smaller of two objects that the dragged one may cover before the user is asked."""


@dataclass(frozen=True)
class Drag:
    """dx, dy: to the right and down, in pixels of the object's frame; scale: of both sides, about the object's centre."""

    dx: float
    dy: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not all(math.isfinite(v) for v in (self.dx, self.dy, self.scale)):
            raise LoomError(f"a drag by {self.dx:g}, {self.dy:g} pixels with scale {self.scale:g} was given; all three are plain numbers.")
        if not LEAST_SCALE <= self.scale <= MOST_SCALE:
            raise LoomError(f"scale {self.scale:g} was given; it lies between {LEAST_SCALE:g} and {MOST_SCALE:g} (1 keeps the size).")

    def shift(self, frame: tuple[int, int], y: int, x: int) -> tuple[int, int]:
        """(rows, columns) by which the object moves on a grid, whole tokens."""
        return round(self.dy * y / frame[0]), round(self.dx * x / frame[1])

    def none(self, frame: tuple[int, int], y: int, x: int) -> bool:
        """Whether nothing moves on a grid."""
        return self.scale == 1.0 and self.shift(frame, y, x) == (0, 0)

    def edges(self, blob: Blob) -> Edges:
        """The object's edges after the drag, pixels."""
        left, top, right, bottom = blob.edges
        u, v, s = blob.x, blob.y, self.scale
        return u + s * (left - u) + self.dx, v + s * (top - v) + self.dy, u + s * (right - u) + self.dx, v + s * (bottom - v) + self.dy


@dataclass(frozen=True, eq=False)
class Dragged:
    """One object on one grid of N tokens. old, new bool [N]: its tokens before and after; back int64 [N]: for each new token the old one that it
    shows, always one of ``old``; -1 elsewhere. moves fp32 [N, 2]: rows and columns by which each old token goes, 0 elsewhere.
    """

    old: Tensor
    new: Tensor
    back: Tensor
    moves: Tensor

    @property
    def vacated(self) -> Tensor:
        """bool [N]: where the object was and is no more."""
        return self.old & ~self.new


def dragged(blob: Blob, drag: Drag, y: int, x: int) -> Dragged:
    """An object's tokens on a grid, moved. What leaves the grid is lost; at least the token nearest to the new centre is the object's."""
    old = blob.tokens(y, x)
    down, right = drag.shift(blob.frame, y, x)
    row, column = blob.center(y, x)
    rows, columns = torch.meshgrid(torch.arange(y), torch.arange(x), indexing="ij")
    from_row, from_column = _before(rows, down, row, drag.scale), _before(columns, right, column, drag.scale)
    inside = (from_row >= 0) & (from_row < y) & (from_column >= 0) & (from_column < x)
    source = from_row.clamp(0, y - 1) * x + from_column.clamp(0, x - 1)
    new = inside & old.flatten()[source]
    if not bool(new.any()):
        at = min(y - 1, max(0, round(row + down))), min(x - 1, max(0, round(column + right)))
        new[at], source[at] = True, _closest(old, row, column)
    moves = torch.stack([_moves(rows, down, row, drag.scale), _moves(columns, right, column, drag.scale)], -1)
    back = torch.where(new, source, -1)
    return Dragged(old.flatten(), new.flatten(), back.flatten(), (moves * old[..., None]).view(-1, 2))


def _before(places: Tensor, shift: int, centre: float, scale: float) -> Tensor:
    """Where tokens of one axis come from: the nearest token."""
    if scale == 1.0:
        return places - shift
    return torch.floor(centre + (places - shift - centre) / scale + 0.5).long()


def _moves(places: Tensor, shift: int, centre: float, scale: float) -> Tensor:
    """By how much tokens of one axis go, fp32; no whole numbers where the object is scaled."""
    return (shift + (scale - 1.0) * (places.double() - centre)).float()


def _closest(mask: Tensor, row: float, column: float) -> int:
    places = mask.nonzero()
    at = places[((places[:, 0] - row) ** 2 + (places[:, 1] - column) ** 2).argmin()]
    return int(at[0]) * mask.shape[1] + int(at[1])


@dataclass(frozen=True, eq=False)
class Scene:
    """The objects of a picture, the dragged one first, and its drag. names: of the objects, for messages."""

    objects: tuple[Blob, ...]
    names: tuple[str, ...]
    drag: Drag

    def on(self, y: int, x: int) -> tuple[Dragged, ...]:
        """All objects on a grid."""
        return _on(self, y, x)

    def rests(self, y: int, x: int) -> bool:
        """Whether nothing moves on a grid."""
        return self.drag.none(self.objects[0].frame, y, x)


@remembered(64)
def _on(scene: Scene, y: int, x: int) -> tuple[Dragged, ...]:
    first, *others = scene.objects
    return dragged(first, scene.drag, y, x), *(dragged(blob, Drag(0, 0), y, x) for blob in others)


def owned(objects: tuple[Dragged, ...]) -> list[Tensor]:
    """bool [N] for each object: its new tokens, none of them another's. The first object has all of its own; then smaller ones go first."""
    order = [0, *sorted(range(1, len(objects)), key=lambda i: int(objects[i].new.sum()))]
    taken, out = torch.zeros_like(objects[0].new), [torch.zeros_like(o.new) for o in objects]
    for i in order:
        out[i] = objects[i].new & ~taken
        taken |= out[i]
    return out


def redrawn(blob: Blob, mask: Tensor | None, drag: Drag, y: int, x: int, cells: float, share: float) -> Tensor:
    """fp32 [y, x], 1 in the latent cells that are drawn anew: the object's old and new place, widened by ``cells`` and by ``share`` of its longer side.

    mask [height, width]: the object as it was painted; whatever cell it touches is drawn anew as well.
    """
    found = dragged(blob, drag, y, x)
    both = (found.old | found.new).view(y, x)
    if mask is not None:
        touched = F.adaptive_max_pool2d(mask[None, None].float(), (y, x))[0, 0] > 0.5
        both |= touched | _carried(touched, blob, drag)
    reach = round(cells + share * max(1.0, drag.scale) * blob.side * y / blob.frame[0])
    if reach <= 0:
        return both.float()
    return F.max_pool2d(both.float()[None, None], 2 * reach + 1, 1, reach)[0, 0]


def _carried(touched: Tensor, blob: Blob, drag: Drag) -> Tensor:
    """bool [y, x]: cells that a painted mask touches after the drag."""
    y, x = touched.shape
    down, right = drag.shift(blob.frame, y, x)
    row, column = blob.center(y, x)
    rows, columns = torch.meshgrid(torch.arange(y), torch.arange(x), indexing="ij")
    from_row, from_column = _before(rows, down, row, drag.scale), _before(columns, right, column, drag.scale)
    inside = (from_row >= 0) & (from_row < y) & (from_column >= 0) & (from_column < x)
    return inside & touched[from_row.clamp(0, y - 1), from_column.clamp(0, x - 1)]


# --- what cannot be done ----------------------------------------------------------------------------------------------


def check(scene: Scene, y: int, x: int, clip: bool = False, allow_overlap: bool = False) -> None:
    """On the finest grid of the model (y, x). Raises LoomError naming what does not fit."""
    objects, names, drag = scene.objects, scene.names, scene.drag
    first = objects[0]
    height, width = first.frame
    if first.area < (height / y) * (width / x):
        raise LoomError(
            f"the object is below one latent token: its mask has {first.area:.0f} pixels and a token {height / y:g} x {width / x:g}; take a larger picture or another object."
        )
    _check_frame(first, drag, clip)
    for i in range(len(objects)):
        for j in range(i):
            if objects[i].edges == objects[j].edges:
                raise LoomError(f"'{names[j]}' and '{names[i]}' have the same box; give each object a place of its own.")
    if not allow_overlap:
        _check_overlap(scene, y, x)


def _check_frame(blob: Blob, drag: Drag, clip: bool) -> None:
    height, width = blob.frame
    left, top, right, bottom = drag.edges(blob)
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise LoomError(f"the drag by {drag.dx:g}, {drag.dy:g} pixels takes the object out of the picture ({width} x {height}) altogether; drag it less far.")
    over = {"left": -left, "top": -top, "right": right - width, "bottom": bottom - height}
    worst = max(over, key=lambda side: over[side])
    if not clip and over[worst] > 0.5:
        raise LoomError(
            f"the dragged object would stand out of the picture by {over[worst]:.0f} pixels on the {worst}; drag it less far, make it smaller, or switch clip_to_frame on."
        )


def _check_overlap(scene: Scene, y: int, x: int) -> None:
    first, *others = scene.on(y, x)
    for other, name in zip(others, scene.names[1:], strict=True):
        common = int((first.new & other.new).sum()) / min(int(first.new.sum()), int(other.new.sum()))
        if common > OVERLAP:
            raise LoomError(f"the drag puts '{scene.names[0]}' over {common:.0%} of '{name}'; drag it elsewhere, or switch allow_overlap on.")
