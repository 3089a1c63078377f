"""A search from beginning to end: remembers every score, estimates the time, shows how far it is, keeps what was found."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import LoomError
from ..families import family_of
from ..heads import HeadSet
from .bench import Bench
from .identity import model_key
from .search import Hunt, Plan, hunt, written
from .store import Scores

log = logging.getLogger(__name__)
EVERY = 2.0
"""Seconds between two writings of the heads file and two previews."""
Show = Callable[["Session"], None]


@dataclass
class Session:
    """A search under way. heads_file: written again and again, so that breaking off loses nothing; minutes: time allowed, 0 without
    limit; partial: what to do when more is needed: search as far as it gets, or refuse before it starts.
    """

    bench: Bench
    plan: Plan
    heads_file: Path
    minutes: float = 0.0
    partial: bool = False
    hunt: Hunt = field(init=False)
    scores: Scores = field(init=False)
    made: int = 0
    _began: float = field(default=0.0, repr=False)
    _saved: float = field(default=0.0, repr=False)
    _allowed: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        key = self.bench.key()
        self.hunt = Hunt(self.plan)
        self.scores = Scores(self.heads_file.parent / "scores" / f"{key}.jsonl", key)
        self.resumed, self._model = len(self.scores.values), model_key(self.bench.model)

    def run(self, show: Show = lambda session: None) -> Hunt:
        """Search; ``show`` is called about every two seconds, and at the end. What was found is in the heads file, whatever ends it."""
        self._began = time.monotonic()
        try:
            hunt(self.hunt, self._value, lambda _: self._progress(show), self._enough)
        finally:
            if self.hunt.found:
                self._save()
        show(self)
        return self.hunt

    def _value(self, heads: str, pair: int) -> float:
        known = self.scores.values.get((heads, pair))
        if known is not None:
            return known
        if heads and not self._allowed:
            self._allow()
        begin = time.monotonic()
        images, score = self.bench.shoot(heads, pair)
        self.made += 1
        keep = not heads or pair == 0 or heads == written(self.hunt.settled)
        self.scores.put(heads, pair, score, time.monotonic() - begin, _first(images) if keep else None)
        return score

    # --- time ---------------------------------------------------------------------------------------------------------

    @property
    def left(self) -> float | None:
        """Seconds the rest will take, about; None before the first picture."""
        pictures = max(0, self.plan.pictures - max(self.hunt.done, len(self.scores.values)))
        each = self.seconds_each
        return None if each is None else pictures * each

    @property
    def seconds_each(self) -> float | None:
        """Of one guided picture: the median of those made, or from the pictures without guidance and the evaluations they save."""
        guided = sorted(s for (heads, _), s in self.scores.seconds.items() if heads)
        if guided:
            return guided[len(guided) // 2]
        plain = [s for (heads, _), s in self.scores.seconds.items() if not heads]
        if not plain:
            return None
        return min(plain) * (2.0 if self.bench.sampling.cfg == 1.0 else 1.5)

    def _allow(self) -> None:
        """Before the first picture with guidance: the estimate, and whether it fits."""
        self._allowed = True
        left, each = self.left, self.seconds_each
        if left is None or each is None:
            return
        log.info("HeadHunter: %d pictures at most, about %s; %d scores are known from before", self.plan.pictures, clock(left), self.resumed)
        if self.minutes and not self.partial and left > 60 * self.minutes:
            raise LoomError(
                f"the search would take about {clock(left)}: {self.plan.pictures} pictures at {each:.1f} s, {len(self.scores.values)} of them made. minutes allows "
                f"{self.minutes:g}: raise it (0: no limit), set if_longer to 'search as far as it gets', or lower pairs, rounds, steps, keep_layers or the picture's size."
            )

    def _enough(self) -> bool:
        return bool(self.minutes and self.partial and self.made and time.monotonic() - self._began > 60 * self.minutes)

    # --- what is kept --------------------------------------------------------------------------------------------------

    def _progress(self, show: Show) -> None:
        if time.monotonic() - self._saved < EVERY:
            return
        if self.hunt.found:
            self._save()
        show(self)
        self._saved = time.monotonic()

    def _save(self) -> None:
        self.heads_file.parent.mkdir(parents=True, exist_ok=True)
        part = self.heads_file.with_suffix(".part")
        part.write_text(self.file(), encoding="utf-8")
        part.replace(self.heads_file)

    def file(self) -> str:
        """The heads file: JSON that Head Guidance reads, with everything about how the heads were found."""
        bench, diffusion = self.bench, self.bench.model.get_model_object("diffusion_model")
        family = family_of(diffusion)
        blocks = family.blocks(diffusion)
        most = max(family.heads(diffusion, b) for b in blocks)
        facts: dict[str, Any] = {
            "goal": bench.scorer.name,
            "finished": self.hunt.finished,
            "score_without_guidance": self.hunt.baseline,
            "score_of_all": self.hunt.score,
            "rounds": [{"heads": written(r.chosen), "score": r.score, "scores": {written([h]): s for h, s in r.scores.items()}} for r in self.hunt.rounds],
            "layers": {str(layer): s for layer, s in self.hunt.layers.items()},
            "prompts": [p.text for p in bench.pairs],
            "seeds": [p.seed for p in bench.pairs],
            "u": bench.push.u,
            "scale": bench.push.guidance.scale,
            "target": bench.push.target,
            "rows": bench.push.rows,
            "sampling": vars(bench.sampling),
            "model": self._model,
        }
        return HeadSet.of(self.hunt.found).file(family.name, len(blocks), most, **facts)

    def text(self) -> str:
        """What was found, as a user reads it."""
        h = self.hunt
        lines = [f"goal: {self.bench.scorer.name}; {len(self.bench.pairs)} prompt-seed pairs; {len(self.scores.values)} pictures, {self.made} of them made now"]
        if h.baseline is not None:
            lines.append(f"without guidance: {h.baseline:.4g}")
        for i, r in enumerate(h.rounds):
            above = sum(1 for s in r.scores.values() if h.baseline is not None and s > h.baseline)
            together = "not finished" if r.score is None else f"together {r.score:.4g}"
            lines.append(
                f"round {i + 1}: {', '.join(f'{written([c])} {r.scores[c]:.4g}' for c in r.chosen) or 'under way'}; {together}; {above} of {len(r.scores)} heads tried beat no guidance"
            )
        for i, r in enumerate(h.rounds):
            if r.score is not None and len(r.chosen) > 1 and r.score < r.scores[r.chosen[0]]:
                lines.append(
                    f"note: in round {i + 1} {written(r.chosen[:1])} alone scored more than all together: effects did not add up; fewer heads per round and more rounds may do better"
                )
        if h.score is not None and h.baseline is not None and h.score <= h.baseline:
            lines.append("note: all heads together score no better than no guidance; try fewer heads, another u or scale, or more pairs")
        if not h.finished:
            lines.append("note: the search is not finished; queue it again with the same settings and it goes on")
        lines.append(f"heads: {written(h.found)}")
        return "\n".join(lines)


def _first(images: Tensor) -> Any:
    return (images[len(images) // 2] * 255).round().byte().numpy()


def clock(seconds: float) -> str:
    """
    >>> clock(5400), clock(95), clock(4)
    ('1 h 30 min', '2 min', '4 s')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def read(path: Path) -> str:
    """The text of a heads file. Raises LoomError naming those there are."""
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.json"))) if path.parent.is_dir() else ""
        raise LoomError(f"there is no heads file {path.name} in {path.parent.name}; " + (f"there are {there}." if there else "run Find Guidance Heads first."))
    text = path.read_text(encoding="utf-8")
    HeadSet.parse(text)
    return text
