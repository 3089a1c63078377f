"""Draw what is missing, prompt by prompt through all arms, so that an interrupt at any time leaves whole pairs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .checkpoints import Absent, checked
from .footage import Footage
from .graphs import Shot
from .keys import clip_key, numbers_key
from .ledger import Cell, Ledger
from .row import Arm, Row
from .studio import Clip, Studio


@dataclass
class Board:
    """What is drawn with what. folder: of the checkpoints. steps: of the sampler, None for each world's own. say: hears one line per clip."""

    ledger: Ledger
    studio: Studio
    folder: Path
    steps: int | None = None
    say: Callable[[str], None] = lambda line: print(line, flush=True)

    def play(self, rows: Sequence[Row], seeds: int) -> None:
        """All cells of these rows that are not finished. A row whose checkpoints are absent is left out and says so; Absent if that is every row.

        HostError or ValueError for what cannot be drawn.
        """
        troubles = [(row, self.trouble(row)) for row in rows]
        for _, trouble in troubles:
            if trouble and (not isinstance(trouble, Absent) or all(error for _, error in troubles)):
                raise trouble
        for row, trouble in troubles:
            if trouble:
                self.say(f"{row.name}: left out: {trouble}")
            else:
                self._draw(row, seeds)

    def _draw(self, row: Row, seeds: int) -> None:
        self._forget(row)
        todo = [(i, shot, arm) for i, shot in enumerate(row.shots(seeds, self.steps)) for arm in row.arms if self.ledger.cell(row, arm.name, i) is None]
        if not todo:
            self.say(f"{row.name}: {len(self.ledger.complete(row))} seeds are finished")
        for n, (i, shot, arm) in enumerate(todo, 1):
            begin = time.perf_counter()
            cell = self._cell(row, arm, shot)
            self.ledger.put(row, arm.name, i, cell)
            first = row.judges[0]
            value = cell.measures.get(first.reads)
            shown = "" if value is None else f", {first.title} {value:.3f}"
            self.say(f"{row.name} {n}/{len(todo)}: {arm.name}, {shot.caption}, seed {shot.seed}{shown} ({time.perf_counter() - begin:.1f} s)")

    def start_anew(self, rows: Sequence[Row]) -> None:
        """Forget what these rows have, and do not trust clips finished before now. Rows that cannot be drawn here keep theirs."""
        self.studio.distrust()
        for row in rows:
            if not self.trouble(row):
                self.ledger.drop(row, set())

    def trouble(self, row: Row) -> ValueError | None:
        """What keeps the row from being drawn here: its checkpoints are absent (Absent), broken or foreign."""
        try:
            checked(self.folder, row.models)
        except ValueError as error:
            return error
        return None

    def key(self, row: Row, arm: Arm, shot: Shot) -> str:
        """Of the clip or picture."""
        if arm.graph is None:
            return clip_key({"rendered": asdict(shot)}, (), arm.code)
        return clip_key(arm.graph(shot), tuple(checked(self.folder, row.models)), arm.code)

    def clip(self, row: Row, arm: Arm, shot: Shot) -> Clip:
        """Rendered, or from the folder of what is finished, or drawn."""
        if arm.graph is None:
            return _rendered(row, shot)
        return self.studio.clip(self.key(row, arm, shot), arm.graph(shot), checked(self.folder, row.models))

    def stale(self, row: Row) -> int:
        """How many of the row's cells would be drawn or measured anew now."""
        return len(self._cells(row)) - len(self._fresh(row))

    def _cells(self, row: Row) -> list[tuple[Arm, int]]:
        arms = {arm.name: arm for arm in row.arms}
        return [(arms[name], i) for name, cells in self.ledger.rows.get(row.name, {}).items() if name in arms for i in cells]

    def _fresh(self, row: Row) -> set[tuple[str, int]]:
        """(arm, number) of the cells whose clip and numbers would come out of today's code."""
        cells, numbers = self._cells(row), self._numbers(row)
        shots = row.shots(1 + max((i for _, i in cells), default=0), self.steps)
        fresh = set()
        for arm, i in cells:
            cell = self.ledger.rows[row.name][arm.name][i]
            if cell.numbers == numbers and cell.key == self.key(row, arm, shots[i]):
                fresh.add((arm.name, i))
        return fresh

    def _forget(self, row: Row) -> None:
        """Drop cells that are no longer true. A clip measured against stock goes with its stock clip."""
        fresh = self._fresh(row)
        self.ledger.drop(row, {(arm, i) for arm, i in fresh if (row.stock.name, i) in fresh})

    def _numbers(self, row: Row) -> str:
        return numbers_key(row.reader, row.setting.readers)

    def _cell(self, row: Row, arm: Arm, shot: Shot) -> Cell:
        clip = self.clip(row, arm, shot)
        stock = None if arm in (row.stock, row.truth) else self.clip(row, row.stock, shot).tensor()
        measures = row.reader(Footage(shot.caption, clip.tensor(), stock, clip.report))
        return Cell(
            caption=shot.caption,
            seed=shot.seed,
            steps=shot.steps,
            key=self.key(row, arm, shot),
            numbers=self._numbers(row),
            shared=clip.shared,
            device=clip.device,
            seconds=clip.seconds,
            memory_mib=clip.memory,
            measures={name: round(float(value), 5) for name, value in measures.items()},
        )


def _rendered(row: Row, shot: Shot) -> Clip:
    """The rendered truth of a shot: no host, no time, no memory."""
    truth = row.setting.truth
    if truth is None:
        raise ValueError(f"The world {row.world} has no rendered truth.")
    frames = (truth(shot.caption, shot.seed, shot.latent_frames) * 255).round().byte().numpy()
    return Clip(frames, math.nan, math.nan, "", "", "")
