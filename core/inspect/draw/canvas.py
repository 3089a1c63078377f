"""What the pictures share: a page, colours, axes. All lengths are pixels of the finished picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, PAPER, RULE, FAINT, NONE = (32, 36, 44), (255, 255, 255), (150, 156, 168), (226, 229, 235), (240, 241, 244)
FINE = 2
"""Pages are drawn this much larger and scaled down, for smooth lines."""
LONGEST = 2048
MARGIN = 24
HEAD = 84
"""Height of title and caption."""

_STOPS = ((42, 20, 90), (56, 60, 150), (40, 112, 168), (30, 158, 150), (92, 196, 98), (190, 220, 60), (252, 236, 100))
"""Colours of a scale whose lightness rises evenly from deep violet to yellow."""
QUALITATIVE = ((31, 95, 175), (214, 106, 30), (40, 140, 90), (176, 58, 120), (120, 100, 60), (90, 80, 180), (20, 150, 170), (150, 150, 30))
"""Colours that name things; the ninth is made from the first, darker."""
COLOUR_MAPS = ("viridis-like", "grey")

Colour = tuple[int, int, int]


def colours(values: np.ndarray, name: str = "viridis-like") -> np.ndarray:
    """uint8 [..., 3] of values in 0..1; NaN is near-white.

    >>> colours(np.array([0.0, 1.0]), "grey").tolist()
    [[20, 20, 20], [245, 245, 245]]
    """
    stops = np.array(_STOPS if name == "viridis-like" else ((20, 20, 20), (245, 245, 245)), dtype=float)
    at = np.clip(np.nan_to_num(values), 0, 1) * (len(stops) - 1)
    low = np.minimum(at.astype(int), len(stops) - 2)
    part = (at - low)[..., None]
    out = stops[low] * (1 - part) + stops[low + 1] * part
    return np.where(np.isnan(values)[..., None], NONE, out).round().astype(np.uint8)


def colour(value: float, name: str = "viridis-like") -> Colour:
    """The colour of one value in 0..1."""
    r, g, b = colours(np.array(value), name).tolist()
    return r, g, b


def named(index: int) -> Colour:
    """The colour of the n-th thing."""
    base = QUALITATIVE[index % len(QUALITATIVE)]
    dim = 0.6 ** (index // len(QUALITATIVE))
    return int(base[0] * dim), int(base[1] * dim), int(base[2] * dim)


class Page:
    """A white page with a title and a caption of one or two lines."""

    def __init__(self, width: float, height: float, title: str, caption: str = "") -> None:
        self.width, self.height = min(int(width), LONGEST), min(int(height), LONGEST)
        self.image = Image.new("RGB", (self.width * FINE, self.height * FINE), PAPER)
        self.pen = ImageDraw.Draw(self.image)
        self.text(MARGIN, 14, title, 22)
        for i, line in enumerate(wrapped(caption, self.width - 2 * MARGIN, 14)[:2]):
            self.text(MARGIN, 44 + 18 * i, line, 14, (90, 96, 108))

    def text(self, x: float, y: float, text: str, size: float = 14, fill: Colour = INK, anchor: str = "la") -> None:
        """Text; anchor as Pillow's."""
        self.pen.text((x * FINE, y * FINE), text, fill, _font(size * FINE), anchor=anchor)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: Colour | None = None, outline: Colour | None = None, width: float = 1) -> None:
        """A filled or outlined box; x1, y1 lie outside. An empty one is nothing."""
        left, top, right, bottom = round(x0 * FINE), round(y0 * FINE), round(x1 * FINE) - 1, round(y1 * FINE) - 1
        if right >= left and bottom >= top:
            self.pen.rectangle((left, top, right, bottom), fill, outline, max(1, round(width * FINE)))

    def line(self, points: Sequence[tuple[float, float]], fill: Colour, width: float = 1.0) -> None:
        """A polyline."""
        self.pen.line([(x * FINE, y * FINE) for x, y in points], fill, max(1, round(width * FINE)), joint="curve")

    def dot(self, x: float, y: float, radius: float, fill: Colour, outline: Colour | None = None) -> None:
        """A disc."""
        self.pen.ellipse([(v * FINE) for v in (x - radius, y - radius, x + radius, y + radius)], fill, outline, FINE)

    def polygon(self, points: Sequence[tuple[float, float]], fill: Colour) -> None:
        """A filled shape."""
        self.pen.polygon([(x * FINE, y * FINE) for x, y in points], fill)

    def paste(self, pixels: np.ndarray, x: float, y: float, width: float, height: float, smooth: bool = False) -> None:
        """A uint8 picture [a, b, 3] into a box; cells stay sharp unless ``smooth``."""
        size = (max(1, round(width * FINE)), max(1, round(height * FINE)))
        how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
        self.image.paste(Image.fromarray(pixels).resize(size, how), (round(x * FINE), round(y * FINE)))

    def scale(self, x: float, y: float, width: float, low: float, high: float, label: str, colour_map: str) -> None:
        """A colour bar with its two ends and what it shows."""
        self.paste(colours(np.linspace(0, 1, 256)[None], colour_map), x, y, width, 14)
        self.rect(x, y, x + width, y + 14, outline=RULE)
        self.text(x, y + 18, number(low), 13)
        self.text(x + width, y + 18, number(high), 13, anchor="ra")
        self.text(x + width / 2, y + 18, label, 13, anchor="ma")

    def done(self) -> Image.Image:
        """The finished picture."""
        return self.image.resize((self.width, self.height), Image.Resampling.LANCZOS)


def _font(size: float) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def text_width(text: str, size: float) -> float:
    """Pixels a text takes."""
    return float(_font(size).getlength(text))


def wrapped(text: str, width: float, size: float) -> list[str]:
    """Lines no wider than ``width``."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def number(value: float) -> str:
    """Three digits."""
    return "nan" if math.isnan(value) else f"{value:.3g}"


class Axes:
    """A box with axes. x_range, y_range: of the data; log: the y axis is logarithmic, values at or below 0 sit at the bottom."""

    def __init__(
        self,
        page: Page,
        box: tuple[float, float, float, float],
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        x_label: str,
        title: str,
        log: bool = False,
        x_name: Callable[[float], str] = number,
    ) -> None:
        self.page, self.box, self.log = page, box, log
        self.x_range = x_range if x_range[1] > x_range[0] else (x_range[0] - 0.5, x_range[0] + 0.5)
        low, high = y_range
        self.y_range = (low, high) if high > low else (low, low + 1)
        x0, y0, x1, y1 = box
        page.text(x0, y0 - 24, title, 16)
        for value in _ticks(*self.y_range, log):
            _, y = self.at(self.x_range[0], value)
            page.line([(x0, y), (x1, y)], FAINT)
            page.text(x0 - 6, y, number(value), 12, anchor="rm")
        for value in _ticks(*self.x_range, False, whole=True):
            x, _ = self.at(value, low)
            page.line([(x, y1), (x, y1 + 4)], RULE)
            page.text(x, y1 + 7, x_name(value), 12, anchor="ma")
        page.text((x0 + x1) / 2, y1 + 25, x_label, 13, anchor="ma")
        page.rect(x0, y0, x1, y1, outline=RULE)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixel of a data point, kept inside the box."""
        x0, y0, x1, y1 = self.box
        low, high = self.y_range
        part = math.log(max(y, low) / low) / math.log(high / low) if self.log else (y - low) / (high - low)
        across = (x - self.x_range[0]) / (self.x_range[1] - self.x_range[0])
        return x0 + min(1.0, max(0.0, across)) * (x1 - x0), y1 - min(1.0, max(0.0, part)) * (y1 - y0)

    def curve(self, xs: Sequence[float], ys: Sequence[float], fill: Colour, width: float = 1.0) -> None:
        """A line; values that are no numbers are left out."""
        points = [self.at(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
        if len(points) > 1:
            self.page.line(points, fill, width)
        elif points:
            self.page.dot(*points[0], 3, fill)

    def band(self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], fill: Colour) -> None:
        """The area between two lines."""
        if len(xs) > 1:
            self.page.polygon([self.at(x, y) for x, y in zip(xs, high, strict=True)] + [self.at(x, y) for x, y in reversed(list(zip(xs, low, strict=True)))], fill)


def _ticks(low: float, high: float, log: bool, whole: bool = False) -> list[float]:
    """About five round values; powers of ten on a logarithmic axis."""
    if log:
        return [10.0**e for e in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]
    raw = (high - low) / 5
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * m for m in (1, 2, 5, 10) if base * m >= raw - 1e-12)
    step = max(1.0, step) if whole and high - low > 1.5 else step
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]
