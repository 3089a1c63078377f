"""Which pictures there are, and which of them a study has numbers for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import LoomError
from .draw import curves, groups, maps
from .draw.heatmap import heatmap
from .study import Study
from .summary import Head, available, caption, crossed


@dataclass(frozen=True)
class Look:
    """How to draw. measure, order, count: what ranks the heads and how many; groups: clusters; the rest as :func:`draw.heatmap.heatmap`."""

    measure: str = "distance"
    order: str = "lowest"
    count: int = 24
    groups: int = 8
    sort: str = "by index"
    normalise: str = "per picture"
    colour_map: str = "viridis-like"


Painter = Callable[[Study, Look, list[Head], np.ndarray | None], Image.Image | None]


def _heat(study: Study, look: Look, heads: list[Head], image: np.ndarray | None) -> Image.Image | None:
    return heatmap(study, look.measure, set(heads), look.sort, look.normalise, look.colour_map, crossed(study, look.measure)) if study.places() else None


def _cross(study: Study, look: Look, heads: list[Head], image: np.ndarray | None) -> Image.Image | None:
    known = available(study, cross=True)
    both = look.measure in known and look.measure in available(study)  # one of cross-attentions alone is the first picture's
    return heatmap(study, look.measure if both else "entropy", (), look.sort, look.normalise, look.colour_map, cross=True) if known else None


def _rings(study: Study, look: Look, heads: list[Head], image: np.ndarray | None) -> Image.Image | None:
    return curves.rings(study) if any(study.mean(p).rings is not None for p in study.places()) else None


def _trend(study: Study, look: Look, heads: list[Head], image: np.ndarray | None) -> Image.Image | None:
    return curves.trend(study) if study.places() else None


def _patterns(study: Study, look: Look, heads: list[Head], image: np.ndarray | None) -> Image.Image | None:
    return maps.offset_grid(study, look.measure, heads, look.colour_map) if any(study.mean(p).offsets is not None for p, _ in heads) else None


def _groups(study: Study, look: Look, heads: list[Head], image: np.ndarray | None) -> Image.Image | None:
    return groups.pattern_groups(study, look.groups, look.colour_map) if any(study.mean(p).offsets is not None for p in study.places()) else None


def _words(study: Study, look: Look, heads: list[Head], image: np.ndarray | None) -> Image.Image | None:
    found = maps.combined(study.word_maps)
    text = caption(study) + ". Every image token's attention on the word, mean over all heads that read text."
    return None if found is None else maps.overlay("Where the words act", text, study.setting.words, found, image, (), look.colour_map)


def _points(study: Study, look: Look, heads: list[Head], image: np.ndarray | None) -> Image.Image | None:
    found = maps.combined(study.point_maps)
    names = [f"{x:g}, {y:g}" for x, y in study.setting.points]
    text = caption(study) + ". Attention of the marked place, mean over all heads."
    return None if found is None else maps.overlay("Where these places look", text, names, found, image, study.setting.points, look.colour_map)


PICTURES: dict[str, Painter] = {
    "heads": _heat,
    "distance": _rings,
    "layers": _trend,
    "patterns": _patterns,
    "groups": _groups,
    "masses": lambda study, look, heads, image: groups.mass_bars(study),
    "frames": lambda study, look, heads, image: curves.frame_profile(study),
    "words": _words,
    "points": _points,
    "cross-attention": _cross,
}
"""Name -> painter; a painter answers None where the study has nothing to draw."""

_WHY = {
    "words": "no words were given to the Attention Inspector",
    "points": "no points were given to the Attention Inspector",
    "frames": "this model has no frames",
    "cross-attention": "this model has no cross-attention among the blocks read",
}


def draw(study: Study, picture: str, look: Look, heads: list[Head], image: np.ndarray | None = None) -> list[Image.Image]:
    """The picture of that name, or "all" there are. image fp32 [F, h, w, 3] in 0..1, for overlays. Raises LoomError where there is nothing to draw."""
    if picture != "all":
        found = PICTURES[picture](study, look, heads, image)
        if found is None:
            raise LoomError(f"the picture '{picture}' cannot be drawn: {_WHY.get(picture, 'nothing was read that it could show')}.")
        return [found]
    return [d for paint in PICTURES.values() if (d := paint(study, look, heads, image)) is not None]
