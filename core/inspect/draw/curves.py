"""Lines: strength over distance, trends over layers, attention over frames."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from ..frames import profiles, suggest
from ..study import Place, Study
from ..summary import available, caption, value_of
from .canvas import HEAD, INK, Axes, Page, colour, colours, wrapped

HEAD_LINE = (205, 209, 217)
TREND = ("distance", "entropy", "own place", "text mass", "same frame", "same place, other frames")
ACCENT = (31, 95, 175)


def rings(study: Study) -> Image.Image:
    """S(r): left the mass of each ring, right the mean of one key in it on a logarithmic axis. Grey: heads; colour: layer means."""
    places = [p for p in study.places() if study.mean(p).rings is not None]
    profiles_of = {p: study.mean(p).rings.numpy() for p in places}  # type: ignore[union-attr]
    longest = max(r.shape[1] for r in profiles_of.values())
    page = Page(1240, HEAD + 560, "Attention over distance in the picture", caption(study) + ". Distance 0 is the token's own place, 1 its eight neighbours.")
    sizes = {p: ring_sizes(study.mean(p).grid) for p in places}
    low = min(max(1e-6, float(np.nanmin(profiles_of[p] / sizes[p]))) for p in places)
    left = Axes(page, (70, HEAD + 40, 590, HEAD + 420), (0, longest - 1), (0, 1), "distance in tokens", "Share of the attention at this distance")
    right = Axes(
        page, (680, HEAD + 40, 1200, HEAD + 420), (0, longest - 1), (10 ** math.floor(math.log10(low)), 1), "distance in tokens", "Attention on one key at this distance", log=True
    )
    for axes, divide in ((left, False), (right, True)):
        for p in places:
            for row in profiles_of[p]:
                axes.curve(range(len(row)), (row / sizes[p] if divide else row).tolist(), HEAD_LINE)
        for i, p in enumerate(places):
            mean = np.nanmean(profiles_of[p], 0)
            axes.curve(range(len(mean)), (mean / sizes[p] if divide else mean).tolist(), _depth(i, len(places)), 2.5)
    _depth_scale(page, 70, HEAD + 490, places)
    page.line([(420, HEAD + 497), (450, HEAD + 497)], HEAD_LINE, 2)
    page.text(458, HEAD + 497, "one head", 13, anchor="lm")
    return page.done()


def ring_sizes(grid: tuple[int, int, int] | None) -> np.ndarray:
    """Mean number of keys in each ring around a token of the grid (Y, X), at least a fraction: [max(Y, X)]."""
    if grid is None:
        return np.ones(1)
    _, y, x = grid
    longest = max(y, x)
    inside = [_window(y, r) * _window(x, r) for r in range(longest)]
    return np.maximum(np.diff([0.0, *inside]), 1e-9)


def _window(n: int, r: int) -> float:
    """Mean number of positions within r of a position on a line of n."""
    return float(np.mean([min(n - 1, i + r) - max(0, i - r) + 1 for i in range(n)]))


def trend(study: Study) -> Image.Image:
    """Mean over heads and the band of the middle 80 % of them, layer by layer, for each measure there is."""
    names = [n for n in TREND if n in available(study)]
    columns = 2
    lines = -(-len(names) // columns)
    page = Page(1240, HEAD + 330 * lines + 20, "From the first layer to the last", caption(study) + ". Line: mean over heads; band: from the 10th to the 90th percentile of them.")
    for i, name in enumerate(names):
        places = [p for p in study.places() if name in study.mean(p).scalars]
        x, y = 70 + 610 * (i % columns), HEAD + 40 + 330 * (i // columns)
        values = [value_of(study, p, name) for p in places]
        top = max(0.05, float(np.nanmax([np.nanpercentile(v, 90) for v in values])) * 1.05)
        axes = Axes(page, (x, y, x + 520, y + 220), (0, len(places) - 1), (0, top), "layer", TITLES.get(name, name), x_name=_layer_name(places))
        xs = list(range(len(places)))
        axes.band(xs, [float(np.nanpercentile(v, 10)) for v in values], [float(np.nanpercentile(v, 90)) for v in values], (206, 222, 242))
        axes.curve(xs, [float(np.nanmean(v)) for v in values], ACCENT, 2.5)
    return page.done()


TITLES = {
    "distance": "Mean distance, share of the diagonal",
    "entropy": "Entropy, share of the largest possible",
    "own place": "Share on the own place",
    "text mass": "Share on text",
    "same frame": "Share on the own frame",
    "same place, other frames": "Share on the own place in other frames",
}


def frame_profile(study: Study) -> Image.Image | None:
    """Attention on one key frame over its distance in time, with the suggested train_frames; None where there are no frames."""
    layers, heads = profiles(study)
    if heads is None:
        return None
    found = suggest(heads)
    t = heads.shape[1]
    page = Page(1100, HEAD + 560, "Attention over distance in time", caption(study))
    low = max(1e-5, float(heads[heads.isfinite()].min()))
    axes = Axes(page, (80, HEAD + 40, 1060, HEAD + 400), (0, t - 1), (10 ** math.floor(math.log10(low)), 1), "latent frames apart", "Share of the attention on one frame", log=True)
    for row in heads.tolist():
        axes.curve(range(t), row, HEAD_LINE)
    for i, (_, rows) in enumerate(layers):
        axes.curve(range(t), rows.mean(0).tolist(), _depth(i, len(layers)), 2)
    axes.curve(range(t), heads.median(0).values.tolist(), INK, 3.5)
    if found.train_frames is not None:
        x, _ = axes.at(found.train_frames - 1, 1)
        page.line([(x, HEAD + 40), (x, HEAD + 400)], (200, 40, 60), 2)
        page.text(x + 6, HEAD + 46, f"train_frames {found.train_frames}", 14, (200, 40, 60))
    _depth_scale(page, 80, HEAD + 466, [p for p in study.places() if study.mean(p).per_frame is not None])
    page.line([(420, HEAD + 473), (450, HEAD + 473)], INK, 3.5)
    page.text(458, HEAD + 473, "median head", 13, anchor="lm")
    page.line([(570, HEAD + 473), (600, HEAD + 473)], HEAD_LINE, 2)
    page.text(608, HEAD + 473, "one head", 13, anchor="lm")
    for i, line in enumerate(wrapped(found.reason, 980, 14)):
        page.text(80, HEAD + 512 + 18 * i, line, 14)
    return page.done()


def _layer_name(places: list[Place]) -> Callable[[float], str]:
    return lambda v: f"L{places[int(v)].layer}" if 0 <= v < len(places) and v == int(v) else ""


def _depth(i: int, n: int) -> tuple[int, int, int]:
    return colour(0.08 + 0.8 * i / max(1, n - 1))


def _depth_scale(page: Page, x: float, y: float, places: list[Place]) -> None:
    """Which colour is which layer."""
    page.paste(colours(np.linspace(0.08, 0.88, 256)[None]), x, y, 200, 14)
    page.text(x, y + 18, f"L{places[0].layer}", 13)
    page.text(x + 200, y + 18, f"L{places[-1].layer}", 13, anchor="ra")
    page.text(x + 100, y + 18, "layer means", 13, anchor="ma")
