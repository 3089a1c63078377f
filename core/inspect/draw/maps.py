"""Small maps: where heads look around themselves, and what words and places look at on the picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..study import Place, Study
from ..summary import Head, caption, value_of
from .canvas import HEAD, LONGEST, MARGIN, PAPER, RULE, Page, colours, number

TILE, GAP, COLUMNS = 150, 18, 6
DECADES = 4.0
"""Powers of ten the colours of an offset map span."""
MOST_FRAMES = 6
SIDE = 300


def offset_tile(offsets: np.ndarray, colour_map: str) -> np.ndarray:
    """uint8 [a, b, 3]: an offset map on a logarithmic scale, from its largest value down four powers of ten."""
    top = max(float(np.nanmax(offsets)), 1e-12)
    return colours(1 + np.log10(np.maximum(offsets / top, 1e-12)) / DECADES, colour_map)


def fitted(width: float, height: float, box: float) -> tuple[float, float]:
    """The largest size with the aspect of (width, height) inside a square."""
    return box * width / max(width, height), box * height / max(width, height)


def offset_grid(study: Study, measure: str, heads: Sequence[Head], colour_map: str = "viridis-like") -> Image.Image:
    """One tile per head, best first: mean attention by offset from the query, whose own place is the centre."""
    heads = [h for h in heads if study.mean(h[0]).offsets is not None][: COLUMNS * ((LONGEST - HEAD - 60) // (TILE + 50))]
    lines = -(-len(heads) // COLUMNS)
    width = 2 * MARGIN + COLUMNS * TILE + (COLUMNS - 1) * GAP
    text = caption(study) + ". The centre is the token itself; up is up in the picture."
    page = Page(width, HEAD + 16 + lines * (TILE + 50) + 50, f"Where heads look, by {measure}", text)
    for i, (place, head) in enumerate(heads):
        stats = study.mean(place)
        if stats.offsets is None or stats.grid is None:
            continue
        x, y = MARGIN + (i % COLUMNS) * (TILE + GAP), HEAD + 16 + (i // COLUMNS) * (TILE + 50)
        w, h = fitted(2 * stats.grid[2] - 1, 2 * stats.grid[1] - 1, TILE)
        left, top = x + (TILE - w) / 2, y + (TILE - h) / 2
        page.paste(offset_tile(stats.offsets[head].numpy(), colour_map), left, top, w, h)
        page.rect(left, top, left + w, top + h, outline=RULE)
        for a, b in (((left + w / 2, top - 5), (left + w / 2, top)), ((left - 5, top + h / 2), (left, top + h / 2))):
            page.line([a, b], RULE, 1.5)
        page.text(x, y + TILE + 6, f"L{place.layer}H{head}  {number(float(value_of(study, place, measure)[head]))}", 14)
        page.text(x, y + TILE + 24, study.labels(place)[head], 13, (90, 96, 108))
    page.scale(MARGIN, HEAD + 16 + lines * (TILE + 50) + 4, 400, 10**-DECADES, 1, "share of the map's largest value", colour_map)
    return page.done()


def combined(maps: dict[Place, tuple[Tensor, int]]) -> np.ndarray | None:
    """Mean over places of their mean maps, each brought to the largest grid: [n, T, Y, X], or None."""
    if not maps:
        return None
    means = [total / n for total, n in maps.values()]
    size = max((tuple(m.shape[1:]) for m in means), key=lambda s: s[0] * s[1] * s[2])
    frames = [F.interpolate(m[None], size=size, mode="trilinear", align_corners=False)[0] for m in means]
    return (sum(frames) / len(frames)).numpy()  # type: ignore[union-attr]


def overlay(
    title: str, text: str, names: Sequence[str], maps: np.ndarray, image: np.ndarray | None = None, marks: Sequence[tuple[float, float]] = (), colour_map: str = "viridis-like"
) -> Image.Image:
    """One line per name: its map over the picture, frame by frame for a video.

    maps [n, T, Y, X], each scaled to its own largest value; image fp32 [F, h, w, 3] in 0..1 or None; marks: (x, y) of each name's
    own place, drawn in the middle frame.
    """
    t, y, x = maps.shape[1:]
    frames = sorted({round(i * (t - 1) / max(1, min(t, MOST_FRAMES) - 1)) for i in range(min(t, MOST_FRAMES))} | ({t // 2} if marks else set()))
    height, width = (y, x) if image is None else image.shape[1:3]
    room = min(SIDE, (LONGEST - 2 * MARGIN) // (len(frames) + 1) - GAP, (LONGEST - HEAD - 80) // len(maps) - 40)
    w, h = fitted(width, height, room)
    with_image = image is not None
    columns = len(frames) + (1 if with_image and len(frames) == 1 else 0)
    page = Page(max(720, 2 * MARGIN + columns * (w + GAP)), HEAD + 16 + len(maps) * (h + 40) + 44, title, text)
    for i, (name, found) in enumerate(zip(names, maps, strict=True)):
        top = HEAD + 16 + i * (h + 40)
        page.text(MARGIN, top, name, 15)
        left: float = MARGIN
        if image is not None and len(frames) == 1:
            page.paste(_frame(image, 0, 1), left, top + 22, w, h, smooth=True)
            left += w + GAP
        for f in frames:
            page.paste(_blend(found[f], float(found.max()), None if image is None else _frame(image, f, t), (width, height), colour_map), left, top + 22, w, h, smooth=True)
            if len(frames) > 1:
                page.text(left + w, top + 4, f"latent frame {f}", 12, (90, 96, 108), "ra")
            if marks and f == t // 2:
                page.dot(left + marks[i][0] * w, top + 22 + marks[i][1] * h, 5, PAPER, (200, 30, 60))
            left += w + GAP
    page.scale(MARGIN, HEAD + 16 + len(maps) * (h + 40) + 4, 260, 0, 1, "share of the line's largest value", colour_map)
    return page.done()


def _frame(image: np.ndarray, f: int, t: int) -> np.ndarray:
    """uint8 frame of the video that belongs to latent frame f of t."""
    at = 0 if t < 2 else round(f * (len(image) - 1) / (t - 1))
    return (np.clip(image[at], 0, 1) * 255).astype(np.uint8)


def _blend(found: np.ndarray, top: float, under: np.ndarray | None, size: tuple[int, int], colour_map: str) -> np.ndarray:
    """uint8: the map as colours; over a picture they cover more the stronger the attention is."""
    values = np.asarray(Image.fromarray((found / max(top, 1e-12)).astype(np.float32)).resize(size, Image.Resampling.BILINEAR if under is not None else Image.Resampling.NEAREST))
    painted = colours(values, colour_map).astype(float)
    if under is None:
        return painted.astype(np.uint8)
    grey = under.astype(float).mean(-1, keepdims=True)
    cover = 0.15 + 0.65 * np.sqrt(np.clip(values, 0, 1))[..., None]
    return ((1 - cover) * grey + cover * painted).astype(np.uint8)
