"""The picture of a search: before and after, the best single heads, and the score of every head tried."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..inspect.draw.canvas import HEAD, LONGEST, MARGIN, RULE, Page, colours, number
from .run import Session, clock
from .search import Hunt, best, written

WIDTH, TILE, GAP = 1240, 160, 12
GREY = (90, 96, 108)
MOST = 7
"""Pictures in a line."""


def draw(session: Session, colour_map: str = "viridis-like") -> Image.Image:
    """A page 1240 px wide; what is not there yet is left out."""
    hunt, scores = session.hunt, session.scores
    lines = _lines(session)
    grid = _grid(hunt)
    rows, columns = len(session.plan.layers), max(n for _, n in session.plan.layers)
    cell = max(4, min(24, (WIDTH - 140) // columns, (LONGEST - HEAD - 100 - len(lines) * (TILE + 70)) // rows))
    page = Page(WIDTH, HEAD + 12 + len(lines) * (TILE + 70) + (rows * cell + 110 if grid is not None else 0), f"Heads for: {session.bench.scorer.name}", _caption(session))
    y = float(HEAD + 12)
    for title, tiles in lines:
        page.text(MARGIN, y, title, 15)
        for i, (name, at) in enumerate(tiles[:MOST]):
            _tile(page, scores.thumbs.get(at), MARGIN + i * (TILE + GAP), y + 24, name)
        y += TILE + 70
    if grid is not None:
        _heat(page, session, grid, cell, y, colour_map)
    return page.done()


def _caption(session: Session) -> str:
    left, hunt = session.left, session.hunt
    state = (
        "finished"
        if hunt.finished
        else f"{min(hunt.done, session.plan.pictures)} of at most {session.plan.pictures} pictures" + ("" if left is None else f", about {clock(left)} left")
    )
    found = written(hunt.found)
    return f"{len(session.bench.pairs)} prompt-seed pairs; {state}. " + (f"Heads: {found}" if found else "")


def _lines(session: Session) -> list[tuple[str, list[tuple[str, tuple[str, int]]]]]:
    """(title, (caption, key of the picture)) of each line of pictures."""
    hunt, values = session.hunt, session.scores.values
    together = written(hunt.settled)

    def pairs(heads: str) -> list[tuple[str, tuple[str, int]]]:
        return [(f"seed {pair.seed}: {number(values[heads, j])}", (heads, j)) for j, pair in enumerate(session.bench.pairs) if (heads, j) in values]

    lines = [(f"Without guidance: {_mean(hunt.baseline)}", pairs(""))]
    if together and pairs(together):
        lines.append((f"With all heads of the finished rounds: {_mean(hunt.score)}", pairs(together)))
    if hunt.layers and not (hunt.rounds and hunt.rounds[0].scores):
        order = sorted(hunt.layers, key=lambda layer: (-hunt.layers[layer], layer))
        lines.append(("Whole layers, best first", [(f"L{layer}: {number(hunt.layers[layer])}", (str(layer), 0)) for layer in order]))
    if hunt.rounds and hunt.rounds[-1].scores:
        last, before = hunt.rounds[-1], [h for r in hunt.rounds[:-1] for h in r.chosen]
        beside = f" beside {len(before)} found before" if before else ""
        lines.append(
            (f"Round {len(hunt.rounds)}: best single heads{beside}", [(f"{written([h])}: {number(last.scores[h])}", (written([*before, h]), 0)) for h in best(last.scores, MOST)])
        )
    return lines


def _mean(score: float | None) -> str:
    return "not scored yet" if score is None else f"score {number(score)}"


def _tile(page: Page, picture: np.ndarray | None, x: float, y: float, name: str) -> None:
    if picture is None:
        page.rect(x, y, x + TILE, y + TILE, outline=RULE)
    else:
        h, w = picture.shape[:2]
        width, height = TILE * w / max(w, h), TILE * h / max(w, h)
        page.paste(picture, x, y, width, height, smooth=True)
    page.text(x, y + TILE + 5, name, 13, GREY)


def _grid(hunt: Hunt) -> np.ndarray | None:
    """[layers, heads]: the score of each head in the first round, NaN where it was not tried; None before it."""
    if not hunt.rounds or not hunt.rounds[0].scores:
        return None
    layers = {layer: i for i, (layer, _) in enumerate(hunt.plan.layers)}
    grid = np.full((len(layers), max(n for _, n in hunt.plan.layers)), np.nan)
    for (layer, head), score in hunt.rounds[0].scores.items():
        grid[layers[layer], head] = score
    return grid


def _heat(page: Page, session: Session, grid: np.ndarray, cell: int, y: float, colour_map: str) -> None:
    """Layers by heads, as scored in the first round; found heads are framed."""
    x0, y0 = MARGIN + 60, y + 40
    page.text(MARGIN, y, "Every head tried in round 1 (framed: found; empty: not tried)", 15)
    low, high = float(np.nanmin(grid)), float(np.nanmax(grid))
    high = high if high > low else low + 1e-6 + abs(low) * 1e-3
    found = set(session.hunt.found)
    for h in range(0, grid.shape[1], 1 if cell >= 18 else 2 if cell >= 10 else 4):
        page.text(x0 + (h + 0.5) * cell, y0 - 4, str(h), min(13, max(9, cell * 0.6)), GREY, "ms")
    for i, (layer, heads) in enumerate(session.plan.layers):
        top = y0 + i * cell
        if cell >= 11 or i % 2 == 0:
            page.text(x0 - 8, top + cell / 2, f"L{layer}", min(13, max(9, cell * 0.8)), anchor="rm")
        page.paste(colours((grid[i, :heads] - low) / (high - low), colour_map)[None], x0, top, heads * cell, cell)
        for h in range(heads):
            page.rect(x0 + h * cell, top, x0 + (h + 1) * cell, top + cell, outline=(255, 255, 255), width=0.5)
    for layer, h in found:
        i = [n for n, _ in session.plan.layers].index(layer)
        page.rect(x0 + h * cell, y0 + i * cell, x0 + (h + 1) * cell, y0 + (i + 1) * cell, outline=(220, 30, 60), width=2)
    below = y0 + len(grid) * cell + 12
    page.scale(x0, below, 260, low, high, "score", colour_map)
    if session.hunt.baseline is not None:
        page.text(x0 + 284, below, f"without guidance: {number(session.hunt.baseline)}", 13, GREY)
