"""The result file: written after every row, so a run that is stopped keeps what it has and the next one goes on from there."""

from __future__ import annotations

import datetime
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..kernels.triton.tuning import machine
from .provenance import kernels_sha256, versions

IDENTITY = ("device", "driver", "versions", "kernels_sha256")
"""What has to be the same for numbers of two sittings to stand in one file."""
COLUMNS = ("impl", "shape", "pattern", "density", "ms", "dense_ms", "speedup", "tflops", "efficiency", "imbalance", "rel_l2", "peak_mb")


@dataclass(frozen=True)
class Row:
    """One implementation on one case. density: share of pairs computed. ms: median. dense_ms: the best dense attention of the
    run for this shape and direction. tflops: on the computed area. efficiency: speedup x density. imbalance: of the plan, for
    our kernel. rel_l2: to exact dense attention, on sampled rows. peak_mb: memory of the call beyond its inputs. None: not
    measured."""

    impl: str
    shape: str
    pattern: str
    density: float
    ms: float | None = None
    dense_ms: float | None = None
    speedup: float | None = None
    tflops: float | None = None
    efficiency: float | None = None
    imbalance: float | None = None
    rel_l2: float | None = None
    peak_mb: float | None = None


@dataclass
class Results:
    """A run. rows as in :class:`Row`; details, one per row: direction, 90th percentile, error against the same mask, wanted
    density, label; absent: why an implementation has no row, by name and case. tables: rows of other kinds, by name (checks,
    models, goals ...); stages: how far each part of a longer session came, by name."""

    path: Path | None
    device: str
    driver: str
    versions: dict[str, str]
    date: str
    kernels_sha256: str
    rows: list[Row] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def begin(cls, folder: Path | None) -> Results:
        """An empty run of this machine, now; its file is ``<device>-<date>.json`` in ``folder``, or none."""
        where, now = machine(), datetime.datetime.now(datetime.UTC)
        run = cls(None, where["gpu"], where["driver"], versions(), f"{now:%Y-%m-%dT%H:%M:%SZ}", kernels_sha256())
        run.path = None if folder is None else folder / run.file_name
        return run

    @classmethod
    def resume(cls, path: Path) -> Results:
        """The run in ``path`` where it is of this machine, these versions and these kernels; otherwise a new one in its place.

        What was there of another machine or other kernels is set aside as ``<name>.old.json``.
        """
        new = cls.begin(None)
        new.path = path
        try:
            found = json.loads(path.read_text(encoding="utf8"))
            same = all(found[name] == getattr(new, name) for name in IDENTITY)
            kept = {name: found[name] for name in ("details", "absent", "tables", "stages")}
            rows = [Row(**row) for row in found["rows"]]
        except FileNotFoundError:
            return new
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            os.replace(path, path.with_suffix(".old.json"))
            return new
        return cls(path, new.device, new.driver, new.versions, found["date"], new.kernels_sha256, rows, **kept)

    @property
    def file_name(self) -> str:
        """``<device>-<date>.json``, as in ``bench/results``."""
        name = re.sub(r"[^a-z0-9]+", "-", self.device.lower()).strip("-")
        return f"{name}-{self.date[:10]}.json"

    def put(self, table: str, **row: Any) -> None:
        """Keep a row of another kind, in place of one with the same ``name``, and write the file."""
        rows = self.tables.setdefault(table, [])
        rows[:] = [r for r in rows if r.get("name") != row.get("name")]
        rows.append({k: _short(v) for k, v in row.items()})
        self.write()

    def names(self, table: str) -> set[str]:
        """Names of the rows of ``table``."""
        return {str(r["name"]) for r in self.tables.get(table, ())}

    def add(self, row: Row, **details: Any) -> None:
        """Keep a row and write the file."""
        self.rows.append(_rounded(row))
        self.details.append({k: _short(v) for k, v in details.items()})
        self.write()

    def without(self, impl: str, case: str, reason: str) -> None:
        """Say why there is no row."""
        self.absent[f"{impl}: {case}" if case else impl] = reason
        self.write()

    def document(self) -> dict[str, Any]:
        """As in the file."""
        return {
            "device": self.device,
            "driver": self.driver,
            "versions": self.versions,
            "date": self.date,
            "kernels_sha256": self.kernels_sha256,
            "rows": [asdict(row) for row in self.rows],
            "details": self.details,
            "absent": self.absent,
            "tables": self.tables,
            "stages": self.stages,
        }

    def write(self) -> None:
        """Replace the file as a whole: a reader, or a kill, never meets half of one."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.document(), indent=1) + "\n", encoding="utf8")
        os.replace(part, self.path)


def _rounded(row: Row) -> Row:
    return Row(**{name: _short(value) for name, value in asdict(row).items()})


def _short(value: Any) -> Any:
    """Five digits: more would be noise."""
    return float(f"{value:.5g}") if isinstance(value, float) else value
