"""Which clips the pictures of a row show, and drawing them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..pictures import Panel, animation, contact_sheet
from .board import Board
from .row import Row

FOLDER = Path("images") / "results"
RANKS = {"largest gain": 0.0, "middle": 0.5, "smallest gain": 1.0}
"""Prompts by what ours gains over stock in the row's first measure, from the best to the worst."""


def files(row: Row) -> tuple[Path, Path]:
    """Contact sheet and animation of a row, relative to the page."""
    return FOLDER / f"{row.name}.png", FOLDER / f"{row.name}.webp"


def chosen(board: Board, row: Row) -> list[tuple[int, str]]:
    """Number and heading of up to three complete prompts. Where stock has no value (it is what others are compared with), ours alone ranks."""
    judge, ledger = row.judges[0], board.ledger
    ours, stock = (ledger.column(row, arm.name, judge.reads) for arm in (row.ours, row.stock))
    paired = stock == stock  # not nan
    gains = [o - s if p else o for o, s, p in zip(ours.tolist(), stock.tolist(), paired.tolist(), strict=True)]
    numbers = ledger.complete(row)
    order = sorted(range(len(gains)), key=lambda n: -judge.direction * gains[n])
    found = {}
    for name, place in RANKS.items():
        n = order[round(place * (len(order) - 1))]
        cell = ledger.rows[row.name][row.ours.name][numbers[n]]
        what = f"{judge.title} {gains[n]:+.2f} over {row.stock.name}" if paired[n] else f"{judge.title} {gains[n]:.1f}"
        label = name if paired[n] else name.replace("gain", "value")
        found.setdefault(numbers[n], f"{cell.caption}, seed {cell.seed}: {label} of {len(order)}, {what}")
    return list(found.items())


def draw(board: Board, row: Row, out: Path) -> None:
    """Both pictures of a row, unless those there show the same clips under the same headings."""
    picks = chosen(board, row)
    cells = [board.ledger.rows[row.name][arm.name][number] for number, _ in picks for arm in row.arms]
    key = hashlib.sha256("\0".join([row.claim, *(heading for _, heading in picks), *(arm.name for arm in row.arms), *(cell.key for cell in cells)]).encode()).hexdigest()[:16]
    sheet, moving = (out / path for path in files(row))
    if board.ledger.pictures.get(row.name) == key and sheet.is_file() and moving.is_file():
        return
    sheet.parent.mkdir(parents=True, exist_ok=True)
    shots = row.shots(1 + max(number for number, _ in picks), board.steps)
    panels = [Panel(heading, {arm.name: board.clip(row, arm, shots[number]).frames for arm in row.arms}) for number, heading in picks]
    contact_sheet(panels, f"{row.name}: the same prompt and seed in each group, time from left to right", sheet)
    animation(panels, moving)
    board.ledger.pictures[row.name] = key
    board.ledger.write()
