"""Individuals: whether two surfaces carry the same pattern, and whether one object's colour or pattern got into another.

A pattern is compared as it lies in the object's own coordinates (`Reading.surfaces`), so neither place nor size matters. Similarity is the
correlation of the two darkness maps over the area both show, at the best of nine shifts of at most one sample (0.09 radii), below zero cut off.
A plain surface has no pattern; its similarity to anything is nan.
"""

import math

import numpy as np
import torch
from scipy import ndimage

from .readings import FLAT, NAMES, Reading, narrow, widen
from .traits import PLAIN

Surface = tuple[torch.Tensor, torch.Tensor]  # darkness [24, 24] and what of it is inside [24, 24]


def similarity(a: Surface, b: Surface) -> float:
    """Similarity 0..1 of two surfaces; nan if one is plain or was not found."""
    return float(similarities(a, b[0][None], b[1][None])[0])


def similarities(a: Surface, dark: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Similarity [F] of a surface with each of several ones [F, 24, 24]; nan where one is plain or was not found."""
    shifts = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    both = a[1] & torch.stack([inside.roll(shift, (1, 2)) for shift in shifts])  # [9, F, 24, 24]
    count = both.sum((2, 3))
    u, v = (_centred(value, both, count) for value in (a[0], torch.stack([dark.roll(shift, (1, 2)) for shift in shifts])))
    uu, vv, uv = (u * u).sum((2, 3)), (v * v).sum((2, 3)), (u * v).sum((2, 3))
    least = PLAIN**2 * count
    got = (uv / (uu * vv).sqrt()).clamp(min=0).where((count >= 20) & (uu >= least) & (vv >= least), -1.0).amax(0)
    return got.where(got >= 0, math.nan)


def _centred(values: torch.Tensor, inside: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Values minus their mean over the positions inside, 0 elsewhere."""
    mean = (values * inside).sum((2, 3)) / count.clamp(min=1)
    return (values - mean[..., None, None]) * inside


def mean_surface(reading: Reading, thing: int, frames: slice = slice(None)) -> Surface:
    """Mean surface of a thing over the frames that show it."""
    dark, inside = (value[thing, frames] for value in reading.surfaces)
    seen = inside.flatten(1).any(1)
    if not bool(seen.any()):
        return dark[0], torch.zeros_like(inside[0])
    return dark[seen].mean(0), inside[seen].all(0)


def same_individual(a: Reading, i: int, b: Reading, j: int) -> float:
    """Whether thing i of one picture or clip is thing j of another: similarity of their mean surfaces, 0 if colour or shape differ; nan if plain.

    Rendered truth: the same pattern seed above 0.9 (median 0.98), another seed 0.3 on average.
    """
    colours = [int(r.colour[k][r.found[k]].mode().values) if bool(r.found[k].any()) else -1 for r, k in ((a, i), (b, j))]
    shapes = [int(r.iou[k].sum(0).argmax()) for r, k in ((a, i), (b, j))]
    if colours[0] != colours[1] or colours[0] < 0 or shapes[0] != shapes[1]:
        return 0.0
    return similarity(mean_surface(a, i), mean_surface(b, j))


def kept_identity(reading: Reading, thing: int, native: int) -> float:
    """Mean similarity of a thing's surface in every frame with its mean over the first quarter of the native clip; a frame that lacks it counts 0. nan if plain."""
    reference = mean_surface(reading, thing, slice(0, max(1, native // 4)))
    if math.isnan(similarity(reference, reference)):
        return math.nan
    dark, inside = (value[thing] for value in reading.surfaces)
    return float(similarities(reference, dark, inside).nan_to_num(0.0).mean())


def colour_leakage(reading: Reading) -> float:
    """How much of a thing another named thing's colour has overrun: leaked / (leaked + own area), worst pair, mean over frames; nan with one colour.

    Leaked is what has the other's colour, touches the thing and is not a thing of that colour itself (widened by two pixels). Outlines aside: there
    blends of thing and ground may look like a third colour.
    """
    worst = math.nan
    for i, thing in enumerate(reading.caption.things):
        for other in reading.caption.things:
            name = NAMES.index(other.colour)
            here = reading.found[i] & (reading.colour[i] != name)
            if thing.colour == other.colour or not bool(here.any()):
                continue
            own = reading.masks[i, here].float()
            rightful = (reading.masks & (reading.colour == name)[..., None, None]).any(0)[here].float()
            strange = ((reading.classes[here] == name) & (widen(rightful, 5) == 0)).float()
            leaked = _touching(torch.maximum(widen(narrow(strange, 3), 3), strange * narrow(own, 3)), widen(own, 5))
            both = torch.maximum(leaked, own).sum((1, 2))
            share = float((leaked.sum((1, 2)) / both.clamp(min=1)).mean())
            worst = share if math.isnan(worst) else max(worst, share)
    return worst


def _touching(areas: torch.Tensor, thing: torch.Tensor) -> torch.Tensor:
    """Those connected areas of [F, S, S] that meet the thing."""
    if not bool(areas.any()):
        return areas
    labels, _ = ndimage.label(areas.numpy() > 0, FLAT)
    met = np.unique(labels[thing.numpy() > 0])
    return torch.from_numpy(np.isin(labels, met[met > 0])).float()


def pattern_mixing(reading: Reading) -> float:
    """Highest similarity of the patterns of two named things; nan without two patterned things. Different seeds give 0.3 on average, a copy 1."""
    surfaces = [mean_surface(reading, i) for i in range(len(reading.found))]
    got = [similarity(surfaces[i], surfaces[j]) for i in range(len(surfaces)) for j in range(i)]
    return max((value for value in got if not math.isnan(value)), default=math.nan)
