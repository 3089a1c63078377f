"""The page: summaries, then per row the means, the paired gains, time and memory, and pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy

from ..statistics import covers, interval, paired_gain
from .board import Board
from .checkpoints import Absent
from .keys import shared_key
from .row import Arm, Judge, Row
from .show import files

WORDS = {1: "better", -1: "worse", 0: "open"}


def page(board: Board, rows: Sequence[Row], out: Path) -> str:
    """Markdown of all rows that have complete prompts, with the pictures that are in `out`, and a line on each row whose checkpoints are absent."""
    shown = [row for row in rows if board.ledger.complete(row)]
    counts = sorted({len(board.ledger.complete(row)) for row in shown})
    claims, stocks = [row for row in shown if row.ours], [row for row in shown if not row.ours]
    sections = [line for row in shown for line in _section(board, row, out)]
    missing = _missing(board, [row for row in rows if row not in shown])
    return "\n".join([*_intro(counts), *_summary(board, claims), *_failures(board, stocks), *sections, *missing]).rstrip() + "\n"


def _intro(counts: list[int]) -> list[str]:
    rough = "; ".join(f"of {n} about {100 * covers(n):.0f} %" for n in counts if 1 < n < 30)
    return [
        "# Results",
        "",
        "Written by `make scoreboard`. For each claim: the stock model, the obvious alternatives and ours, drawn by a real headless ComfyUI from the same prompts and",
        "seeds, in the [toy worlds](toyworld.md) with their [checkpoints](../toyworld/checkpoints/README.md), whose truth is known. Every measure of every clip and picture",
        "is in [results.json](results.json). Formulas, first world: [measures.py](../toyworld/measures.py); second world: [scores.py](../toyworld/scores.py),",
        "[scene_footage.py](../toyworld/scoreboard/scene_footage.py); both: [fidelity.py](../toyworld/fidelity.py).",
        "",
        "- **Gains are paired**: the difference on the same prompt and seed, mean and 95 % bootstrap interval. *better* and *worse*: the whole interval lies on that side of zero;",
        "  *open*: it holds zero. A measure that does not apply to a pair (the texture of a thing that is not there) leaves it out; then the number of pairs is given.",
        *([f"- **Few seeds make intervals too narrow**: of normal numbers, intervals {rough} hold the true mean, not 95 %. Read *better* accordingly."] if rough else []),
        "- **Rendered truth** is the same prompt, rendered: what the measures give a faultless picture. It has no layout in common with the drawn ones.",
        "- No setting was chosen on these prompts and seeds; prompts, seeds and rules are fixed in [toyworld/scoreboard](../toyworld/scoreboard).",
        "- Seconds and memory are of the sampling alone. **CPU seconds** are processor time of the host's process: they say what was computed here, nothing about a GPU,",
        "  and no claim of speed rests on them. Memory on a CPU is all of the host's process, torch and other rows' cached models included.",
        '- More seeds: `make scoreboard SEEDS=64`; some rows: `METHODS="ultravico sparse"`. Finished clips are kept. A row of your own: [adding a row](adding-a-row.md).',
        "",
    ]


def _summary(board: Board, rows: Sequence[Row]) -> list[str]:
    """Claims of methods: gains of ours."""
    if not rows:
        return []
    lines = ["| row | seeds | measure | ours over stock | ours over the best alternative |", "|---|---|---|---|---|"]
    for row in rows:
        for judge in row.judges:
            lines.append(f"| {_names(board, row, judge)} | {_arrow(judge)} | {_gain(board, row, row.stock, judge)} | {_against_best(board, row, judge)} |")
    return [*lines, ""]


def _failures(board: Board, rows: Sequence[Row]) -> list[str]:
    """Stock models: how far they are from the truth, and from what a user could do about it."""
    if not rows:
        return []
    lines = ["What stock models fail at, and what the host itself offers against it:", ""]
    lines += ["| row | seeds | measure | stock | stock minus rendered truth | stock minus the best alternative |", "|---|---|---|---|---|---|"]
    for row in rows:
        for judge in row.judges:
            truth = _gain(board, row, row.truth, judge) if row.truth else ""
            lines.append(f"| {_names(board, row, judge)} | {_arrow(judge)} | {_with_interval(board, row, judge)} | {truth} | {_against_best(board, row, judge)} |")
    return [*lines, ""]


def _names(board: Board, row: Row, judge: Judge) -> str:
    """Link and number of seeds, at a row's first measure only."""
    return f"[{row.name}](#{row.name}) | {len(board.ledger.complete(row))}" if judge is row.judges[0] else " | "


def _against_best(board: Board, row: Row, judge: Judge) -> str:
    best = _best(board, row, judge)
    return f"{_gain(board, row, best, judge)} ({best.name})" if best else ""


def _section(board: Board, row: Row, out: Path) -> list[str]:
    others = [arm for arm in row.arms if arm is not row.subject]
    lines = [f"## {row.name}", "", f"**Claim.** {row.claim}", "", _how(board, row), "", *_means(board, row)]
    if others:
        lines += ["", f"{row.subject.name} minus:", ""]
        lines += ["| | " + " | ".join(_arrow(judge) for judge in row.judges) + " |", "|---" * (1 + len(row.judges)) + "|"]
        lines += [f"| {arm.name} | " + " | ".join(_gain(board, row, arm, judge) for judge in row.judges) + " |" for arm in others]
    if notes := _age(board, row):
        lines += ["", notes]
    for path, what in zip(files(row), (f"Contact sheet of {row.name}", "The same clips, moving"), strict=False):
        lines += ["", f"![{what}]({path.as_posix()})"] if (out / path).is_file() else []
    return [*lines, ""]


def _how(board: Board, row: Row) -> str:
    """Seeds, sizes, steps, device and the row's notes, in a sentence."""
    numbers = board.ledger.complete(row)
    cells = [board.ledger.rows[row.name][arm.name][i] for arm in row.arms for i in numbers]
    here = row.setting
    size = f"pictures of {row.side or here.bundle.size} pixels" if here.picture else f"{4 * row.latent_frames - 3} frames ({row.latent_frames} latent)"
    where = "" if row.world == "wan" else f"{row.world}, "
    steps, devices = "/".join(sorted({str(cell.steps) for cell in cells})), " and ".join(sorted({cell.device for cell in cells if cell.device}))
    return f"{len(numbers)} prompts and seeds, {where}{size}, {steps} steps, on: {devices}. {row.notes}".rstrip()


def _means(board: Board, row: Row) -> list[str]:
    cells = [cell for arm in row.arms for cell in board.ledger.rows[row.name][arm.name].values()]
    seconds = "CPU seconds" if {cell.device for cell in cells if cell.device} == {"CPU"} else "seconds"
    what = "pictures" if row.setting.picture else "clips"
    lines = [f"| mean over {what} | " + " | ".join(_arrow(judge) for judge in row.judges) + f" | {seconds} | peak memory, MiB |", "|---" * (3 + len(row.judges)) + "|"]
    for arm in row.arms:
        values = [_mean(board, row, arm, judge.reads, 3) for judge in row.judges]
        cost = [_mean(board, row, arm, "seconds", 2), _mean(board, row, arm, "memory_mib", 0)]
        name = f"**{arm.name}**" if arm is row.subject else arm.name
        lines.append(f"| {name} | " + " | ".join([*values, *cost]) + " |")
    return lines


def _values(board: Board, row: Row, arm: Arm, name: str) -> numpy.ndarray:
    """One measure of an arm over the complete prompts, without those it does not apply to."""
    values = board.ledger.column(row, arm.name, name)
    return values[~numpy.isnan(values)]


def _mean(board: Board, row: Row, arm: Arm, name: str, digits: int) -> str:
    values = _values(board, row, arm, name)
    return f"{values.mean():.{digits}f}" if len(values) else ""


def _with_interval(board: Board, row: Row, judge: Judge) -> str:
    values = _values(board, row, row.subject, judge.reads)
    return "{:.3f} [{:.3f}, {:.3f}]".format(*interval(values)) if len(values) > 1 else _mean(board, row, row.subject, judge.reads, 3)


def _arrow(judge: Judge) -> str:
    return f"{judge.title} {'↑' if judge.better == 'higher' else '↓'}"


def _gain(board: Board, row: Row, base: Arm, judge: Judge) -> str:
    """What the row's subject gains over another arm."""
    found = paired_gain(*(board.ledger.column(row, arm.name, judge.reads) for arm in (row.subject, base)))
    if found is None:
        return ""
    # one clip has no interval: an interrupt can leave a single pair
    text = f"{found.mean:+.3f}" if found.clips < 2 else f"{found} {WORDS[found.sign * judge.direction]}"
    return text if found.clips == len(board.ledger.complete(row)) else f"{text}, {found.clips} pairs"


def _best(board: Board, row: Row, judge: Judge) -> Arm | None:
    """The alternative with the best mean, chosen on the same clips: that favours it."""

    def rank(arm: Arm) -> float:
        values = _values(board, row, arm, judge.reads)
        return judge.direction * float(values.mean()) if len(values) else -math.inf

    return max(row.alternatives, key=rank, default=None)


def _age(board: Board, row: Row) -> str:
    """What a reader must know about clips that today's code did not draw."""
    if trouble := board.trouble(row):
        return f"*{_without(trouble)}, so whether these are today's results is not known.*"
    cells = [cell for arm in row.arms for cell in board.ledger.rows[row.name][arm.name].values()]
    stale, older = board.stale(row), sum(bool(cell.shared) and cell.shared != shared_key() for cell in cells)
    if stale:
        return f"*{stale} of {len(cells)} clips are from before the last change of this method, its measures or its checkpoints: `make scoreboard METHODS={row.method}` draws them anew.*"
    if older:
        return f"*{older} of {len(cells)} clips were drawn before the last change of the pack's shared code; `ARGS=--fresh` draws them anew.*"
    return ""


def _missing(board: Board, rows: Sequence[Row]) -> list[str]:
    """One sentence for each row that cannot be drawn here."""
    found = [(row, trouble) for row in rows if (trouble := board.trouble(row))]
    return ["## Not drawn", "", *(f"- {row.name}: {_without(trouble)}." for row, trouble in found), ""] if found else []


def _without(trouble: ValueError) -> str:
    """Without this machine's paths: the page is committed."""
    if isinstance(trouble, Absent):
        return f"{', '.join(trouble.names)} {'is' if len(trouble.names) == 1 else 'are'} not among the checkpoints"
    return "a checkpoint of this world is broken or foreign"
