"""Contact sheets of a gate run: what a checkpoint drew, under its caption, and what the measures find wrong with it."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont

from .pictures import INK, PAPER, QUIET, Panel, contact_sheet

SHOWN = {
    "complete": "dropped",
    "count": "count",
    "colour": "colour",
    "shape": "shape",
    "size": "size",
    "texture": "texture",
    "placement": "place",
    "motion": "motion",
    "speed": "speed",
}
"""Measures that are 1 when all is right, and the word for what is wrong when they are not."""
GROUND = {"ground": "ground", "ground_texture": "ground texture"}
WRONG = 0.75  # a measure below it is a fault
PICTURES, CLIPS = 24, 10  # at most so many of a cell on a sheet
FAULT = (196, 40, 40)


@dataclass(frozen=True)
class Drawn:
    """One sample: its cell, caption, frames [F, S, S, 3] in 0..1 and measures."""

    cell: str
    caption: str
    frames: torch.Tensor
    values: dict[str, float]

    @property
    def faults(self) -> str:
        """What is wrong, in words: "shape, motion"."""
        return ", ".join(word for name, word in {**SHOWN, **GROUND}.items() if not math.isnan(self.values[name]) and self.values[name] < WRONG)

    @property
    def pixels(self) -> numpy.ndarray:
        """Frames as uint8 [F, S, S, 3]."""
        return (self.frames.clamp(0, 1) * 255).round().byte().numpy()


def write(moving: bool, drawn: Sequence[Drawn], title: str, path: Path) -> None:
    """A PNG of the first samples of every cell: clips as strips of frames, pictures in a grid."""
    groups = [list(group)[: CLIPS if moving else PICTURES] for _, group in itertools.groupby(drawn, key=lambda one: one.cell)]
    if moving:
        contact_sheet([Panel(_heading(one), {one.cell: one.pixels}) for group in groups for one in group], title, path)
    else:
        gallery(groups, f"{title}; in red what the measures find wrong", path)


def gallery(groups: Sequence[Sequence[Drawn]], title: str, path: Path, columns: int = 8, side: int = 128) -> None:
    """Pictures of each cell in a grid, the caption and what is wrong below each, written as PNG."""
    big, small = ImageFont.load_default(17), ImageFont.load_default(11)
    gap, head, lines, line = 10, 30, 7, 13
    cell = side + lines * line + gap
    rows = [-(-len(group) // columns) for group in groups]
    sheet = Image.new("RGB", (gap + columns * (side + gap), 40 + sum(head + cell * count for count in rows)), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((14, 10), title, INK, big)
    top = 40
    for group, count in zip(groups, rows, strict=True):
        pen.text((14, top + 5), group[0].cell, INK, big)
        for n, one in enumerate(group):
            x, y = gap + n % columns * (side + gap), top + head + n // columns * cell
            sheet.paste(Image.fromarray(one.pixels[0]).resize((side, side), Image.Resampling.LANCZOS), (x, y))
            below = [(part, ink) for text, ink in ((one.caption, QUIET), (one.faults, FAULT)) for part in textwrap.wrap(text, 24)]
            for k, (text, ink) in enumerate(below[:lines]):
                pen.text((x, y + side + 2 + k * line), text, ink, small)
        top += head + cell * count
    sheet.save(path, optimize=True)


def _heading(one: Drawn) -> str:
    return f"{one.caption}   [wrong: {one.faults}]" if one.faults else one.caption
