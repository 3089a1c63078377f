"""The picture of a run: rows are blocks, columns are noise levels, colours are methods."""

from __future__ import annotations

import colorsys

from PIL import Image, ImageDraw, ImageFont

from .report import Run

INK, PAPER, STOCK, RULE = (32, 36, 44), (255, 255, 255), (214, 218, 226), (150, 156, 168)
CELL_LIMITS = (6, 34)
ROW_LIMITS = (9, 24)
WIDTH = 1100
KINDS = ("self", "joint", "cross")
"""Order of the rows of one block: as they run."""


def draw(run: Run) -> Image.Image:
    """A picture 1100 px wide; height follows the number of block rows."""
    big, small = ImageFont.load_default(22), ImageFont.load_default(15)
    places = sorted({key[:2] for key in run.cells}, key=lambda p: (p[0] < 0, p[0], KINDS.index(p[1]) if p[1] in KINDS else len(KINDS)))
    levels = [f"{s:.6g}" for s in run.sigmas]
    row = max(ROW_LIMITS[0], min(ROW_LIMITS[1], 640 // max(1, len(places))))
    cell = max(CELL_LIMITS[0], min(CELL_LIMITS[1], (WIDTH - 190) // max(1, len(levels))))
    colours = _colours(run)
    facts = [line for line in run.text().splitlines() if line and not line.startswith(" ")]
    top = 62 + 22 * len(facts)
    bottom = top + row * len(places) + 56
    picture = Image.new("RGB", (WIDTH, bottom + 26 * len(colours) + 14), PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((20, 16), "What ran", INK, big)
    for i, line in enumerate(facts):
        pen.text((20, 52 + 22 * i), line, (176, 40, 40) if "WARNING" in line else INK, small)
    for r, place in enumerate(places):
        y = top + r * row
        if row >= 14 or r % 2 == 0:
            pen.text((20, y + row / 2), run.block_names[place], INK, ImageFont.load_default(min(14, max(9, row))), anchor="lm")
        for c, level in enumerate(levels):
            outcomes = run.cells.get((*place, level))
            if outcomes:
                box = (170 + c * cell, y, 170 + (c + 1) * cell - 2, y + row - 2)
                pen.rectangle(box, colours[outcomes.most_common(1)[0][0]])
    axis = top + row * len(places) + 6
    pen.line((170, axis, 170 + cell * max(1, len(levels)), axis), RULE)
    if levels:
        pen.text((170, axis + 4), f"start, sigma {float(levels[0]):.3g}", INK, small)
        pen.text((max(390, 170 + cell * len(levels)), axis + 4), f"end, sigma {float(levels[-1]):.3g}", INK, small, anchor="ra")
    for i, (name, colour) in enumerate(colours.items()):
        y = bottom + 26 * i
        pen.rectangle((20, y, 38, y + 18), colour)
        pen.text((46, y + 9), "stock attention" if name == "stock" else name.replace("+", " + "), INK, small, anchor="lm")
    return picture


def _colours(run: Run) -> dict[str, tuple[int, int, int]]:
    """Stock is grey; every combination of methods gets its own hue, spread evenly."""
    names = sorted({name for outcomes in run.cells.values() for name in outcomes if name != "stock"})
    out = {"stock": STOCK}
    for i, name in enumerate(names):
        r, g, b = colorsys.hls_to_rgb((0.58 + i / max(1, len(names))) % 1.0, 0.48, 0.62)
        out[name] = (int(255 * r), int(255 * g), int(255 * b))
    return out
