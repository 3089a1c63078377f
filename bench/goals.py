"""What the kernels are wanted to reach on a Hopper-class GPU, and what a result file says they do.

Only measured numbers count: a goal whose rows are not in the file is "not measured", never met.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SPARSE = {0.25: 2.9, 0.1: 7.0, 0.05: 12.5}
"""Wanted density -> least speed-up over the best dense attention, list building included."""
DENSE, FLEX, DECAY, BACKWARD, OVERHEAD = 0.75, 1.25, 1.05, 0.45, 0.05
LONG = 32_000
"""Tokens from which on lists and permutation are held to their share."""
LEAST_GAP = 1e-9


@dataclass(frozen=True)
class Verdict:
    """One goal in one case. found: None where it was not measured. at_most: smaller is better."""

    goal: str
    case: str
    wanted: float
    found: float | None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it is reached; None where nobody knows."""
        if self.found is None:
            return None
        return self.found <= self.wanted if self.at_most else self.found >= self.wanted


def verdicts(document: dict[str, Any]) -> list[Verdict]:
    """Every goal in every case the file has, and one "not measured" for a goal without any."""
    makers = (_dense, _sparse, _flex, _decay, _decay_flex, _backward, _overhead)
    return [v for make in makers for v in _or_unknown(make, document)]


def _or_unknown(make: Any, document: dict[str, Any]) -> list[Verdict]:
    found = list(make(document))
    return found or [Verdict(make.__doc__.strip(), "", _WANTED[make.__name__], None, make.__name__ in ("_decay", "_overhead"))]


def _rows(document: dict[str, Any], impl: str, pattern: str | None = None) -> Iterator[tuple[dict[str, Any], float]]:
    """(row, wanted density) of an implementation where it was timed."""
    for row, detail in zip(document["rows"], document["details"], strict=True):
        if row["impl"] == impl and row["ms"] is not None and pattern in (None, row["pattern"]):
            yield row, detail.get("wanted_density", row["density"])


def _case(row: dict[str, Any]) -> str:
    return f"{row['shape']}, {row['pattern']} {row['density']:.3f}"


def _dense(document: dict[str, Any]) -> Iterator[Verdict]:
    """dense attention through our kernel, over the best there is"""
    for row, _ in _rows(document, "loom", "dense"):
        if row["speedup"] is not None:
            yield Verdict(_name(_dense), row["shape"], DENSE, row["speedup"])


def _sparse(document: dict[str, Any]) -> Iterator[Verdict]:
    """sparse attention over the best dense, lists included"""
    for row, wanted in _rows(document, "loom", "random"):
        if wanted in SPARSE and row["speedup"] is not None:
            yield Verdict(_name(_sparse), _case(row), SPARSE[wanted], row["speedup"])


def _flex(document: dict[str, Any]) -> Iterator[Verdict]:
    """sparse attention over FlexAttention on the same mask"""
    for row, wanted in _rows(document, "loom"):
        if row["pattern"] == "dense":
            continue
        for other, w in _rows(document, "flex", row["pattern"]):
            if other["shape"] == row["shape"] and w == wanted:
                yield Verdict(_name(_flex), _case(row), FLEX, other["ms"] / row["ms"])


def _decay(document: dict[str, Any]) -> Iterator[Verdict]:
    """time with UltraViCo's decay over the same kernel without"""
    for with_, without in _pairs(document, "loom", "loom, no decay"):
        yield Verdict(_name(_decay), with_["shape"], DECAY, with_["ms"] / without["ms"], at_most=True)


def _decay_flex(document: dict[str, Any]) -> Iterator[Verdict]:
    """UltraViCo's decay over FlexAttention's score modification"""
    for ours, flex in _pairs(document, "loom", "flex, score_mod"):
        yield Verdict(_name(_decay_flex), ours["shape"], 1.0 + LEAST_GAP, flex["ms"] / ours["ms"])


def _pairs(document: dict[str, Any], a: str, b: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    rows = {(r["shape"], r["way"]): r for r in document.get("tables", {}).get("decay", ()) if r.get("ms") is not None}
    for (shape, way), row in rows.items():
        if way == a and (shape, b) in rows:
            yield row, rows[shape, b]


def _backward(document: dict[str, Any]) -> Iterator[Verdict]:
    """backward at 10 %: share of the dense backward's efficiency kept"""
    for row, wanted in _rows(document, "loom: backward", "random"):
        if wanted == 0.1 and row["efficiency"] is not None:
            yield Verdict(_name(_backward), _case(row), BACKWARD, row["efficiency"])


def _overhead(document: dict[str, Any]) -> Iterator[Verdict]:
    """lists and permutation, share of the sparse call"""
    for row in document.get("tables", {}).get("overhead", ()):
        if row["tokens"] >= LONG and row.get("share") is not None:
            yield Verdict(_name(_overhead), row["name"], OVERHEAD, row["share"], at_most=True)


def _name(maker: Any) -> str:
    return maker.__doc__.strip()


_WANTED = {
    "_dense": DENSE, "_sparse": SPARSE[0.1], "_flex": FLEX, "_decay": DECAY, "_decay_flex": 1.0, "_backward": BACKWARD, "_overhead": OVERHEAD,
}  # fmt: skip
