"""Individuals: whether two surfaces carry the same pattern, and whether one object's colour or pattern got into another.

A pattern is compared as it lies in the object's own coordinates (`readings.patches`), so neither place nor size matters. Similarity is the
correlation of the two darkness maps over the area both show, at the best of nine shifts of at most one sample (0.09 radii), below zero cut off.
A plain surface has no pattern; its similarity to anything is nan.
"""

import math

import torch

from .readings import NAMES, Reading, patches, widen
from .traits import PLAIN
from .world import SHAPES, coverage

Surface = tuple[torch.Tensor, torch.Tensor]  # darkness [24, 24] and what of it is inside [24, 24]


def similarity(a: Surface, b: Surface) -> float:
    """Similarity 0..1 of two surfaces; nan if one is plain or was not found."""
    best = math.nan
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            dark, inside = (value.roll((dy, dx), (0, 1)) for value in b)
            both = a[1] & inside
            if int(both.sum()) < 20:
                continue
            u, v = a[0][both] - a[0][both].mean(), dark[both] - dark[both].mean()
            spread = PLAIN * len(u) ** 0.5
            if float(u.norm()) < spread or float(v.norm()) < spread:
                continue
            got = max(0.0, float((u * v).sum() / (u.norm() * v.norm())))
            best = got if math.isnan(best) else max(best, got)
    return best


def mean_surface(reading: Reading, thing: int, frames: slice = slice(None)) -> Surface:
    """Mean surface of a thing over the frames that show it."""
    dark, inside = (value[thing, frames] for value in patches(reading))
    seen = inside.flatten(1).any(1)
    if not bool(seen.any()):
        return dark[0], torch.zeros_like(inside[0])
    return dark[seen].mean(0), inside[seen].all(0)


def same_individual(a: Reading, i: int, b: Reading, j: int) -> float:
    """Whether thing i of one picture or clip is thing j of another: similarity of their mean surfaces, 0 if colour or shape differ; nan if plain.

    Rendered truth: the same pattern seed above 0.8 (median 0.95), another seed 0.3 on average.
    """
    colours = [int(r.colour[k][r.found[k]].mode().values) if bool(r.found[k].any()) else -1 for r, k in ((a, i), (b, j))]
    shapes = [int(r.iou[k].sum(0).argmax()) for r, k in ((a, i), (b, j))]
    if colours[0] != colours[1] or colours[0] < 0 or shapes[0] != shapes[1]:
        return 0.0
    return similarity(mean_surface(a, i), mean_surface(b, j))


def kept_identity(reading: Reading, thing: int, native: int) -> float:
    """Mean similarity of a thing's surface in every frame with its mean over the native clip; a frame that lacks it counts 0. nan if plain."""
    dark, inside = (value[thing] for value in patches(reading))
    reference = mean_surface(reading, thing, slice(0, native))
    if math.isnan(similarity(reference, reference)):
        return math.nan
    got = [similarity(reference, (dark[f], inside[f])) for f in range(len(dark))]
    return sum(0.0 if math.isnan(value) else value for value in got) / len(got)


def colour_leakage(reading: Reading) -> float:
    """Share of a thing's area in the colour of another named thing, at its worst pair and averaged over frames; nan with fewer than two colours.

    The area is the best fitting shape at the thing's own size; what the other thing itself covers, widened by two pixels, does not count.
    """
    worst = math.nan
    for i, thing in enumerate(reading.caption.things):
        for j, other in enumerate(reading.caption.things):
            both = reading.found[i] & (reading.colour[i] != NAMES.index(other.colour))
            if i == j or thing.colour == other.colour or not bool(both.any()):
                continue
            area = _ideal(reading, i)[both] & ~(widen(reading.masks[j, both].float(), 5) > 0)
            leaked = area & (reading.classes[both] == NAMES.index(other.colour))
            share = float((leaked.sum((1, 2)) / area.sum((1, 2)).clamp(min=1)).mean())
            worst = share if math.isnan(worst) else max(worst, share)
    return worst


def _ideal(reading: Reading, thing: int) -> torch.Tensor:
    """Area [F, S, S] of the best fitting shape of a thing, shrunk by a tenth to leave the edge out; empty where it was not found."""
    size = reading.masks.shape[-1]
    result = torch.zeros_like(reading.masks[thing])
    for index, shape in enumerate(SHAPES):
        here = reading.shape[thing] == index
        if bool(here.any()):
            x, y, radius = (value[thing, here] * size for value in (reading.x, reading.y, reading.radius))
            result[here] = coverage(shape, x, y, 0.9 * radius, size) > 0.5
    return result


def pattern_mixing(reading: Reading) -> float:
    """Highest similarity of the patterns of two named things; nan without two patterned things. Different seeds give 0.3 on average, a copy 1."""
    surfaces = [mean_surface(reading, i) for i in range(len(reading.found))]
    got = [similarity(surfaces[i], surfaces[j]) for i in range(len(surfaces)) for j in range(i)]
    return max((value for value in got if not math.isnan(value)), default=math.nan)
