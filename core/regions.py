"""Places in a picture: what a user writes, and which tokens of a grid it means.

a red fox @ left
a snowy owl @ 0.7, 0.3              centre of a disc (x, y from 0 to 1, y downwards)
an old lantern @ 0.5, 0.8, 0.1      with a radius of its own, in parts of the shorter side
a wooden fence @ 0, 0.6, 1, 0.9     box: left, top, right, bottom
a grey cat @ mask                   the next of the connected masks; or mask 2
a bright moon @ 0.8, 0.1 * 0.5      half as strong as the others
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import LoomError

WORDS = {
    "left": (0.27, 0.5),
    "right": (0.73, 0.5),
    "top": (0.5, 0.27),
    "above": (0.5, 0.27),
    "bottom": (0.5, 0.73),
    "below": (0.5, 0.73),
    "center": (0.5, 0.5),
    "centre": (0.5, 0.5),
}
MOST = 16
EXAMPLE = "write for instance: a red fox @ 0.25, 0.5"
LEAST = 0.01
"""Cover below which a token of a softened region counts as outside."""


@dataclass(frozen=True)
class Disc:
    """x, y in parts of width and height; radius in parts of the shorter side."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Box:
    """Edges in parts of width and height."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, eq=False)
class Drawn:
    """A mask, fp32 [h, w] in 0..1, of the whole picture at any resolution."""

    mask: Tensor

    def __repr__(self) -> str:
        return f"Drawn({tuple(self.mask.shape)})"


Place = Disc | Box | Drawn


@dataclass(frozen=True)
class Region:
    """A description, where it belongs, and its strength beside the others."""

    text: str
    place: Place
    strength: float = 1.0


# --- reading --------------------------------------------------------------------------------------------------------


def parse(text: str, masks: Tensor | None, radius: float) -> tuple[Region, ...]:
    """One region per line. masks: [n, h, w] or None. Raises LoomError naming the line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > MOST:
        raise LoomError(f"{len(lines)} regions were given and {MOST} fit; merge some of them.")
    available = [] if masks is None else list(_stack(masks))
    used: set[int] = set()
    regions = tuple(_line(line, available, used, radius) for line in lines)
    if len(used) < len(available):
        raise LoomError(f"{len(available)} masks are connected and {len(used)} are used; write '@ mask' behind a description for each, or disconnect them.")
    return regions


def _stack(masks: Tensor) -> Iterable[Tensor]:
    if masks.ndim not in (2, 3):
        raise LoomError(f"the masks have the shape {tuple(masks.shape)}; connect one mask per region, stacked as [regions, height, width].")
    return masks.detach().float().cpu().clamp(0, 1).reshape(-1, *masks.shape[-2:])


def _line(line: str, masks: list[Tensor], used: set[int], radius: float) -> Region:
    words, at, where = line.rpartition("@")
    if not at or not words.strip():
        raise LoomError(f"'{line}' has no {'place' if not at else 'description'}; {EXAMPLE}.")
    where, star, amount = where.partition("*")
    strength = _numbers(amount, line)[0] if star and _numbers(amount, line) else 1.0
    if not math.isfinite(strength) or strength < 0:
        raise LoomError(f"'{line}' has the strength {strength:g}; give 0 or more.")
    return Region(words.strip(), _place(where.strip().lower(), line, masks, used, radius), strength)


def _place(where: str, line: str, masks: list[Tensor], used: set[int], radius: float) -> Place:
    if where.startswith("mask"):
        return _drawn(where[4:].strip(), line, masks, used)
    if where in WORDS:
        return Disc(*WORDS[where], radius)
    numbers = _numbers(where, line)
    if len(numbers) == 4:
        left, top, right, bottom = numbers
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise LoomError(f"'{line}': a box is left, top, right, bottom, each from 0 to 1 and growing.")
        return Box(left, top, right, bottom)
    if len(numbers) not in (2, 3) or not all(0 <= n <= 1 for n in numbers):
        raise LoomError(f"'{line}': a place is x, y or x, y, radius or left, top, right, bottom, all from 0 to 1, or one of {', '.join(WORDS)}, mask.")
    disc = Disc(numbers[0], numbers[1], numbers[2] if len(numbers) == 3 else radius)
    if disc.radius <= 0:
        raise LoomError(f"'{line}': the radius must be above 0.")
    return disc


def _drawn(number: str, line: str, masks: list[Tensor], used: set[int]) -> Drawn:
    if number and not number.isdigit():
        raise LoomError(f"'{line}': write '@ mask' or '@ mask 2'.")
    index = int(number) - 1 if number else next((i for i in range(len(masks) + 1) if i not in used), 0)
    if not 0 <= index < len(masks):
        raise LoomError(f"'{line}' asks for mask {index + 1} and {len(masks)} are connected; connect one mask per such region.")
    if not bool((masks[index] > 0.5).any()):
        raise LoomError(f"'{line}': mask {index + 1} is empty; paint the place on it.")
    used.add(index)
    return Drawn(masks[index])


def _numbers(text: str, line: str) -> list[float]:
    try:
        return [float(part) for part in re.split(r"[\s,;]+", text.strip()) if part]
    except ValueError:
        raise LoomError(f"'{line}': '{text.strip()}' is no place; {EXAMPLE}, or one of {', '.join(WORDS)}.") from None


# --- on a grid ------------------------------------------------------------------------------------------------------


def cover(place: Place, y: int, x: int, softness: float = 0.0, legacy: bool = False) -> Tensor:
    """fp32 [y, x] in 0..1: how far each token of a grid belongs to a place; 0 or 1 without softness. May be all 0.

    A token belongs to a disc or box when its centre does, and to a mask when half of it is painted; discs are round in pixels.
    legacy: discs as the paper's code has them, on corners instead of centres and in parts of each side by itself. softness:
    standard deviation of a Gaussian over the result, in parts of the width.
    """
    if isinstance(place, Drawn):
        inside = torch.nn.functional.interpolate(place.mask[None, None], (y, x), mode="area")[0, 0] >= 0.5
    else:
        shift = 0.0 if legacy else 0.5
        v, u = torch.meshgrid((torch.arange(y, dtype=torch.float64) + shift) / y, (torch.arange(x, dtype=torch.float64) + shift) / x, indexing="ij")
        if isinstance(place, Box):
            inside = (u >= place.left) & (u < place.right) & (v >= place.top) & (v < place.bottom)
        else:
            wide, high = (1.0, 1.0) if legacy else (x / min(x, y), y / min(x, y))
            inside = ((u - place.x) * wide) ** 2 + ((v - place.y) * high) ** 2 < place.radius**2
    return _softened(inside.float(), softness * x) if softness > 0 else inside.float()


def middle(place: Place, y: int, x: int) -> tuple[int, int]:
    """(row, column) of the token nearest to the middle of a place."""
    if isinstance(place, Drawn):
        rows, columns = (place.mask > 0.5).nonzero().float().add(0.5).mean(0).tolist()
        v, u = rows / place.mask.shape[0], columns / place.mask.shape[1]
    elif isinstance(place, Box):
        u, v = (place.left + place.right) / 2, (place.top + place.bottom) / 2
    else:
        u, v = place.x, place.y
    return min(y - 1, int(v * y)), min(x - 1, int(u * x))


def _softened(inside: Tensor, sigma: float) -> Tensor:
    reach = max(1, math.ceil(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / max(sigma, 1e-6)) ** 2)
    kernel = kernel / kernel.sum()
    # an edge of the picture is no edge of the region
    padded = torch.nn.functional.pad(inside[None, None], (reach,) * 4, mode="replicate")
    rows = torch.nn.functional.conv2d(padded, kernel[None, None, None, :])
    soft = torch.nn.functional.conv2d(rows, kernel[None, None, :, None])[0, 0]
    return torch.where(soft < LEAST, 0.0, soft)
