"""Draws ``docs/images/backend.png``: how a plan becomes a launch, from a real plan.

python -m attention_loom.tools.backend_picture [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..kernels.blocks import FULL, PARTIAL, BlockPlan
from ..kernels.patterns.base import Tokens
from ..kernels.patterns.clear import Clear

FILE = Path(__file__).resolve().parent.parent / "docs" / "images" / "backend.png"
INK, GREY, PALE, WHITE = "#22303c", "#8795a1", "#e8edf1", "#ffffff"
PLAIN, TESTED, POOLED, TEXT = "#2f6db3", "#e08a2c", "#c9d3dc", "#4f9d69"
FRAMES = ("#2f6db3", "#7fb0e3")
SIZE = (1720, 800)


def main(path: Path) -> None:
    """Draw and save."""
    tokens = Tokens(2 * 40 * 40 + 50, (2, 40, 40))
    plan = Clear(radius=19.0, frame_radius=1.5, block=64).plan(tokens)
    image = Image.new("RGB", SIZE, WHITE)
    draw = ImageDraw.Draw(image)
    _tokens(draw, 40, plan)
    _blocks(draw, 440, plan)
    _lists(draw, 870, plan)
    _program(draw, 1320)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)


def _text(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int = 19, fill: str = INK, anchor: str = "la") -> None:
    draw.text(at, text, fill=fill, font=ImageFont.load_default(size), anchor=anchor)


def _head(draw: ImageDraw.ImageDraw, x: int, number: int, title: str, lines: tuple[str, ...]) -> None:
    _text(draw, (x, 28), f"{number}  {title}", 27)
    for i, line in enumerate(lines):
        _text(draw, (x, 70 + 25 * i), line, fill=GREY)


def _arrow(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    draw.line((x, y, x + 34, y), fill=INK, width=3)
    draw.polygon([(x + 34, y - 8), (x + 34, y + 8), (x + 46, y)], fill=INK)


def _tokens(draw: ImageDraw.ImageDraw, x: int, plan: BlockPlan) -> None:
    """The grid cut into tiles, and the tokens of each tile side by side in memory."""
    _head(draw, x, 1, "Order", ("tokens of a tile side by side,", "text in blocks of its own"))
    edge = 46
    for frame in (1, 0):
        left, top = x + 34 * frame, 160 + 34 * frame
        draw.rectangle((left, top, left + 5 * edge, top + 5 * edge), fill=FRAMES[frame], outline=WHITE, width=2)
        for tile in range(1, 5):
            draw.line((left + tile * edge, top, left + tile * edge, top + 5 * edge), fill=WHITE, width=2)
            draw.line((left, top + tile * edge, left + 5 * edge, top + tile * edge), fill=WHITE, width=2)
    _text(draw, (x, 448), "2 frames of 40 x 40 tokens, tiles of 8 x 8", 17, GREY)
    for b in range(plan.q.blocks):
        row, column = divmod(b, 13)
        left, top = x + 24 * column, 500 + 46 * row
        live = int(plan.q.valid[b]) / plan.q.block
        frame = int(plan.q.frame[b])
        draw.rectangle((left, top, left + 20, top + 34), fill=PALE)
        draw.rectangle((left, top, left + 20 * live, top + 34), fill=TEXT if frame < 0 else FRAMES[frame])
    _text(draw, (x, 700), f"{plan.q.blocks} blocks of 64 places; the last holds", 17, GREY)
    _text(draw, (x, 722), f"{int(plan.q.valid[-1])} text tokens, its other places are dead", 17, GREY)
    _arrow(draw, x + 330, 44)


def _blocks(draw: ImageDraw.ImageDraw, x: int, plan: BlockPlan) -> None:
    """The block map of one head group."""
    _head(draw, x, 2, "Blocks", ("which key blocks each row of", "query blocks reads"))
    kinds = plan.kinds()[0].tolist()
    cell, top = 7, 190
    _text(draw, (x + len(kinds) * cell / 2, top - 26), "key blocks", 17, GREY, "ma")
    for i, row in enumerate(kinds):
        for j, kind in enumerate(row):
            fill = PLAIN if kind == FULL else TESTED if kind == PARTIAL else PALE
            draw.rectangle((x + j * cell, top + i * cell, x + (j + 1) * cell - 2, top + (i + 1) * cell - 2), fill=fill)
    side = Image.new("L", (120, 24), 0)
    ImageDraw.Draw(side).text((60, 0), "query blocks", fill=255, font=ImageFont.load_default(17), anchor="ma")
    side = side.rotate(90, expand=True)
    draw.bitmap((x - 28, top + len(kinds) * cell // 2 - 60), side, fill=GREY)
    bottom = top + len(kinds) * cell + 22
    shares = [sum(k == kind for row in kinds for k in row) for kind in (FULL, PARTIAL, 0)]
    for fill, label in ((PLAIN, f"full: every pair ({shares[0]})"), (TESTED, f"partial: each pair is tested ({shares[1]})"), (PALE, f"not read, or pooled ({shares[2]})")):
        draw.rectangle((x, bottom, x + 18, bottom + 18), fill=fill)
        _text(draw, (x + 28, bottom - 2), label, 17)
        bottom += 29
    _arrow(draw, x + 362, 44)


def _lists(draw: ImageDraw.ImageDraw, x: int, plan: BlockPlan) -> None:
    """Rows as programs, longest first, the long ones cut along the keys."""
    _head(draw, x, 3, "Launch order", ("ragged lists, no dense table;", "longest rows first, long text rows cut"))
    kinds = plan.kinds()[0].tolist()
    rows = [(sum(k == FULL for k in row), sum(k == PARTIAL for k in row)) for row in kinds]
    text, others = rows[-1], rows[:-1]
    half = text[0] // 2
    parts = [(half + text[0] % 2, 0, ""), (half, 0, "the text row, in two parts")]
    programs = sorted([*((a, b, "") for a, b in others), *parts], key=lambda r: -(r[0] + r[1]))
    unit, height, top = 8, 5, 190
    for i, (whole, partial, label) in enumerate(programs):
        y = top + i * (height + 2)
        draw.rectangle((x, y, x + whole * unit - 2, y + height), fill=PLAIN)
        if partial:
            draw.rectangle((x + whole * unit, y, x + (whole + partial) * unit - 2, y + height), fill=TESTED)
        if label:
            _text(draw, (x + whole * unit + 10, y - 1), label, 15, GREY)
    y = top + len(programs) * (height + 2) + 18
    _text(draw, (x, y), "one bar, one program for each head;", 17, GREY)
    _text(draw, (x, y + 24), "parts of a row are merged in fixed order", 17, GREY)
    _arrow(draw, x + 372, 44)


def _program(draw: ImageDraw.ImageDraw, x: int) -> None:
    """What one program does."""
    _head(draw, x, 4, "One program", ("one softmax over everything the", "row reads, kept in registers"))
    steps = (
        (PALE, "gather a tile of queries", "by the order, from any layout"),
        (PLAIN, "full blocks", "products and softmax, no tests"),
        (TESTED, "partial blocks", "window, band, frames, bits, labels, tables"),
        (TEXT, "extra segments", "text, references, prompts of others"),
        (POOLED, "pooled tail", "one mean for each block not read"),
        (PALE, "head mix, scatter to token order", "output and log-sum-exp"),
    )
    y = 160
    for number, (fill, title, line) in enumerate(steps):
        loop = 0 < number < 5
        draw.rounded_rectangle((x + 26 * loop, y, x + 360, y + 72), 8, fill=fill)
        ink = WHITE if fill in (PLAIN, TESTED, TEXT) else INK
        _text(draw, (x + 26 * loop + 16, y + 10), title, 21, ink)
        _text(draw, (x + 26 * loop + 16, y + 41), line, 16, ink)
        y += 88
    draw.line((x + 8, 252, x + 8, 590), fill=INK, width=3)
    for end in (252, 590):
        draw.line((x + 8, end, x + 20, end), fill=INK, width=3)
    _text(draw, (x, 708), "Keys and values were put into place order", 17, GREY)
    _text(draw, (x, 730), "before, in one pass that also pools them.", 17, GREY)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FILE)
