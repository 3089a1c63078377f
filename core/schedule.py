"""When and where a method acts: percent windows (by sigma) and blocks (by text); for heads see ``core/heads.py``.

Windows are given in percent of the sampling and compared as sigmas, so they survive other schedulers, CFG batching, two-
expert models and samplers that evaluate between steps. A step is never counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .call import Block
from .errors import LoomError


@dataclass(frozen=True)
class Window:
    """Part of the sampling, in percent: 0 = start (all noise), 1 = end."""

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not (0.0 <= self.start <= 1.0 and 0.0 <= self.end <= 1.0):
            raise LoomError(f"start_percent {self.start:g} and end_percent {self.end:g} were given; both lie between 0 (start) and 1 (end).")

    @property
    def nothing(self) -> bool:
        """True when no step can lie inside."""
        return self.start >= self.end

    def contains(self, sigma: float, percent_to_sigma: Callable[[float], float]) -> bool:
        """Whether a step at ``sigma`` lies inside. The start counts as inside, the end does not, but at 1 all the rest does."""
        if self.nothing:
            return False
        upper = float("inf") if self.start <= 0.0 else float(percent_to_sigma(self.start))
        lower = -1.0 if self.end >= 1.0 else float(percent_to_sigma(self.end))
        return lower < sigma <= upper


# --- blocks ---------------------------------------------------------------------------------------------------------

_BLOCK_LETTERS = {
    "d": ("double", "input"),
    "s": ("single",),
    "b": ("block",),
    "m": ("middle",),
    "u": ("output",),
}
_BLOCK_ITEM = re.compile(r"^([a-z]?)(-?\d+)(?:\.(\d+))?(?:-(-?\d+)(?:\.(\d+))?)?$")


@dataclass(frozen=True)
class BlockSelection:
    """Which blocks a text selects. Empty text or "all": every block.

    Items separated by commas or blanks, with an optional letter for the kind of block::

        7-10      blocks 7 to 10 in order of execution     -1        the last block
        d5        double block 5 (DiT)                      s12-20    single blocks 12 to 20
        d2.2-9    UNet input block 2, transformer layers 2 to 9;  d4  all layers of input block 4
        m0, u0.4  UNet middle and output blocks
    """

    text: str = ""
    items: tuple[tuple[str, int, int, int | None, int | None], ...] = ()

    @staticmethod
    def parse(text: str) -> BlockSelection:
        """Raises LoomError naming the first part that cannot be read."""
        clean = text.strip().lower()
        if clean in ("", "all", "*"):
            return BlockSelection()
        return BlockSelection(text.strip(), tuple(_block_item(p) for p in re.split(r"[\s,;]+", clean) if p))

    def __contains__(self, block: Block) -> bool:
        return not self.items or any(_selects(item, block) for item in self.items)

    def ends(self) -> list[BlockSelection]:
        """The first and the last block of every range, each as a selection of its own."""
        return [BlockSelection("", ((letter, at, at, sub, sub),)) for letter, first, last, lo, hi in self.items for at, sub in ((first, lo), (last, hi))]

    def unmatched(self, blocks: list[Block]) -> list[str]:
        """The parts of the text that select none of ``blocks`` (for a warning)."""
        parts = [p for p in re.split(r"[\s,;]+", self.text) if p]
        return [p for p, item in zip(parts, self.items, strict=True) if not any(_selects(item, b) for b in blocks)]


def _block_item(part: str) -> tuple[str, int, int, int | None, int | None]:
    found = _BLOCK_ITEM.match(part)
    letter = found.group(1) if found else ""
    if found is None or (letter and letter not in _BLOCK_LETTERS):
        raise LoomError(f"'{part}' is not a block selection; write for instance 7-10, -1, d5 (double), s12-20 (single), or for UNets d2.2-9, m0, u0.4.")
    first, sub, last, last_sub = int(found[2]), found[3], found[4], found[5]
    if last_sub is not None and sub is None:
        raise LoomError(f"'{part}' mixes a whole block with a layer; write {letter}{first}.0-{last_sub} or two parts.")
    if sub is not None:  # d2.2-9: layers 2..9 of block 2
        lo = int(sub)
        hi = lo if last is None else int(last if last_sub is None else last_sub)
        if hi < lo:
            raise LoomError(f"'{part}' counts backwards; write the smaller layer first.")
        return letter, first, first, lo, hi
    end = first if last is None else int(last)
    if end < first and (first >= 0) == (end >= 0):
        raise LoomError(f"'{part}' counts backwards; write {letter}{end}-{first}.")
    return letter, first, end, None, None


def _selects(item: tuple[str, int, int, int | None, int | None], block: Block) -> bool:
    letter, first, last, lo, hi = item
    if letter and block.kind not in _BLOCK_LETTERS[letter]:
        return False
    index = block.index if letter else block.ordinal
    total = block.total
    if first < 0 or last < 0:
        if letter or total <= 0:  # counting from the end is over all blocks
            index, first, last = block.ordinal, first, last
        if total <= 0:
            return False
        first = first + total if first < 0 else first
        last = last + total if last < 0 else last
    if not first <= index <= last:
        return False
    return lo is None or hi is None or lo <= block.sub <= hi
