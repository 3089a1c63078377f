"""The page: a summary, then per row the means, the paired gains of ours, time and memory, and pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy

from ..statistics import covers, paired_gain
from .board import Board
from .keys import shared_key
from .row import Arm, Judge, Row
from .show import files

WORDS = {1: "better", -1: "worse", 0: "open"}


def page(board: Board, rows: Sequence[Row], out: Path) -> str:
    """Markdown of all rows that have complete prompts, with the pictures that are in `out`."""
    shown = [row for row in rows if board.ledger.complete(row)]
    counts = sorted({len(board.ledger.complete(row)) for row in shown})
    return "\n".join([*_intro(counts), *_summary(board, shown), *(line for row in shown for line in _section(board, row, out))]).rstrip() + "\n"


def _intro(counts: list[int]) -> list[str]:
    rough = "; ".join(f"of {n} about {100 * covers(n):.0f} %" for n in counts if 1 < n < 30)
    return [
        "# Results",
        "",
        "Written by `make scoreboard`. For each claim: the stock model, the obvious alternatives and ours, drawn by a real headless ComfyUI from the same prompts and",
        "seeds, in the [toy world](../toyworld/checkpoints/README.md), whose truth is known. Every measure of every clip is in [results.json](results.json); formulas:",
        "[measures.py](../toyworld/measures.py), [fidelity.py](../toyworld/fidelity.py).",
        "",
        "- **Gains are paired**: the difference on the same prompt and seed, mean and 95 % bootstrap interval. *better* and *worse*: the whole interval lies on that side of zero;",
        "  *open*: it holds zero.",
        *([f"- **Few seeds make intervals too narrow**: of normal numbers, intervals {rough} hold the true mean, not 95 %. Read *better* accordingly."] if rough else []),
        "- No setting was chosen on these prompts and seeds; prompts, seeds and rules are fixed in [toyworld/scoreboard](../toyworld/scoreboard).",
        "- Seconds and memory are of the sampling alone. **CPU seconds** are processor time of the host's process: they say what was computed here, nothing about a GPU,",
        "  and no claim of speed rests on them. Memory on a CPU is all of the host's process, torch included.",
        '- More seeds: `make scoreboard SEEDS=64`; some rows: `METHODS="ultravico sparse"`. Finished clips are kept. A row of your own: [adding a row](adding-a-row.md).',
        "",
    ]


def _summary(board: Board, rows: Sequence[Row]) -> list[str]:
    lines = ["| row | seeds | measure | ours over stock | ours over the best alternative |", "|---|---|---|---|---|"]
    for row in rows:
        for judge in row.judges:
            best = _best(board, row, judge)
            against = f"{_gain(board, row, best, judge)} ({best.name})" if best else ""
            name, seeds = (f"[{row.name}](#{row.name})", str(len(board.ledger.complete(row)))) if judge is row.judges[0] else ("", "")
            lines.append(f"| {name} | {seeds} | {_arrow(judge)} | {_gain(board, row, row.stock, judge)} | {against} |")
    return [*lines, ""]


def _section(board: Board, row: Row, out: Path) -> list[str]:
    ledger, numbers = board.ledger, board.ledger.complete(row)
    cells = [ledger.rows[row.name][arm.name][i] for arm in row.arms for i in numbers]
    steps, devices = "/".join(sorted({str(cell.steps) for cell in cells})), " and ".join(sorted({cell.device for cell in cells}))
    lines = [f"## {row.name}", "", f"**Claim.** {row.claim}", ""]
    lines += [f"{len(numbers)} prompts and seeds, {4 * row.latent_frames - 3} frames ({row.latent_frames} latent), {steps} steps, on: {devices}. {row.notes}".rstrip(), ""]
    lines += _means(board, row, devices)
    lines += ["", f"{row.ours.name} minus:", ""]
    lines += ["| | " + " | ".join(_arrow(judge) for judge in row.judges) + " |", "|---" * (1 + len(row.judges)) + "|"]
    lines += [f"| {arm.name} | " + " | ".join(_gain(board, row, arm, judge) for judge in row.judges) + " |" for arm in row.arms[:-1]]
    if notes := _age(board, row):
        lines += ["", notes]
    for path, what in zip(files(row), (f"Contact sheet of {row.name}", "The same clips, moving"), strict=True):
        lines += ["", f"![{what}]({path.as_posix()})"] if (out / path).is_file() else []
    return [*lines, ""]


def _means(board: Board, row: Row, devices: str) -> list[str]:
    seconds = "CPU seconds" if devices == "CPU" else "seconds"
    lines = ["| mean over clips | " + " | ".join(_arrow(judge) for judge in row.judges) + f" | {seconds} | peak memory, MiB |", "|---" * (3 + len(row.judges)) + "|"]
    for arm in row.arms:
        values = [_mean(board, row, arm, judge.reads, 3) for judge in row.judges]
        cost = [_mean(board, row, arm, "seconds", 2), _mean(board, row, arm, "memory_mib", 0)]
        name = f"**{arm.name}**" if arm is row.ours else arm.name
        lines.append(f"| {name} | " + " | ".join([*values, *cost]) + " |")
    return lines


def _mean(board: Board, row: Row, arm: Arm, name: str, digits: int) -> str:
    values = board.ledger.column(row, arm.name, name)
    values = values[~numpy.isnan(values)]
    return f"{values.mean():.{digits}f}" if len(values) else ""


def _arrow(judge: Judge) -> str:
    return f"{judge.title} {'↑' if judge.better == 'higher' else '↓'}"


def _gain(board: Board, row: Row, base: Arm, judge: Judge) -> str:
    found = paired_gain(*(board.ledger.column(row, arm.name, judge.reads) for arm in (row.ours, base)))
    if found is None:
        return ""
    # one clip has no interval: an interrupt can leave a single pair
    return f"{found.mean:+.3f}" if found.clips < 2 else f"{found} {WORDS[found.sign * judge.direction]}"


def _best(board: Board, row: Row, judge: Judge) -> Arm | None:
    """The alternative with the best mean, chosen on the same clips: that favours it."""

    def rank(arm: Arm) -> float:
        mean = judge.direction * float(board.ledger.column(row, arm.name, judge.reads).mean())
        return -math.inf if math.isnan(mean) else mean

    return max(row.alternatives, key=rank, default=None)


def _age(board: Board, row: Row) -> str:
    """What a reader must know about clips that today's code did not draw."""
    cells = [cell for arm in row.arms for cell in board.ledger.rows[row.name][arm.name].values()]
    stale, older = board.stale(row), sum(cell.shared != shared_key() for cell in cells)
    if stale:
        return f"*{stale} of {len(cells)} clips are from before the last change of this method, its measures or its checkpoints: `make scoreboard METHODS={row.method}` draws them anew.*"
    if older:
        return f"*{older} of {len(cells)} clips were drawn before the last change of the pack's shared code; `ARGS=--fresh` draws them anew.*"
    return ""
