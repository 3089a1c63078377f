"""Command line of the scoreboard."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ...tools.headless import ROOT, Headless, HostError
from ..host import CHECKPOINTS
from . import show
from .board import Board
from .ledger import Ledger
from .rows import all_rows, select
from .studio import CLIPS, Studio
from .tables import page

SEEDS = 16


def main(arguments: Sequence[str] | None = None, host: Headless | None = None, clips: Path = CLIPS) -> int:
    """Returns the exit status: 0, 1 if the host failed, 2 for bad input, 130 if interrupted (what is finished is written then too)."""
    args = _parser().parse_args(arguments)
    try:
        rows = select(args.only)
        seeds = _count("SEEDS", args.seeds, 2)
        steps = None if args.steps is None else _count("steps", args.steps, 1)
        if args.list:
            print("\n".join(f"{row.name:20s}{row.method:12s}{row.world:20s}{row.claim}" for row in rows))
            return 0
        ledger = Ledger.read(args.out / "results.json")
        with Studio(clips, host) as studio:
            board = Board(ledger, studio, args.checkpoints, steps)
            if args.fresh:
                board.start_anew(rows)
            return _played(board, [] if args.only_page else rows, seeds, args.out)
    except (ValueError, HostError) as error:
        print(f"scoreboard: {error}", file=sys.stderr)
        return 1 if isinstance(error, HostError) else 2


def _played(board: Board, rows: Sequence, seeds: int, out: Path) -> int:
    """Draw, then write the page of everything that is finished, whatever happened."""
    interrupted = False
    try:
        board.play(rows, seeds)
        for row in rows:
            if not board.trouble(row):
                show.draw(board, row, out)
    except KeyboardInterrupt:
        interrupted = True
    if any(board.ledger.complete(row) for row in all_rows()):
        (out / "results.md").write_text(page(board, all_rows(), out))
        board.say(f"written: {out / 'results.md'}")
    if interrupted:
        board.say("interrupted; the same command goes on from here")
    return 130 if interrupted else 0


def _count(name: str, text: str, least: int) -> int:
    if not text.strip().isdecimal() or int(text) < least:
        raise ValueError(f"{name} '{text}' was given; it is a whole number from {least} on.")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scoreboard", description="Each method's claim against stock and the obvious alternatives, drawn by a headless ComfyUI on paired prompts and seeds."
    )
    parser.add_argument("--seeds", default=str(SEEDS), help=f"paired prompts and seeds per row (default {SEEDS}); more that are finished stay")
    parser.add_argument("--only", nargs="*", default=[], metavar="METHOD", help="methods or rows to draw (default all; --list names them)")
    parser.add_argument("--steps", help="sampling steps (default: those of each world)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of results.md, results.json and images/results (default docs)")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, help="folder of the toy worlds' checkpoints")
    parser.add_argument("--fresh", action="store_true", help="draw the chosen rows anew")
    parser.add_argument("--only-page", action="store_true", help="write the page of the results at hand")
    parser.add_argument("--list", action="store_true", help="name the rows, their worlds and their claims")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
