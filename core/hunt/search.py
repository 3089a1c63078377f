"""The search itself: greedy, over heads, by the score of finished pictures.

Source: "Where and How to Perturb: On the Design of Perturbation Guidance in Diffusion and Flow Models", arXiv 2506.10978,
HeadHunter. With S the heads found so far, and the mean over prompt-seed pairs::

    repeat R times:  score[c] = mean_j O(picture_j(S + {c}))  for every head c in the pool;  S += the k best;  pool -= those

Ours: a first pass over whole layers that leaves only the best in the pool, since most heads lie in layers that do little; and a
picture of S as a whole after each round, because effects need not add up. Ties go to the lower layer, then the lower head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..errors import LoomError

Head = tuple[int, int]
"""Layer in order of execution, head."""
Value = Callable[[str, int], float]
"""Score of one picture: (heads as text, "" for none; which prompt-seed pair)."""


@dataclass(frozen=True)
class Plan:
    """What is searched. layers: (layer, heads) of the pool; pairs: prompt-seed pairs; keep: share of the layers the first pass
    leaves, 1 for no such pass.
    """

    layers: tuple[tuple[int, int], ...]
    pairs: int
    rounds: int = 1
    per_round: int = 9
    keep: float = 0.5

    def __post_init__(self) -> None:
        for name in ("pairs", "rounds", "per_round"):
            if getattr(self, name) < 1:
                raise LoomError(f"{name} {getattr(self, name)} was given; at least 1 is needed.")
        if not 0.0 < self.keep <= 1.0:
            raise LoomError(f"keep_layers {self.keep:g} was given; it lies above 0 and up to 1 (search all layers).")
        total = sum(n for _, n in self.layers)
        if self.wanted > total:
            raise LoomError(f"{self.rounds} rounds of {self.per_round} heads were asked for, and the chosen blocks have {total} heads; lower one of them or choose more blocks.")

    @property
    def wanted(self) -> int:
        """Heads found at the end."""
        return self.rounds * self.per_round

    @property
    def screened(self) -> bool:
        """Whether whole layers are tried first."""
        return self.keep < 1.0 and len(self.layers) > 1

    def pool(self, scores: dict[int, float]) -> list[Head]:
        """Heads of the best layers: the share ``keep`` of them, and more where those have too few heads."""
        kept: list[tuple[int, int]] = []
        for layer, heads in sorted(self.layers, key=lambda part: (-scores.get(part[0], 0.0), part[0])):
            if self.screened and len(kept) >= math.ceil(self.keep * len(self.layers)) and sum(n for _, n in kept) >= self.wanted:
                break
            kept.append((layer, heads))
        return [(layer, head) for layer, heads in sorted(kept) for head in range(heads)]

    @property
    def pictures(self) -> int:
        """Pictures the whole search makes, at most."""
        size = len(self.pool({layer: float(heads) for layer, heads in self.layers}))
        probes = sum(size - r * self.per_round for r in range(self.rounds))
        return self.pairs * (1 + (len(self.layers) if self.screened else 0) + probes + self.rounds)


@dataclass
class Round:
    """scores: mean of each head tried beside those found before; chosen: the best, empty while the round goes on; score: of
    everything found up to then, together.
    """

    scores: dict[Head, float] = field(default_factory=dict)
    chosen: tuple[Head, ...] = ()
    score: float | None = None


@dataclass
class Hunt:
    """How far a search is. baseline: score without guidance; layers: scores of whole layers; done: pictures judged."""

    plan: Plan
    baseline: float | None = None
    layers: dict[int, float] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    done: int = 0
    finished: bool = False

    @property
    def settled(self) -> list[Head]:
        """Heads of the finished rounds."""
        return [head for r in self.rounds for head in r.chosen]

    @property
    def found(self) -> list[Head]:
        """The heads so far: of a round that goes on, the best of those tried."""
        running = self.rounds[-1] if self.rounds and not self.rounds[-1].chosen else None
        return self.settled + (best(running.scores, self.plan.per_round) if running else [])

    @property
    def score(self) -> float | None:
        """Score of the heads of the last finished round, together."""
        return next((r.score for r in reversed(self.rounds) if r.score is not None), None)


class _Enough(Exception):
    """The time is up."""


def hunt(state: Hunt, value: Value, watch: Callable[[Hunt], None] = lambda state: None, enough: Callable[[], bool] = lambda: False) -> None:
    """Search; ``state`` holds what was found at any time, also when ``value`` raises.

    The way depends on nothing but ``value``, so a search over remembered values goes on where it was broken off. watch: called
    after every picture; enough: asked before each, True ends the search. Raises LoomError where a score is no number.
    """
    plan = state.plan

    def mean(heads: str) -> float:
        total = 0.0
        for pair in range(plan.pairs):
            if enough():
                raise _Enough
            one = float(value(heads, pair))
            if not math.isfinite(one):
                raise LoomError(f"the scorer gave {one} for the picture of pair {pair + 1} with {heads or 'no heads'} weakened; it must give a number for every picture.")
            total += one
            state.done += 1
            watch(state)
        return total / plan.pairs

    try:
        state.baseline = mean("")
        for layer, _ in plan.layers if plan.screened else ():
            state.layers[layer] = mean(str(layer))
        pool = plan.pool(state.layers)
        for _ in range(plan.rounds):
            settled, current = state.settled, Round()
            state.rounds.append(current)
            for head in pool:
                current.scores[head] = mean(written([*settled, head]))
            current.chosen = tuple(best(current.scores, plan.per_round))
            pool = [head for head in pool if head not in current.chosen]
            current.score = mean(written(state.settled))
        state.finished = True
    except _Enough:
        return


def best(scores: dict[Head, float], count: int) -> list[Head]:
    """The ``count`` heads with the highest score, best first; ties to the lower layer and head."""
    return sorted(scores, key=lambda head: (-scores[head], head))[:count]


def written(heads: Iterable[Head]) -> str:
    """One text per set, whatever its order.

    >>> written([(2, 1), (0, 3)])
    'L0H3, L2H1'
    """
    return ", ".join(f"L{layer}H{head}" for layer, head in sorted(heads))
