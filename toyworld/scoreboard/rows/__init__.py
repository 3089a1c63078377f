"""Rows of the scoreboard: each module of this folder has a tuple ``ROWS``. A new file is all a new row needs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules

from ..row import Row


def all_rows() -> list[Row]:
    """Every registered row, by file name. ValueError if two share a name."""
    rows = [row for module in sorted(m.name for m in iter_modules(__path__)) for row in import_module(f".{module}", __name__).ROWS]
    names = [row.name for row in rows]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"Two rows of the scoreboard are called {', '.join(sorted(twice))}.")
    return rows


def select(names: Sequence[str]) -> list[Row]:
    """Rows whose name or method is among `names`; none asked for means all. ValueError names what there is."""
    rows = all_rows()
    known = sorted({row.method for row in rows})
    if unknown := [name for name in names if not any(name in (row.name, row.method) for row in rows)]:
        raise ValueError(f"The scoreboard has no method or row called '{unknown[0]}'; methods: {', '.join(known)}; rows: {', '.join(row.name for row in rows)}.")
    return [row for row in rows if not names or row.name in names or row.method in names]
