"""Contact sheets of pictures: prompts below each other, the ways to draw them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy
from PIL import Image, ImageDraw, ImageFont

from ..pictures import INK, PAPER, QUIET, Panel


def picture_sheet(panels: Sequence[Panel], title: str, path: Path, side: int = 128) -> None:
    """One line per prompt and one column per label, written as PNG; several pictures of one label stand side by side."""
    big, font, quiet = ImageFont.load_default(17), ImageFont.load_default(14), ImageFont.load_default(12)
    gap, head, line = 10, 30, 16
    columns = {label: max(round(font.getlength(label)), *(len(panel.clips[label]) * (side + 2) - 2 for panel in panels)) + gap for label in panels[0].clips}
    width = max(gap + sum(columns.values()), round(big.getlength(title)) + 28)
    headings = [_wrapped(panel.heading, quiet, width - 2 * gap) for panel in panels]
    sheet = Image.new("RGB", (width, 40 + head + sum(line * len(text) + side + 2 * gap for text in headings)), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((14, 10), title, INK, big)
    x = gap
    for label, column in columns.items():
        pen.text((x + (column - gap) / 2, 40 + head / 2), label, INK, font, anchor="mm")
        x += column
    y = 40 + head
    for panel, text in zip(panels, headings, strict=True):
        for part in text:
            pen.text((gap, y), part, QUIET, quiet)
            y += line
        x = gap
        for label, column in columns.items():
            start = x + (column - gap - len(panel.clips[label]) * (side + 2) + 2) // 2
            for n, frame in enumerate(panel.clips[label]):
                sheet.paste(_scaled(frame, side), (start + n * (side + 2), y + 4))
            x += column
        y += side + 2 * gap
    sheet.save(path, optimize=True)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines of a text that are at most so many pixels wide, broken at blanks."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _scaled(frame: numpy.ndarray, side: int) -> Image.Image:
    picture = Image.fromarray(frame)
    return picture if picture.size == (side, side) else picture.resize((side, side), Image.Resampling.LANCZOS)
