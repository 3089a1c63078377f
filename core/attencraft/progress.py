"""The picture of a training: its losses, the masks it goes by, and what it draws by now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..inspect.draw.canvas import HEAD, MARGIN, RULE, Axes, Page, named
from .trainer import PARTS, Training

WIDTH, HEIGHT = 1100, 200
TILE, GAP = 128, 10
GREY, FAINT_LINE = (90, 96, 108), (196, 204, 216)
SHOWN = 6
"""Rows of sketches shown: the first and the latest."""


def draw(training: Training, picture: Callable[[torch.Tensor], Any] | None = None) -> Image.Image:
    """A page 1100 px wide. picture: latent as the model has it -> PIL picture or None, for the sketches."""
    moments = sorted({at for at, _, _ in training.sketches})
    moments = moments[:1] + moments[1:][-(SHOWN - 1) :]
    rows = [[(name, x) for at, name, x in training.sketches if at == moment] for moment in moments]
    parts = [part for part in PARTS if any(training.history[part])]
    lines = -(-len(parts) // 2)
    tall = HEAD + 40 + lines * (HEIGHT + 80) + TILE + 60 + len(rows) * (TILE + 34)
    page = Page(WIDTH, tall, f"Learning {', '.join(c.name for c in training.prompts.concepts)}", caption(training))
    for i, part in enumerate(parts):
        x, y = 70 + 530 * (i % 2), HEAD + 40 + (HEIGHT + 80) * (i // 2)
        _curve(page, part, training.history[part], (x, y, x + 440, y + HEIGHT))
    y = HEAD + 40 + lines * (HEIGHT + 80)
    _masks(page, training, y)
    y += TILE + 60
    for moment, row in zip(moments, rows, strict=True):
        page.text(MARGIN, y + TILE / 2, f"step {moment}", 13, GREY, "lm")
        for j, (name, latent) in enumerate(row):
            _sketch(page, MARGIN + 80 + j * (TILE + GAP), y, name, None if picture is None else picture(latent))
        y += TILE + 34
    return page.done()


def caption(training: Training) -> str:
    """Where it stands."""
    good = sum(taken for _, taken in training.refreshed)
    looks = f"; masks looked for anew {len(training.refreshed)} times, taken {good} times" if training.refreshed else ""
    last = training.history["loss"][-1:]
    return f"step {training.done} of {training.plan.steps}" + (f", loss {last[0]:.4g}" if last else "") + looks


def _curve(page: Page, part: str, values: Sequence[float], box: tuple[float, float, float, float]) -> None:
    smooth = smoothed(values)
    top = max(float(np.quantile(values, 0.98)), max(smooth)) * 1.05 or 1.0
    axes = Axes(page, box, (1, max(2, len(values))), (0.0, top), "step", {"loss": "all losses together"}.get(part, f"{part} loss"))
    xs = range(1, len(values) + 1)
    axes.curve(xs, values, FAINT_LINE)
    axes.curve(xs, smooth, named(PARTS.index(part)), 2.5)


def smoothed(values: Sequence[float], keep: float = 0.95) -> list[float]:
    """A running mean that forgets, without the bias of its beginning.

    >>> smoothed([2.0, 2.0])
    [2.0, 2.0]
    """
    mean, out = 0.0, []
    for i, value in enumerate(values, 1):
        mean = keep * mean + (1 - keep) * value
        out.append(mean / (1 - keep**i))
    return out


def _masks(page: Page, training: Training, y: float) -> None:
    page.text(MARGIN, y, "masks", 13, GREY)
    if training.masks is None:
        return
    for i, (mask, name) in enumerate(zip(training.masks, [*(c.name for c in training.prompts.concepts), "background"], strict=True)):
        shown = np.where(mask.cpu().numpy()[..., None], np.array(named(i)), np.array((226, 229, 235))).astype(np.uint8)
        x = MARGIN + 80 + i * (TILE + GAP)
        h, w = shown.shape[:2]
        page.paste(shown, x, y, TILE * w / max(h, w), TILE * h / max(h, w))
        page.text(x, y + TILE + 4, name, 13, GREY)


def _sketch(page: Page, x: float, y: float, name: str, picture: Any) -> None:
    if picture is None:
        page.rect(x, y, x + TILE, y + TILE, outline=RULE)
    else:
        pixels = np.asarray(picture.convert("RGB"))
        h, w = pixels.shape[:2]
        page.paste(pixels, x, y, TILE * w / max(h, w), TILE * h / max(h, w), smooth=True)
    page.text(x, y + TILE + 4, name, 13, GREY)
