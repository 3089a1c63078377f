"""Heads grouped: clusters of patterns, and what each layer's attention falls on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from PIL import Image

from ..patterns import clusters, components, features
from ..study import Place, Study
from ..summary import Head, caption
from .canvas import HEAD, LONGEST, RULE, Axes, Page, named
from .maps import fitted, offset_tile

THUMB = 64


def pattern_groups(study: Study, count: int = 8, colour_map: str = "viridis-like") -> Image.Image:
    """Heads by the pattern of their attention: two principal components, and each group's most typical head with its counts per layer."""
    heads: list[Head] = []
    parts = []
    for place in study.places():
        stats = study.mean(place)
        if stats.offsets is not None and stats.popular is not None:
            good = [h for h in range(len(stats.offsets)) if bool(stats.offsets[h].isfinite().all())]
            heads += [(place, h) for h in good]
            parts.append(features(stats.offsets[good], stats.popular[good]))
    points = components(torch.cat(parts))
    groups = clusters(points, count)
    n = len(groups.medoids)
    row = max(48, min(THUMB + 22, (LONGEST - HEAD - 80) // n))
    page = Page(
        1280, HEAD + 30 + max(600, n * row + 20), f"Heads in {n} groups of like patterns", caption(study) + ". Groups by k-means on 16 principal components; names by rule."
    )
    flat = points[:, :2] if points.shape[1] > 1 else torch.cat([points, torch.zeros_like(points)], 1)
    low, high = flat.min(0).values.tolist(), flat.max(0).values.tolist()
    pad = [0.05 * (b - a) + 1e-6 for a, b in zip(low, high, strict=True)]
    box = (66, HEAD + 40, 600, HEAD + 560)
    axes = Axes(page, box, (low[0] - pad[0], high[0] + pad[0]), (low[1] - pad[1], high[1] + pad[1]), "first principal component", "Every dot is a head (up: second component)")
    for i, (x, y) in enumerate(flat.tolist()):
        page.dot(*axes.at(x, y), 5 if len(heads) < 400 else 3, named(int(groups.of[i])), (255, 255, 255))
    _list(page, study, heads, groups.of.tolist(), groups.medoids.tolist(), row, colour_map)
    return page.done()


def _list(page: Page, study: Study, heads: list[Head], of: list[int], medoids: list[int], row: int, colour_map: str) -> None:
    places = list(dict.fromkeys(p for p, _ in heads))
    labels = {p: study.labels(p) for p in places}
    page.text(640, HEAD + 16, "Group: its most typical head, name, size", 16)
    page.text(960, HEAD + 16, f"share of each layer, L{places[0].layer} to L{places[-1].layer}", 16)
    for c, medoid in enumerate(medoids):
        y = HEAD + 44 + c * row
        members = [heads[i] for i in range(len(heads)) if of[i] == c]
        (place, head), names = heads[medoid], Counter(labels[p][h] for p, h in members)
        stats = study.mean(place)
        if stats.offsets is None or stats.grid is None:
            continue
        size = min(THUMB, row - 8)
        w, h = fitted(2 * stats.grid[2] - 1, 2 * stats.grid[1] - 1, size)
        page.rect(640, y, 646, y + size, fill=named(c))
        page.paste(offset_tile(stats.offsets[head].numpy(), colour_map), 654 + (size - w) / 2, y + (size - h) / 2, w, h)
        page.text(664 + size, y + 2, names.most_common(1)[0][0], 17, named(c))
        page.text(664 + size, y + 26, f"{len(members)} head{'s' if len(members) > 1 else ''}, like L{place.layer}H{head}", 13)
        if row >= 60:
            rest = ", ".join(f"{n} {name}" for name, n in names.most_common(3)[1:])
            page.text(664 + size, y + 43, f"also {rest}" if rest else "", 12, (90, 96, 108))
        _shares(page, members, heads, places, (960, y, 1250, y + size), c)


def _shares(page: Page, members: list[Head], heads: list[Head], places: list[Place], box: tuple[float, float, float, float], group: int) -> None:
    """A bar per layer: which part of its heads belongs to the group."""
    mine, every = Counter(p for p, _ in members), Counter(p for p, _ in heads)
    x0, y0, x1, y1 = box
    step = min(24.0, (x1 - x0) / len(places))
    page.line([(x0, y1), (x0 + step * len(places), y1)], RULE)
    for i, p in enumerate(places):
        if mine[p]:
            page.rect(x0 + i * step, y1 - (y1 - y0) * mine[p] / every[p], x0 + (i + 1) * step - min(2, step / 4), y1, fill=named(group))


PARTS = (("own frame", (31, 95, 175)), ("other frames", (120, 170, 225)), ("text", (226, 140, 40)), ("reference", (40, 140, 90)), ("other", (160, 120, 170)))


def mass_bars(study: Study) -> Image.Image:
    """What the image queries of each layer read, mean over heads: own frame, other frames, text, reference, other."""
    every = study.places() + study.places(cross=True)
    # a cross-attention that has nothing but text to read says nothing here
    places = [p for p in every if sum(n.endswith(" mass") for n in study.mean(p).scalars) > 1 or p.kind != "cross"] or every
    shares = {p: _parts(study, p) for p in places}
    used = [(name, fill) for name, fill in PARTS if any(shares[p].get(name, 0) > 0 for p in places)]
    row = max(9, min(24, (LONGEST - HEAD - 110) // len(places)))
    x0 = 220
    page = Page(1000, HEAD + 50 + row * len(places) + 50, "What image tokens read", caption(study))
    x = float(x0)
    for name, fill in used:
        shown = name if study.grid is not None and study.grid[0] > 1 else {"own frame": "image"}.get(name, name)
        page.rect(x, HEAD + 8, x + 16, HEAD + 24, fill=fill)
        page.text(x + 22, HEAD + 7, shown, 14)
        x += 130
    for r, p in enumerate(places):
        y, at = HEAD + 42 + r * row, float(x0)
        if row >= 12 or r % 2 == 0:
            page.text(x0 - 8, y + row / 2, p.name, min(13, row), anchor="rm")
        for name, fill in used:
            width = 730 * shares[p].get(name, 0.0)
            page.rect(at, y, at + width, y + row - 2, fill=fill)
            at += width
    y = HEAD + 44 + row * len(places)
    for percent in range(0, 101, 25):
        page.text(x0 + 7.3 * percent, y + 4, f"{percent}%", 12, anchor="ma")
    return page.done()


def _parts(study: Study, place: Place) -> dict[str, float]:
    """Shares of a layer, mean over heads."""
    found = {n: float(np.nanmean(v.numpy())) for n, v in study.mean(place).scalars.items()}
    image = found.get("image mass", 0.0)
    own = image * found.get("same frame", 1.0)
    return {"own frame": own, "other frames": image - own} | {n: found.get(f"{n} mass", 0.0) for n in ("text", "reference", "other")}
