"""What was read during one sampling run, and the handle by which the drawing node finds it."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..call import AttentionCall, Block
from ..methods.prune_part import WORDS
from .importance import Pruned, by_head
from .labels import label
from .statistics import Grid, HeadStats, mean_stats

KEEP = 2


@dataclass(frozen=True)
class Place:
    """One attention of a model: the ordinal of its block is the layer number users see (L0 is the first block that runs)."""

    layer: int
    kind: str
    turn: int
    block: Block

    @property
    def name(self) -> str:
        """As "L7 (double 7) joint"."""
        return f"L{self.layer} ({self.block}) {self.kind}" + (f" #{self.turn + 1}" if self.turn else "")

    @staticmethod
    def of(call: AttentionCall) -> Place:
        """Where a call happens."""
        return Place(call.block.ordinal, call.kind, call.turn, call.block)


@dataclass(frozen=True)
class Setting:
    """What was asked: points of the sampling in percent, branch, sampled rows, words and query points."""

    percents: tuple[float, ...]
    branch: str
    rows: int
    words: tuple[str, ...] = ()
    points: tuple[tuple[float, float], ...] = ()


@dataclass
class Study:
    """All that was read in one run. stats: place -> step -> the calls read there (one per prompt and window).

    pruned: step -> importance of the heads pruned there; layer_importance: of whole layers; evaluations: made for both; how:
    settings of the pruning; handed_on: blocks not computed for them
    again.
    word_maps, point_maps: place -> [sum of fp32 [W or P, T, Y, X], count]. sigmas: of the steps read; other: calls left alone.
    """

    family: str
    layers: int
    steps: int
    setting: Setting
    grid: Grid | None = None
    stats: dict[Place, dict[int, list[HeadStats]]] = field(default_factory=dict)
    sigmas: dict[int, float] = field(default_factory=dict)
    word_maps: dict[Place, tuple[Tensor, int]] = field(default_factory=dict)
    point_maps: dict[Place, tuple[Tensor, int]] = field(default_factory=dict)
    pruned: dict[int, Pruned] = field(default_factory=dict)
    layer_importance: dict[int, float] = field(default_factory=dict)
    evaluations: int = 0
    how: dict[str, str] = field(default_factory=dict)
    handed_on: int = 0
    other: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    _means: dict[tuple[Place, int], HeadStats] = field(default_factory=dict, repr=False)

    def note(self, sentence: str) -> None:
        """Something the user should know, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def add(self, place: Place, step: int, sigma: float, stats: HeadStats) -> None:
        """One call was read."""
        self.sigmas[step] = sigma
        self._means.clear()
        self.stats.setdefault(place, {}).setdefault(step, []).append(stats)
        bad = [h for h in range(len(stats.scalars["entropy"])) if not bool(stats.scalars["entropy"][h].isfinite())]
        if bad:
            self.note(f"NaN in the attention at step {step}, {place.name}, head{'s' if len(bad) > 1 else ''} {', '.join(map(str, bad[:8]))}")

    def places(self, cross: bool = False) -> list[Place]:
        """In order of execution: attentions among the picture's own tokens, or the cross-attentions."""
        return sorted((p for p in self.stats if (p.kind == "cross") == cross), key=lambda p: (p.layer, p.kind != "joint", p.turn))

    def mean(self, place: Place) -> HeadStats:
        """Over steps, prompts and windows; with the importance of its heads where they were pruned."""
        key = place, len(self.pruned)
        if key not in self._means:
            stats = mean_stats(s for calls in self.stats[place].values() for s in calls)
            # of words: the attention that reads them; else the picture's own
            here = stats.words is not None if self.how.get("part") == WORDS else place.kind != "cross"
            found = by_head(self.pruned, place.layer, len(stats.scalars["entropy"])) if here else {}
            self._means[key] = replace(stats, scalars=stats.scalars | found)
        return self._means[key]

    def labels(self, place: Place) -> list[str]:
        """The label of every head."""
        stats = self.mean(place)
        frames = 1 if stats.grid is None else stats.grid[0]
        return [label({n: float(v[h]) for n, v in stats.scalars.items()}, frames) for h in range(len(stats.scalars["entropy"]))]


class Collection:
    """The last studies of one Inspector node. A copy of the model's options shares it."""

    def __init__(self) -> None:
        self.studies: deque[Study] = deque(maxlen=KEEP)

    def begin(self, study: Study) -> Study:
        """A sampling run starts."""
        self.studies.append(study)
        return study

    @property
    def last(self) -> Study | None:
        """The newest study."""
        return self.studies[-1] if self.studies else None

    def __deepcopy__(self, memo: dict[int, object]) -> Collection:
        return self


def add_map(maps: dict[Place, tuple[Tensor, int]], place: Place, found: Tensor) -> None:
    """Add a map to the sum of its place; one of another size (an area, a window) starts no second sum and is left out."""
    total, n = maps.get(place, (None, 0))
    if total is None:
        maps[place] = (found, 1)
    elif total.shape == found.shape:
        maps[place] = (total + found, n + 1)
