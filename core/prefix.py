"""Blocks before the first one a guidance method changes: its extra pass takes them over from the main pass instead of computing them again.

Up to that block both passes do the same on the same latent, prompt and noise level. In the main pass the last such block of every kind is
kept, in the rows of the positive conditionings; in the extra pass the blocks up to there hand that on. What the host adds between two blocks
(ControlNets) is added behind what is handed on, as before. The same numbers come out up to the rounding of another batch; bit for bit where
the main pass, too, ran the positive prompt alone. Needs blocks that can be replaced as a whole, so U-Nets have it not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .call import rows_of, window_of

if TYPE_CHECKING:
    from .call import Block
    from .guidance import ExtraPass
    from .methods.extra import GuidanceMethod
    from .report import Run

PREFIX = "loom_prefix"
"""Key in transformer_options under which a model call's :class:`Prefix` stands."""
_KEPT = "prefix"


class Prefix:
    """One model call. ends: of which block what is kept or handed on, by guidance pass and kind of block; axis: of the batch in what blocks give."""

    def __init__(self, run: Run, options: dict[str, Any], batch: int, ends: dict[str, dict[str, Block]], pass_: ExtraPass | None, axis: int = 0) -> None:
        self.run, self.batch, self.ends, self.pass_, self.axis = run, batch, ends, pass_, axis
        self.rows: Sequence[int] = rows_of(options, run.roles)
        self.keys = names(options)

    def through(self, block: Block, compute: Callable[[], Any]) -> Any:
        """What the block gives. compute: the host's own way to it."""
        if not self.keys:
            return compute()
        if self.pass_ is not None:
            return self._handed_on(self.pass_.name, block, compute)
        out = compute()
        for name, last in self.ends.items():
            if last.get(block.kind) == block:
                self._keep(name, block, out)
        return out

    def _keep(self, name: str, block: Block, out: Any) -> None:
        kept, n = self.run.kept(_KEPT, dict), self.batch // len(self.rows)
        for i, (row, key) in enumerate(zip(self.rows, self.keys, strict=True)):
            if row == 0 and (name, block, key) not in kept:  # the main pass comes first; passes of other nodes may skip layers
                kept[name, block, key] = each(out, partial(chunk, start=i * n, length=n, axis=self.axis))

    def _handed_on(self, name: str, block: Block, compute: Callable[[], Any]) -> Any:
        last = self.ends.get(name, {}).get(block.kind)
        if last is None or block.ordinal > last.ordinal:
            return compute()
        kept = self.run.kept(_KEPT, dict)
        found = [kept.get((name, last, key)) for key in self.keys]
        if any(f is None for f in found):  # a conditioning the main pass did not have
            return compute()
        assert self.pass_ is not None
        self.pass_.reused.add(block)
        return joined(found, self.axis)  # a copy: the host adds to it in place


def ends(methods: Sequence[GuidanceMethod], blocks: list[Block]) -> dict[str, dict[str, Block]]:
    """For each guidance pass that takes blocks over: the last of each kind before the first block the method changes."""
    out: dict[str, dict[str, Block]] = {}
    for method in methods:
        reached = [b.ordinal for b in blocks if method.reaches(b)]
        before = [b for b in blocks if b.ordinal < min(reached, default=0)]
        if method.reuse and before:
            out[method.only_in] = {b.kind: b for b in before}
    return out


def names(options: dict[str, Any]) -> list[Hashable]:
    """Of the chunks of a model call's batch: conditioning and window. options: its transformer options; empty where the host does not tell."""
    frames, _ = window_of(options)
    found: list[Hashable] = [(uuid, frames) for uuid in options.get("uuids", ())]
    return found if len(found) == len(options.get("cond_or_uncond", ())) else []


def forget(run: Run) -> None:
    """What was kept of the last evaluation is stale: the next one has another latent."""
    run.state.pop(_KEPT, None)


def chunk(x: Tensor, start: int, length: int, axis: int = 0) -> Tensor:
    """Some rows of the batch, a copy: the host goes on adding to the original in place."""
    return x.narrow(axis, start, length).clone()


def each(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest of dicts, tuples and lists with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {name: each(part, change) for name, part in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(each(part, change) for part in tree)
    return tree


def joined(trees: list[Any], axis: int = 0) -> Any:
    """One nest whose tensors are those of ``trees`` one behind the other along the batch, which is axis number ``axis``."""
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.cat(trees, axis)
    if isinstance(first, dict):
        return {name: joined([t[name] for t in trees], axis) for name in first}
    if isinstance(first, (tuple, list)):
        return type(first)(joined(list(parts), axis) for parts in zip(*trees, strict=True))
    return first
