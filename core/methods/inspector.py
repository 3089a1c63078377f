"""Attention Inspector, observing: reads what the heads do at a few steps of an ordinary run; changes nothing.

Source: Li, Wang, Dai et al., "How Does Attention Work in Vision Transformers? A Visual Analytics Attempt", arXiv 2303.13731.
The statistics are in ``core/inspect``. They describe dense attention of the queries and keys as the model makes them, whatever
kernel, pattern or other method then runs the call.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from ..errors import LoomError
from ..inspect import indicator
from ..inspect.measure import measure, rows_of_points
from ..inspect.rows import four_sided
from ..inspect.statistics import HeadStats
from ..inspect.study import Collection, Place, Setting, Study, add_map
from .base import Method

if TYPE_CHECKING:
    from ..call import AttentionCall, Seen
    from ..concepts import Located
    from ..families.base import Family
    from ..weave import Draft

BRANCHES = {"positive": (0,), "negative": (1,), "both": (0, 1)}
MOST_PERCENTS, ROWS = 10, (16, 1024)
MOST_ITEMS = 8
"""Batch rows read of one call: attention over time has one per pixel."""


@dataclass(frozen=True)
class Inspector(Method):
    """Settings. percents: points of the sampling, 0 first; branch: which conditioning; rows: image queries sampled per call;
    points: (x, y) in 0..1 whose attention is drawn; words: phrases of the prompt whose attention is drawn; into: where the numbers go.
    """

    owner: ClassVar[str] = "Attention Inspector"
    reads: ClassVar[bool] = True

    percents: tuple[float, ...] = (0.15, 0.45, 0.75)
    branch: Literal["positive", "negative", "both"] = "positive"
    rows: int = 128
    points: tuple[tuple[float, float], ...] = ()
    words: Located | None = None
    into: Collection = field(default_factory=Collection, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.percents) <= MOST_PERCENTS:
            raise LoomError(f"{len(self.percents)} steps were given; choose 1 to {MOST_PERCENTS} points of the sampling, for instance 0.15, 0.45, 0.75.")
        for p in self.percents:
            if not 0.0 <= p <= 1.0:
                raise LoomError(f"step {p:g} was given; steps are points of the sampling between 0 (start) and 1 (end), for instance 0.15, 0.45, 0.75.")
        if self.branch not in BRANCHES:
            raise LoomError(f"branch '{self.branch}' was given; choose one of {', '.join(BRANCHES)}.")
        if not ROWS[0] <= self.rows <= ROWS[1]:
            raise LoomError(f"rows {self.rows} was given; sample {ROWS[0]} to {ROWS[1]} queries per call (128 is plenty for most).")
        for x, y in self.points:
            if not (0.0 <= x <= 1.0 and 0.0 <= y <= 1.0):
                raise LoomError(f"the point {x:g},{y:g} lies outside the picture; x and y run from 0 (left, top) to 1 (right, bottom).")

    def check_family(self, family: Family, model: Any) -> None:
        """Blocks that do not exist are an error: their pictures would silently be missing."""
        blocks = family.blocks(model)
        missing = self.blocks.unmatched(blocks)
        if missing:
            kinds = ", ".join(f"{kind} 0 to {max(b.index for b in blocks if b.kind == kind)}" for kind in dict.fromkeys(b.kind for b in blocks))
            raise LoomError(f"blocks '{missing[0]}' selects nothing; this {family.name} model has layers 0 to {len(blocks) - 1} ({kinds}).")

    def wants(self, call: AttentionCall) -> bool:
        """Calls of the main pass of a sampling run."""
        return call.steps > 0 and call.run is not None and call.extra is None and super().wants(call)

    def contribute(self, call: AttentionCall, draft: Draft) -> None:
        """Nothing for the plan; a reader where this step is one of the chosen."""
        if call.run is None:
            return
        watch: Watch = call.run.kept((self.owner, id(self.into)), lambda: Watch(self, self._study(call)))
        step = watch.step(call.sigma, call.progress, call.steps)
        if step is not None:
            draft.watch(self.owner, partial(watch.look, call, step))

    def _study(self, call: AttentionCall) -> Study:
        setting = Setting(self.percents, self.branch, self.rows, () if self.words is None else tuple(c.phrase for c in self.words.concepts), self.points)
        return self.into.begin(Study(call.family, call.block.total, call.steps, setting))


class Watch:
    """One run under observation: which noise levels are read, and what has been read already.

    Each chosen step claims the first noise level at or behind it, and of each level only the first pass of a prompt over a block is
    read: extra passes of guidance nodes come after the main one.
    """

    def __init__(self, method: Inspector, study: Study) -> None:
        self.method, self.study = method, study
        self.claimed: dict[int, float] = {}
        self.seen: set[object] = set()

    def step(self, sigma: float, progress: float, steps: int) -> int | None:
        """The chosen step that is read at this noise level, or None."""
        for p in self.method.percents:
            target = min(steps - 1, int(p * steps))
            if target not in self.claimed and progress >= target / steps - 1e-6:
                self.claimed[target] = sigma
        mine = [target for target, level in self.claimed.items() if level == sigma]
        return max(mine) if mine else None

    def look(self, call: AttentionCall, step: int, seen: Seen) -> None:
        """Read one call: the chunks of its batch that are of the chosen branch and were not read here before."""
        if seen.q.requires_grad:  # a pass for gradients runs ahead of the main one
            return
        if call.kind == "other" or call.block.ordinal < 0 or call.q.grid is None:
            self.study.other[f"{call.block} {call.kind}, {call.q.length} queries and {call.k.length} keys"] += 1
            return
        items = self._items(self._fresh(call), seen.q.shape[0] // max(1, len(call.rows)))
        if not items:
            return
        self.study.layers = max(self.study.layers, call.block.total)
        with torch.no_grad():
            self._read(call, step, seen, torch.tensor(items, device=seen.q.device))

    def _fresh(self, call: AttentionCall) -> list[int]:
        """Chunks of the chosen branch, each prompt once per noise level, window and place however the host batches it."""
        found = []
        for i, branch in enumerate(call.rows or (0,)):
            prompt = call.uuids[i] if i < len(call.uuids) else i
            key = (call.sigma, branch, prompt, call.frames, call.block, call.kind, call.turn)
            if branch in BRANCHES[self.method.branch] and key not in self.seen:
                self.seen.add(key)
                found.append(i)
        return found

    @staticmethod
    def _items(chunks: list[int], size: int) -> list[int]:
        """Batch rows of the chunks, ``size`` in each; at most 8, evenly spread."""
        rows = [i * size + j for i in chunks for j in range(size)]
        return [rows[i * len(rows) // MOST_ITEMS] for i in range(MOST_ITEMS)] if len(rows) > MOST_ITEMS else rows

    def _read(self, call: AttentionCall, step: int, seen: Seen, items: Tensor) -> None:
        place = Place.of(call)
        q, k, mask = seen.q[items], seen.k[items], four_sided(seen.mask)
        if mask is not None and mask.shape[0] > 1:
            mask = mask[items]
        if self.study.grid is None and call.kind != "cross":
            self.study.grid = call.q.grid
        stats = measure(q, k, call.q, call.k, self.method.rows, mask, seen.scale)
        if self.method.words is not None and call.k.range("text") is not None:
            stats = self._words(place, call, seen, items, stats)
        self.study.add(place, step, call.sigma, stats)
        if self.method.points and call.q == call.k:
            add_map(self.study.point_maps, place, rows_of_points(q, k, call.q, self.method.points, mask, seen.scale))

    def _words(self, place: Place, call: AttentionCall, seen: Seen, items: Tensor, stats: HeadStats) -> HeadStats:
        """Every image query's attention on each word: a map of the picture, and its mean per head."""
        located, text, grid = self.method.words, call.k.range("text"), call.q.grid
        if located is None or text is None or grid is None or call.q.grid_span is None:
            return stats
        columns = located.columns(text, call.k.length)
        if columns is None:
            self.study.note(f"words were not read in {place.name}: it has {text[1] - text[0]} text tokens, the prompt makes {located.length}")
            return stats
        lo = call.q.grid_span[0]
        found = indicator.read(seen.dense, seen.q, seen.k, columns.to(seen.k.device), seen.mask, seen.scale)
        found = found[items, :, lo : lo + grid[0] * grid[1] * grid[2]].float().mean(0)  # [H, N, W]
        add_map(self.study.word_maps, place, found.mean(0).T.unflatten(1, grid).cpu())
        return replace(stats, words=found.mean(1).cpu())
