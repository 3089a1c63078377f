"""Which heads of which blocks, as a user writes them, as a file keeps them, and how strongly each is meant.

    7-10                    every head of blocks 7 to 10, counted in order of execution; -1 is the last block
    9:0,3,5                 heads 0, 3 and 5 of block 9;  9:0-7@0.5  heads 0 to 7 at half amount
    L9H3@0.3, L11H15        head 3 of block 9 at amount 0.3, head 15 of block 11
    d5, s12:0-3, d5H3       double block 5 and single block 12 (DiT)
    d0-d5, m0, u0.4         input, middle and output blocks of a UNet; .4 is the fifth transformer layer of a block
    [[9, 3], [9, 4, 0.3]]   JSON: block, head [, amount]; or a list of the texts above; or a heads file (:meth:`HeadSet.file`)

Parts are separated by commas, blanks, semicolons or line ends. After ``block:`` plain numbers continue its list of heads, so a
whole block behind such a list needs a semicolon or a line end before it. Where two parts name one head, the later wins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .call import Block
from .errors import LoomError
from .schedule import BlockSelection

CROSS = "cross"
"""Before a head of a cross-attention in a list: it is no head of the block's own attention."""
EXAMPLES = "write for instance 7-10, 9:0,3,5, L9H3@0.3, d5, s12, or for UNets d0-d5, m0, u0.4"
Ranges = tuple[tuple[int, int], ...]

_AMOUNT = r"(?:@(?P<amount>[^@]*))?"
_PAIR = re.compile(rf"^(?P<block>[a-z]?\d+(?:\.\d+)?)h(?P<heads>\d+(?:-\d+)?){_AMOUNT}$")
_LIST = re.compile(rf"^(?P<block>[^:@]+?)(?::(?P<heads>[^:@]*))?{_AMOUNT}$")
_NUMBERS = re.compile(r"^\d+(-\d+)?(@[^@]*)?$")


@dataclass(frozen=True)
class HeadItem:
    """One part: blocks, ranges of heads (None: all), amount in [0, 1] (None: what the method says), and how it was written."""

    blocks: BlockSelection
    heads: Ranges | None
    amount: float | None
    text: str


@dataclass(frozen=True)
class HeadSet:
    """Chosen heads. made_for: (family, blocks, heads) of the model a heads file was found on, None for typed ones."""

    items: tuple[HeadItem, ...] = ()
    made_for: tuple[str, int, int] | None = None

    @staticmethod
    def parse(text: str) -> HeadSet:
        """Raises LoomError naming the first part that cannot be read. Empty text: no heads; "all": every head."""
        clean = text.strip()
        if clean[:1] in ("[", "{"):
            return _from_json(clean)
        if clean.lower() in ("all", "*"):
            return HeadSet((HeadItem(BlockSelection(), None, None, clean),))
        return HeadSet(tuple(_item(part) for part in _parts(clean)))

    @staticmethod
    def of(pairs: Iterable[tuple[int, int]]) -> HeadSet:
        """From (block in order of execution, head)."""
        return HeadSet.parse(", ".join(f"L{block}H{head}" for block, head in pairs))

    def __add__(self, other: HeadSet) -> HeadSet:
        return HeadSet(self.items + other.items, self.made_for or other.made_for)

    def __str__(self) -> str:
        return "; ".join(item.text for item in self.items)

    def amounts(self, block: Block, heads: int, default: float) -> tuple[float, ...]:
        """Amount of each of the block's ``heads``: 0 where not chosen, ``default`` where a part names none."""
        out = [0.0] * heads
        for item in self.items:
            if block in item.blocks:
                for lo, hi in item.heads if item.heads is not None else ((0, heads - 1),):
                    self._inside(item, block, hi, heads)
                    out[lo : hi + 1] = [default if item.amount is None else item.amount] * (hi + 1 - lo)
        return tuple(out)

    def idle(self, default: float) -> bool:
        """Whether no head can have an amount above 0."""
        return not any((default if item.amount is None else item.amount) > 0 for item in self.items)

    def check(self, family: str, blocks: list[Block], heads: Callable[[Block], int]) -> None:
        """Raise LoomError where a part names a block or head the model does not have, or was found on another model."""
        most = max(heads(block) for block in blocks)
        if self.made_for not in (None, (family, len(blocks), most)):
            name, count, width = self.made_for  # type: ignore[misc]
            raise LoomError(
                f"these heads were found on {name} with {count} blocks of {width} heads, and this model is {family} with {len(blocks)} of {most}; search on this model."
            )
        for item in self.items:
            self._reaches(item, family, blocks)
            for block in blocks:
                if block in item.blocks and item.heads is not None:
                    for _, hi in item.heads:
                        self._inside(item, block, hi, heads(block))

    def _inside(self, item: HeadItem, block: Block, head: int, heads: int) -> None:
        if head >= heads:
            raise LoomError(f"'{item.text}' names head {head}, and {block} (block {block.ordinal} in order) has heads 0 to {heads - 1}; change the selection.")

    def _reaches(self, item: HeadItem, family: str, blocks: list[Block]) -> None:
        """Both ends of a range must be there: a range that is half outside was meant for another model."""
        for part in item.blocks.ends():
            if not any(block in part for block in blocks):
                kinds = ", ".join(f"{kind} {min(found)} to {max(found)}" for kind, found in _indices(blocks).items())
                raise LoomError(f"'{item.text}' names no block of this model: {family} has {len(blocks)} blocks, 0 to {len(blocks) - 1} in order ({kinds}).")

    def file(self, family: str, blocks: int, heads: int, **facts: Any) -> str:
        """The heads as a JSON file that remembers the model they belong to. facts: anything else worth keeping."""
        made = {"format": "attention loom heads 1", "family": family, "blocks": blocks, "heads_per_block": heads, "heads": [item.text for item in self.items]}
        return json.dumps(made | facts, indent=1, ensure_ascii=False)


def _indices(blocks: list[Block]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for block in blocks:
        found.setdefault(block.kind, []).append(block.index)
    return found


# --- reading --------------------------------------------------------------------------------------------------------


def _parts(text: str) -> list[str]:
    """The text cut into parts; plain numbers behind ``block:heads`` stay with it up to a semicolon or line end."""
    parts: list[str] = []
    for line in re.split(r"[;\n]+", text):
        fresh = True
        for piece in re.split(r"[\s,]+", re.sub(r"\s*([:@])\s*", r"\1", line.strip())):
            if not piece:
                continue
            if not fresh and ":" in parts[-1] and "@" not in parts[-1] and _NUMBERS.match(piece):
                parts[-1] += f",{piece}"
            else:
                parts.append(piece)
            fresh = False
    return parts


def _item(part: str) -> HeadItem:
    found = _PAIR.match(part.lower()) or _LIST.match(part.lower())
    if part.lower().startswith(CROSS):
        raise LoomError(f"'{part}' is a head of a cross-attention, which reads the text; heads are chosen here among those that read the picture. Rank them by a measure of those.")
    if found is None:
        raise LoomError(f"'{part}' is not a selection of heads; {EXAMPLES}.")
    block = re.sub(r"(^|-)l(?=\d)", r"\1", found["block"])  # L counts all blocks in order, as a bare number does
    block = re.sub(r"^([dsbmu])(\d+)-\1(?=\d)", r"\1\2-", block)  # d0-d5 is d0-5
    try:
        blocks = BlockSelection.parse(block)
        heads = _ranges(found["heads"])
        amount = None if found["amount"] is None else float(found["amount"])
    except (LoomError, ValueError):
        raise LoomError(f"'{part}' is not a selection of heads; {EXAMPLES}.") from None
    if amount is not None and not 0.0 <= amount <= 1.0:
        raise LoomError(f"'{part}' gives the amount {amount:g}; it lies between 0 (head left alone) and 1 (head fully replaced).")
    return HeadItem(blocks, heads, amount, part)


def _ranges(text: str | None) -> Ranges | None:
    if text is None or text in ("all", "*"):
        return None
    ranges = []
    for piece in text.split(","):
        lo, dash, hi = piece.partition("-")
        pair = int(lo), int(hi if dash else lo)
        if pair[1] < pair[0] or pair[0] < 0:
            raise ValueError
        ranges.append(pair)
    return tuple(ranges)


def _from_json(text: str) -> HeadSet:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise LoomError(f"the heads look like JSON but cannot be read: {error}; give a list such as [[9, 3], [9, 4, 0.3]] or a heads file.") from error
    made_for = None
    if isinstance(data, dict):
        given = tuple(data.get(name) for name in ("family", "blocks", "heads_per_block"))
        made_for = given if None not in given else None
        data = data.get("heads")
    if not isinstance(data, list):
        raise LoomError("the JSON holds no list 'heads'; give a list such as [[9, 3], [9, 4, 0.3]] or a heads file.")
    return HeadSet(tuple(item for entry in data for item in _json_items(entry)), made_for)  # type: ignore[arg-type]


def _json_items(entry: Any) -> list[HeadItem]:
    if isinstance(entry, str):
        return [_item(part) for part in _parts(entry)]
    if isinstance(entry, list) and len(entry) in (2, 3) and all(isinstance(x, int) and not isinstance(x, bool) for x in entry[:2]):
        return [_item(f"L{entry[0]}H{entry[1]}" + (f"@{entry[2]}" if len(entry) == 3 else ""))]
    raise LoomError(f"'{json.dumps(entry)}' is not a head; in JSON a head is [block, head], [block, head, amount] or a text such as \"L9H3@0.3\".")
