"""Pictures a person can judge: contact sheets of clips, and the clips side by side as an animation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
from PIL import Image, ImageDraw, ImageFont

INK, PAPER, QUIET = (32, 36, 44), (255, 255, 255), (130, 136, 148)
MOMENTS = 14
"""Frames of a clip on a contact sheet."""
SIDE = 64
"""Pixels of a frame on a contact sheet: as drawn."""


@dataclass(frozen=True)
class Panel:
    """One prompt: heading and clips uint8 [F, H, W, 3] by label, the same labels in every panel."""

    heading: str
    clips: dict[str, numpy.ndarray]


def contact_sheet(panels: Sequence[Panel], title: str, path: Path) -> None:
    """One line per clip, frames from left to right in time, written as PNG."""
    big, small = ImageFont.load_default(17), ImageFont.load_default(14)
    left = 28 + max(round(small.getlength(label)) for panel in panels for label in panel.clips)
    line, head = SIDE + 4, 30
    height = 40 + sum(head + line * len(panel.clips) + 8 for panel in panels)
    width = max(left + MOMENTS * line + 12, 32 + max(round(big.getlength(text)) for text in (title, *(panel.heading for panel in panels))))
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((14, 10), title, INK, big)
    y = 40
    for panel in panels:
        pen.text((14, y + 5), panel.heading, INK, big)
        y += head
        for label, frames in panel.clips.items():
            pen.text((left - 12, y + SIDE / 2), label, INK, small, anchor="rm")
            for n in range(MOMENTS):
                frame = frames[round(n * (len(frames) - 1) / (MOMENTS - 1))]
                sheet.paste(_resized(frame, SIDE), (left + n * line, y))
            y += line
        y += 8
    sheet.save(path, optimize=True)


def animation(panels: Sequence[Panel], path: Path, side: int = 128, milliseconds: int = 110) -> None:
    """All clips at once, one line per prompt and one column per label, as an animated WebP that loops; shorter clips rest at their end."""
    font, quiet = ImageFont.load_default(14), ImageFont.load_default(12)
    labels = list(panels[0].clips)
    gap, head, text = 8, 30, 20
    column = max(side, *(round(font.getlength(label)) for label in labels)) + gap
    pages = []
    for t in range(max(len(frames) for panel in panels for frames in panel.clips.values())):
        page = Image.new("RGB", (gap + len(labels) * column, head + len(panels) * (side + text + gap)), PAPER)
        pen = ImageDraw.Draw(page)
        for c, label in enumerate(labels):
            x = gap + c * column
            pen.text((x + (column - gap) / 2, head / 2), label, INK, font, anchor="mm")
            for r, panel in enumerate(panels):
                frames = panel.clips[label]
                y = head + r * (side + text + gap)
                if c == 0:
                    pen.text((gap, y + text / 2), panel.heading, QUIET, quiet, anchor="lm")
                page.paste(_resized(frames[min(t, len(frames) - 1)], side), (x + (column - gap - side) // 2, y + text))
        pages.append(page)
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=milliseconds, loop=0, lossless=False, quality=75)


def _resized(frame: numpy.ndarray, side: int) -> Image.Image:
    picture = Image.fromarray(frame)
    return picture if picture.size == (side, side) else picture.resize((side, side), Image.Resampling.LANCZOS)
