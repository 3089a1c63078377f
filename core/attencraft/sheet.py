"""The picture of found masks: for each concept what its words get of the attention, the refined map and the mask; and who led where."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from ..inspect.draw.canvas import FAINT, HEAD, MARGIN, RULE, Page, colours, named, text_width, wrapped
from .assign import confusion
from .masks import Found

TILE, GAP = 190, 14
GREY = (90, 96, 108)
CLOUDED = (168, 172, 180)
HEADINGS = ("the words' attention", "refined by who looks at whom", "mask")


def draw(found: Found, image: Tensor | None = None) -> Image.Image:
    """A page; image: IMAGE [1, H, W, 3] in 0..1, or None."""
    h, w = found.soft.shape[1:]
    under = None if image is None else (image[0].float().clamp(0, 1) * 255).byte().cpu().numpy()[..., :3]
    ratio = (under.shape[1] / under.shape[0]) if under is not None else w / h
    width, height = (TILE, TILE / ratio) if ratio >= 1 else (TILE * ratio, TILE)
    rows = len(found.names)
    cell, left = 66, MARGIN + max(text_width(name, 14) for name in found.names) + 16
    table = left + rows * cell + MARGIN
    page_width = max(3 * MARGIN + 4 * (TILE + GAP), table, 560.0)
    caption = f"timestep noise level {found.sigma:.3g}; maps of {w} x {h} cells; " + ", ".join(f"{n} {100 * s:.1f} %" for n, s in zip(found.names, found.shares, strict=True))
    page = Page(page_width, HEAD + 30 + rows * (height + 40) + 80 + (rows + 1) * 30, "Masks from the model's own attention", caption)
    for i, heading in enumerate(HEADINGS):
        for j, line in enumerate(wrapped(heading, TILE, 13)[:2]):
            page.text(MARGIN + i * (TILE + GAP), HEAD + 16 * j, line, 13, GREY)
    page.text(MARGIN + 3 * (TILE + GAP), HEAD, "all masks (grey: nobody's)", 13, GREY)
    y = HEAD + 36.0
    for i, name in enumerate(found.names):
        page.rect(MARGIN, y + 3, MARGIN + 12, y + 15, fill=named(i))
        page.text(MARGIN + 20, y, name, 15)
        for j, maps in enumerate((found.cross, found.soft)):
            page.paste(_heat(maps[i]), MARGIN + j * (TILE + GAP), y + 22, width, height)
        page.paste(_cover(found.masks[i : i + 1], [i], under), MARGIN + 2 * (TILE + GAP), y + 22, width, height)
        if i == 0:
            page.paste(_cover(found.masks, list(range(rows)), under), MARGIN + 3 * (TILE + GAP), y + 22, width, height)
        y += height + 40
    _matrix(page, found, y + 10, left, cell)
    return page.done()


def _heat(values: Tensor) -> np.ndarray:
    """uint8 [y, x, 3]: from the map's least to its largest value."""
    low, high = values.amin(), values.amax()
    return colours(((values - low) / (high - low).clamp_min(1e-20)).float().cpu().numpy())


def _cover(masks: Tensor, which: list[int], under: np.ndarray | None) -> np.ndarray:
    """uint8: the masks in their colours over the picture, which shows faintly where there is none."""
    y, x = masks.shape[1:]
    size = (y, x) if under is None else under.shape[:2]
    out = np.full((*size, 3), CLOUDED, dtype=float) if under is None else 0.45 * under.astype(float).mean(-1, keepdims=True).repeat(3, -1) + 0.55 * np.array(CLOUDED)
    for mask, i in zip(masks.float().cpu().numpy(), which, strict=True):
        inside = np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))[..., None]
        colour = np.array(named(i), dtype=float)
        shown = colour if under is None else 0.45 * under + 0.55 * colour
        out = np.where(inside > 0.5, shown, out)
    return out.round().astype(np.uint8)


def _matrix(page: Page, found: Found, y: float, left: float, cell: float) -> None:
    """Rows are masks, columns maps; each row has the sum 1."""
    page.text(MARGIN, y, "Share of each map (columns) inside each mask (rows): the largest should be the mask's own", 14)
    matrix = confusion(found.soft, found.masks)
    shares = (matrix / matrix.sum(1, keepdim=True).clamp_min(1e-20)).cpu().numpy()
    y += 46
    for i, name in enumerate(found.names):
        page.text(left + (i + 0.5) * cell, y - 6, _short(name, cell - 8), 12, GREY, "ms")
        page.text(left - 10, y + 30 * i + 15, name, 14, anchor="rm")
        for j, share in enumerate(shares[i]):
            page.rect(left + j * cell, y + 30 * i, left + (j + 1) * cell, y + 30 * (i + 1), fill=tuple(colours(np.array(0.15 + 0.85 * share)).tolist()), outline=FAINT)  # type: ignore[arg-type]
            page.text(left + (j + 0.5) * cell, y + 30 * i + 15, f"{share:.2f}", 13, (255, 255, 255) if share < 0.6 else (20, 20, 20), "mm")
        page.rect(left + i * cell, y + 30 * i, left + (i + 1) * cell, y + 30 * (i + 1), outline=RULE, width=2)


def _short(name: str, width: float) -> str:
    while len(name) > 1 and text_width(name, 12) > width:
        name = name[:-2] + "…" if name.endswith("…") else name[:-1] + "…"
    return name
