"""Whether a thing of one picture looks like a thing of another, by what is seen: mean colour, outline and pattern, wherever it stands and however large."""

import math

import torch
from torch.nn.functional import grid_sample

from .readings import Reading
from .surfaces import mean_surface, similarity

UNLIKE = 0.5  # distance of two mean colours (red, green, blue in 0..1) at which nothing is left of a likeness
GRID, REACH = 48, 1.8  # samples per side of an outline and half its width, in radii of the disc of the same area


def likeness(a: Reading, i: int, b: Reading, j: int) -> float:
    """Likeness 0..1 of thing i of one picture to thing j of another; 0 where the first lacks it, nan where the second does.

    Agreement of the mean colours times the overlap of the outlines at one centre and area. The same shape and colour give about 0.95, another
    shape of that colour 0.6 to 0.85, colours such as red and blue 0.
    """
    if not bool(b.found[j, 0]):
        return math.nan
    if not bool(a.found[i, 0]):
        return 0.0
    apart = float((_colour(a, i) - _colour(b, j)).norm())
    one, two = _outline(a, i), _outline(b, j)
    overlap = float(torch.minimum(one, two).sum() / torch.maximum(one, two).sum())
    return max(0.0, 1.0 - apart / UNLIKE) * overlap


def pattern_likeness(a: Reading, i: int, b: Reading, j: int) -> float:
    """Likeness 0..1 of the patterns; nan where thing j has none, 0 where it has one and thing i has none or is not seen."""
    wanted = mean_surface(b, j)
    if math.isnan(similarity(wanted, wanted)):
        return math.nan
    found = similarity(mean_surface(a, i), wanted)
    return 0.0 if math.isnan(found) else found


def _colour(reading: Reading, thing: int) -> torch.Tensor:
    """Mean colour [3] of a thing of a picture."""
    return reading.frames[0][reading.masks[thing, 0]].mean(0)


def _outline(reading: Reading, thing: int) -> torch.Tensor:
    """What of [GRID, GRID] places about its centre of mass a thing covers, in its own scale."""
    mask = reading.masks[thing, 0].float()
    size = len(mask)
    places = (torch.arange(size) + 0.5) / size * 2 - 1
    share = mask / mask.sum()
    x, y = float((share.sum(0) * places).sum()), float((share.sum(1) * places).sum())
    radius = math.sqrt(float(mask.mean()) * 4 / math.pi)  # of a picture from -1 to 1
    at = ((torch.arange(GRID) + 0.5) / GRID * 2 - 1) * REACH * radius
    where = torch.stack([(x + at).expand(GRID, GRID), (y + at)[:, None].expand(GRID, GRID)], -1)
    return grid_sample(mask[None, None], where[None], align_corners=False)[0, 0]
