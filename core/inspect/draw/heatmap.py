"""Layers by heads: one number of every head as a colour."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from PIL import Image

from ..study import Place, Study
from ..summary import caption, value_of
from .canvas import HEAD, INK, LONGEST, MARGIN, Page, colours, text_width

LABELS = 150
NORMALISE = ("per picture", "per layer", "fixed 0 to 1")
SORT = ("by index", "by value")


def heatmap(
    study: Study,
    measure: str,
    chosen: Collection[tuple[Place, int]] = (),
    sort: str = "by index",
    normalise: str = "per picture",
    colour_map: str = "viridis-like",
    cross: bool = False,
) -> Image.Image:
    """One row per layer, the first that runs on top, one cell per head; chosen heads are framed. Layers without this measure are left out."""
    places = [p for p in study.places(cross) if measure in study.mean(p).scalars]
    rows = [value_of(study, p, measure) for p in places]
    most = max(len(r) for r in rows)
    cell = cell_size(len(rows), most)
    x0, y0 = left_edge(places), HEAD + 22
    page = Page(max(720, x0 + cell * most + MARGIN), y0 + cell * len(rows) + 90, f"{measure.capitalize()} of every head" + (" (cross-attention)" if cross else ""), caption(study))
    low, high = (0.0, 1.0) if normalise == "fixed 0 to 1" else _span(np.concatenate(rows))
    for h in range(0, most, 1 if cell >= 20 else 2 if cell >= 11 else 4):
        page.text(x0 + (h + 0.5) * cell, y0 - 6, str(h) if sort == "by index" else str(h + 1), min(13, max(9, cell * 0.6)), (90, 96, 108), "ms")
    for r, (place, values) in enumerate(zip(places, rows, strict=True)):
        y = y0 + r * cell
        order = list(range(len(values))) if sort == "by index" else np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable").tolist()
        if cell >= 12 or r % 2 == 0:
            page.text(x0 - 8, y + cell / 2, place.name, min(13, max(9, cell * 0.75)), anchor="rm")
        bottom, top = _span(values) if normalise == "per layer" else (low, high)
        page.paste(colours((values[order] - bottom) / (top - bottom), colour_map)[None], x0, y, cell * len(values), cell)
        for column, head in enumerate(order):
            page.rect(x0 + column * cell, y, x0 + (column + 1) * cell, y + cell, outline=(255, 255, 255), width=0.5)
            if (place, head) in chosen:
                page.rect(x0 + column * cell, y, x0 + (column + 1) * cell, y + cell, outline=(220, 30, 60), width=2)
        if r and places[r - 1].block.kind != place.block.kind:
            page.line([(x0, y), (x0 + cell * most, y)], INK, 1.5)
    y = y0 + cell * len(rows) + 16
    ends = (0.0, 1.0) if normalise == "per layer" else (low, high)
    page.scale(x0, y, 260, *ends, "least to most, per layer" if normalise == "per layer" else measure, colour_map)
    page.text(x0 + 284, y - 1, "head " + ("number" if sort == "by index" else "rank") + " runs across", 13, (90, 96, 108))
    if chosen:
        page.rect(x0 + 284, y + 20, x0 + 298, y + 34, outline=(220, 30, 60), width=2)
        page.text(x0 + 304, y + 19, f"{len(chosen)} heads of the list", 13, (90, 96, 108))
    return page.done()


def cell_size(rows: int, columns: int) -> int:
    """Side of a cell in pixels: 24, less where the picture would be too large."""
    return int(max(6, min(24, (LONGEST - HEAD - 112) // max(1, rows), (LONGEST - LABELS - 2 * MARGIN) // max(1, columns))))


def left_edge(places: list[Place]) -> int:
    """Where the cells begin: behind the longest name."""
    return MARGIN + int(max(text_width(p.name, 13) for p in places)) + 12


def _span(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    return (low, high) if high > low else (low, low + 1e-6 + abs(low) * 1e-3)
