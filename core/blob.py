"""Where an object is in a picture: an ellipse, a box or a painted mask, and the tokens of any grid that belong to it.

Ellipses are the blobs of DiffUHaul (arXiv 2406.01594) and of BlobGEN below it (arXiv 2405.08246): centre, two half-axes and an angle.
All lengths are pixels of one frame, the picture on which the user painted; a grid of any size lies over the whole frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .errors import LoomError
from .regions import Box, Disc, Drawn, Place

Shape = Literal["ellipse", "box", "mask"]
SHAPES = ("ellipse", "box", "mask")
Edges = tuple[float, float, float, float]
"""left, top, right, bottom."""


@dataclass(frozen=True, eq=False)
class Blob:
    """One object. frame: (height, width) of the picture in pixels; x, y: its centre; a, b: half-axes of the ellipse or half-sides of the box,
    turned by ``angle`` radians; edges: of the object as it was given. mask bool [height, width] for the shape "mask".
    """

    shape: Shape
    frame: tuple[int, int]
    x: float
    y: float
    a: float
    b: float
    angle: float
    edges: Edges
    mask: Tensor | None = field(default=None, repr=False)

    @staticmethod
    def of_mask(mask: Tensor, shape: Shape) -> Blob:
        """From a painted mask [height, width] in 0..1. The ellipse has the mask's centre and second moments; the box is that around it.

        Raises LoomError for an empty mask and for one of the whole picture.
        """
        own = mask > 0.5
        if not bool(own.any()):
            raise LoomError("the mask of the object is empty; paint over the object that shall move.")
        if bool(own.all()):
            raise LoomError("the mask of the object covers the whole picture; paint over the object alone.")
        places = own.nonzero().double() + 0.5
        top, left = (float(v) - 0.5 for v in places.amin(0))
        bottom, right = (float(v) + 0.5 for v in places.amax(0))
        edges = (left, top, right, bottom)
        frame = (int(own.shape[0]), int(own.shape[1]))
        if shape == "box":
            return Blob.of_edges(edges, frame, "box")
        y, x = (float(v) for v in places.mean(0))
        if shape == "mask":
            return Blob("mask", frame, x, y, (right - left) / 2, (bottom - top) / 2, 0.0, edges, own.cpu())
        away = places - places.mean(0)
        # a pixel is a square, not a point: its own second moment keeps thin objects from having no width
        yy, xx, xy = (float((away[:, i] * away[:, j]).mean()) for i, j in ((0, 0), (1, 1), (0, 1)))
        yy, xx = yy + 1 / 12, xx + 1 / 12
        middle, spread = (xx + yy) / 2, math.hypot((xx - yy) / 2, xy)
        # a filled ellipse of half-axis a has the variance a^2 / 4 along it
        a, b = 2 * math.sqrt(middle + spread), 2 * math.sqrt(max(middle - spread, 1 / 12))
        return Blob("ellipse", frame, x, y, a, b, 0.5 * math.atan2(2 * xy, xx - yy), edges)

    @staticmethod
    def of_edges(edges: Edges, frame: tuple[int, int], shape: Shape) -> Blob:
        """From a box in pixels: itself, or the ellipse that fills it."""
        left, top, right, bottom = edges
        kind: Shape = "ellipse" if shape == "ellipse" else "box"
        return Blob(kind, frame, (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2, 0.0, edges)

    @staticmethod
    def of_place(place: Place, frame: tuple[int, int], shape: Shape) -> Blob:
        """From a place as users write it (``core/regions.py``)."""
        height, width = frame
        if isinstance(place, Drawn):
            mask = torch.nn.functional.interpolate(place.mask[None, None], frame, mode="area")[0, 0]
            return Blob.of_mask(mask, shape)
        if isinstance(place, Box):
            return Blob.of_edges((place.left * width, place.top * height, place.right * width, place.bottom * height), frame, shape)
        assert isinstance(place, Disc)
        r, x, y = place.radius * min(height, width), place.x * width, place.y * height
        return Blob.of_edges((x - r, y - r, x + r, y + r), frame, shape)

    def tokens(self, y: int, x: int) -> Tensor:
        """bool [y, x]: tokens whose centre is inside (a mask: that it covers by half); at least the one nearest to the centre."""
        found = self._inside(*self._centres(y, x)) if self.mask is None else _half_covered(self.mask, y, x)
        if not bool(found.any()):
            found[self.nearest(y, x)] = True
        return found

    def _centres(self, y: int, x: int) -> tuple[Tensor, Tensor]:
        height, width = self.frame
        rows = (torch.arange(y, dtype=torch.float64) + 0.5) * (height / y)
        columns = (torch.arange(x, dtype=torch.float64) + 0.5) * (width / x)
        return torch.meshgrid(rows - self.y, columns - self.x, indexing="ij")  # type: ignore[return-value]

    def _inside(self, v: Tensor, u: Tensor) -> Tensor:
        along = u * math.cos(self.angle) + v * math.sin(self.angle)
        across = v * math.cos(self.angle) - u * math.sin(self.angle)
        if self.shape == "box":
            return (along.abs() <= self.a) & (across.abs() <= self.b)
        return (along / self.a) ** 2 + (across / self.b) ** 2 <= 1

    def center(self, y: int, x: int) -> tuple[float, float]:
        """(row, column) of the centre on a grid, 0 in the middle of the first token."""
        height, width = self.frame
        return self.y * y / height - 0.5, self.x * x / width - 0.5

    def nearest(self, y: int, x: int) -> tuple[int, int]:
        """(row, column) of the token nearest to the centre."""
        row, column = self.center(y, x)
        return min(y - 1, max(0, round(row))), min(x - 1, max(0, round(column)))

    @property
    def area(self) -> float:
        """Square pixels."""
        if self.mask is not None:
            return float(self.mask.sum())
        return (4.0 if self.shape == "box" else math.pi) * self.a * self.b

    @property
    def side(self) -> float:
        """The longer side of the object, pixels."""
        left, top, right, bottom = self.edges
        return max(right - left, bottom - top)


def _half_covered(mask: Tensor, y: int, x: int) -> Tensor:
    return torch.nn.functional.interpolate(mask[None, None].float(), (y, x), mode="area")[0, 0] >= 0.5
