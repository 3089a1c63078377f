"""Results on disk: every measure of every clip, one JSON file, written after each clip."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy

from .row import Row

VERSION = 1


@dataclass
class Cell:
    """One clip's results. key: of the clip; numbers: of the code that measured it; shared: of the pack's code when it was drawn (see `keys`)."""

    caption: str
    seed: int
    steps: int
    key: str
    numbers: str
    shared: str
    device: str
    seconds: float
    memory_mib: float
    measures: dict[str, float] = field(default_factory=dict)


@dataclass
class Ledger:
    """Cells by row, arm and number of the prompt; and what each row's pictures show."""

    path: Path
    rows: dict[str, dict[str, dict[int, Cell]]] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """What is there; empty if there is none. ValueError for a file of another kind."""
        if not path.is_file():
            return cls(path)
        try:
            data = json.loads(path.read_text())
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']}")
            rows = {
                row: {arm: {int(i): Cell(**{k: _number(v) for k, v in cell.items()}) for i, cell in cells.items()} for arm, cells in arms.items()}
                for row, arms in data["rows"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} does not hold results of this scoreboard ({error}); move it away, or give another folder with --out.") from None
        return cls(path, rows, data.get("pictures", {}))

    def write(self) -> None:
        """Whole or not at all."""
        rows = {r: {a: {str(i): _plain(asdict(cell)) for i, cell in sorted(cells.items())} for a, cells in arms.items()} for r, arms in self.rows.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps({"version": VERSION, "rows": rows, "pictures": self.pictures}, indent=1, allow_nan=False) + "\n")
        os.replace(partial, self.path)

    def cell(self, row: Row, arm: str, number: int) -> Cell | None:
        """One clip's results, if there are any."""
        return self.rows.get(row.name, {}).get(arm, {}).get(number)

    def put(self, row: Row, arm: str, number: int, cell: Cell) -> None:
        """Keep and write."""
        self.rows.setdefault(row.name, {}).setdefault(arm, {})[number] = cell
        self.write()

    def drop(self, row: Row, keep: set[tuple[str, int]]) -> None:
        """Forget cells of a row other than (arm, number) in `keep`."""
        old = self.rows.get(row.name, {})
        self.rows[row.name] = {arm: kept for arm, cells in old.items() if (kept := {i: cell for i, cell in cells.items() if (arm, i) in keep})}

    def complete(self, row: Row) -> list[int]:
        """Numbers of the prompts that are finished in every arm: only those are pairs."""
        arms = self.rows.get(row.name, {})
        return sorted(set.intersection(*(set(arms.get(arm.name, {})) for arm in row.arms)))

    def column(self, row: Row, arm: str, name: str) -> numpy.ndarray:
        """One measure, `seconds` or `memory_mib` of an arm over the complete prompts; nan where it was not taken."""
        cells = [self.rows[row.name][arm][i] for i in self.complete(row)]
        return numpy.array([getattr(cell, name) if name in ("seconds", "memory_mib") else cell.measures.get(name, math.nan) for cell in cells], dtype=float)


def _plain(value: Any) -> Any:
    """JSON has no nan: null stands for it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _number(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _number(item) for key, item in value.items()}
    return math.nan if value is None else value
