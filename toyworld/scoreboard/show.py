"""Which clips or pictures a row shows, and drawing them: contact sheets of both, animations of clips."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy
from PIL import Image, ImageDraw

from ..pictures import Panel, animation, contact_sheet
from .board import Board
from .graphs import Shot
from .row import Arm, Row
from .sheets import picture_sheet

FOLDER = Path("images") / "results"
CLIPS, PICTURES = 3, 6
"""Prompts shown."""
NAMES = {0.0: ("largest gain", "best"), 0.5: ("middle", "middle"), 1.0: ("smallest gain", "worst")}
"""Of places in the order by what the row's subject gains over stock in its first measure, or by its own value, from the best to the worst."""


def files(row: Row) -> tuple[Path, ...]:
    """Contact sheet and, of clips, animation of a row, relative to the page."""
    sheet, moving = FOLDER / f"{row.name}.png", FOLDER / f"{row.name}.webp"
    return (sheet,) if row.setting.picture else (sheet, moving)


def chosen(board: Board, row: Row) -> list[tuple[int, str]]:
    """Number and heading of a few complete prompts. Where stock is nothing to gain over (it is what others are compared with), values rank."""
    judge, ledger = row.judges[0], board.ledger
    ours, stock = (ledger.column(row, arm.name, judge.reads) for arm in (row.subject, row.stock))
    paired = (stock == stock) & (row.ours is not None)  # not nan
    gains = [o - s if p else o for o, s, p in zip(ours.tolist(), stock.tolist(), paired.tolist(), strict=True)]
    numbers = ledger.complete(row)
    order = sorted(range(len(gains)), key=lambda n: _rank(gains[n], judge.direction))
    found: dict[int, str] = {}
    for place in _places(row):
        n = order[round(place * (len(order) - 1))]
        cell = ledger.rows[row.name][row.subject.name][numbers[n]]
        nth = f"place {1 + round(place * (len(order) - 1))}"
        label = NAMES.get(place, (nth, nth))[0 if paired[n] else 1]
        what = f"{judge.title} {gains[n]:+.2f} over {row.stock.name}" if paired[n] else f"{judge.title} {gains[n]:.1f}"
        found.setdefault(numbers[n], f"{cell.caption}, seed {cell.seed}: {label} of {len(order)}, {what}")
    return list(found.items())


def _shown(board: Board, row: Row, arm: Arm, shot: Shot) -> numpy.ndarray:
    """Frames uint8 [F, H, W, 3] with the row's box in them; the rendered truth knows nothing of the box."""
    frames = board.clip(row, arm, shot).frames
    if arm is row.truth or not row.outline:
        return frames
    out = []
    for frame, box in zip(frames, row.outline, strict=True):
        picture, side = Image.fromarray(frame), len(frame)
        corners = [min(max(round(value * side), 0), side) for value in box]
        ImageDraw.Draw(picture).rectangle((corners[0], corners[1], corners[2] - 1, corners[3] - 1), outline="white")
        out.append(numpy.asarray(picture))
    return numpy.stack(out)


def _places(row: Row) -> list[float]:
    """Places in the order, 0 the best and 1 the worst."""
    count = PICTURES if row.setting.picture else CLIPS
    return [n / (count - 1) for n in range(count)]


def _rank(gain: float, direction: int) -> float:
    """Best first; what has no value comes last."""
    return -direction * gain if gain == gain else float("inf")


def draw(board: Board, row: Row, out: Path) -> None:
    """The pictures of a row, unless those there show the same under the same headings."""
    picks = chosen(board, row)
    cells = [board.ledger.rows[row.name][arm.name][number] for number, _ in picks for arm in row.arms]
    key = hashlib.sha256(
        "\0".join([row.claim, *map(str, row.outline), *(heading for _, heading in picks), *(arm.name for arm in row.arms), *(cell.key for cell in cells)]).encode()
    ).hexdigest()[:16]
    paths = [out / path for path in files(row)]
    if board.ledger.pictures.get(row.name) == key and all(path.is_file() for path in paths):
        return
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    shots = row.shots(1 + max(number for number, _ in picks), board.steps)
    panels = [Panel(heading, {arm.name: _shown(board, row, arm, shots[number]) for arm in row.arms}) for number, heading in picks]
    if row.setting.picture:
        picture_sheet(panels, f"{row.name}: the same prompt and seed in each line", paths[0])
    else:
        contact_sheet(panels, f"{row.name}: the same prompt and seed in each group, time from left to right", paths[0])
        animation(panels, paths[1])
    board.ledger.pictures[row.name] = key
    board.ledger.write()
