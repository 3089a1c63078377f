"""Sparse patterns: each a file that says which blocks of an attention are worth computing.

``PATTERNS`` maps each name to its class; the classes are imported when first asked for, so that a pattern's file can also be
run on its own (``python -m attention_loom.kernels.patterns.radial`` draws its mask).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .base import GeometryPattern, Moment, Pattern, Situation, Tokens

PATTERNS: dict[str, type[Pattern]]
"""Name -> class of every pattern, in the order of the node's list."""

_CLASSES = {
    "radial": "Radial",
    "draft": "Draft",
    "adaspa": "AdaSpa",
    "sparsed": "SparseD",
    "rettention": "Rettention",
    "sla_topk": "SlaTopk",
    "clear": "Clear",
    "sliding_tile": "SlidingTile",
    "dense": "Dense",
    "random_blocks": "RandomBlocks",
}
"""File -> class."""

__all__ = ["PATTERNS", "GeometryPattern", "Moment", "Pattern", "Situation", "Tokens"]


def __getattr__(name: str) -> Any:
    if name != "PATTERNS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = {}
    for file, cls in _CLASSES.items():
        pattern = getattr(import_module(f".{file}", __name__), cls)
        found[pattern.name] = pattern
    globals()["PATTERNS"] = found
    return found
