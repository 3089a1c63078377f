"""A study as numbers and words: the list of heads, the text a user reads, the JSON with everything."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import LoomError
from ..heads import CROSS
from ..methods.prune_part import WHOLE, WORDS
from .frames import profiles, suggest
from .importance import FAST, METRICS, PRUNED
from .statistics import HeadStats
from .study import Place, Study

MEASURES = (
    "distance", "rms distance", "own place", "own token", "entropy", "perplexity", "image mass", "text mass", "reference mass", "other mass", "first key", "top key",
    "row", "column", "same frame", "same place, other frames", *METRICS,
)  # fmt: skip
ORDERS = ("highest", "lowest")
MOST_HEADS = 1_000_000
Head = tuple[Place, int]


def value_of(study: Study, place: Place, measure: str) -> np.ndarray:
    """One measure of every head of a place, [H]; NaN where attention was no number."""
    return study.mean(place).scalars[measure].numpy()


def available(study: Study, cross: bool = False) -> list[str]:
    """The measures this study has, in the order of :data:`MEASURES`."""
    known = {name for place in study.places(cross) for name in study.mean(place).scalars}
    return [m for m in MEASURES if m in known]


def check(study: Study | None) -> Study:
    """The study, if something was read. Raises LoomError saying what is missing."""
    if study is None:
        raise LoomError("nothing was sampled with the inspected model yet; connect its sampler's result to 'after'.")
    if not study.stats:
        other = "; other calls seen: " + ", ".join(f"{n} x {what}" for what, n in study.other.most_common(4)) if study.other else ""
        raise LoomError(f"no attention of {study.family} was read in the last run (branch {study.setting.branch}, {study.steps} steps){other}; check branch, blocks and steps.")
    return study


def crossed(study: Study, measure: str) -> bool:
    """Whether a measure is one of cross-attentions alone: the importance of words where the text is read apart."""
    return measure in METRICS and measure not in available(study) and measure in available(study, cross=True)


def top_heads(study: Study, measure: str, count: int, order: str = "highest") -> list[Head]:
    """The ``count`` heads with the highest (lowest) measure, best first; repeated places take no part, cross-attentions only in a measure of theirs alone.

    Raises LoomError naming the measures there are.
    """
    cross = crossed(study, measure)
    if not cross and measure not in available(study):
        raise LoomError(f"measure '{measure}' does not exist for this model; choose one of {', '.join(available(study))}.")
    sign = -1 if order == "highest" else 1
    seen: set[int] = set()
    ranked: list[tuple[float, int, Head]] = []
    for place in study.places(cross):
        if place.layer in seen or measure not in study.mean(place).scalars:
            continue
        seen.add(place.layer)
        ranked += [(sign * float(v), h, (place, h)) for h, v in enumerate(value_of(study, place, measure)) if math.isfinite(v)]
    ranked.sort(key=lambda r: (r[0], r[2][0].layer, r[1]))
    return [head for _, _, head in ranked[:count]]


def heads_text(heads: list[Head]) -> str:
    """The list as SoftPAG reads it; heads of cross-attentions, which it refuses, are marked.

    >>> heads_text([])
    ''
    """
    return ", ".join(f"{CROSS if place.kind == 'cross' else ''}L{place.layer}H{head}" for place, head in heads)


def caption(study: Study) -> str:
    """What was read, in one line."""
    grid = "" if study.grid is None else (f", {study.grid[0]} frames of" if study.grid[0] > 1 else ",") + f" {study.grid[1]} x {study.grid[2]} tokens"
    steps = ", ".join(str(s + 1) for s in sorted(study.sigmas))
    prompts = {"positive": "positive prompt", "negative": "negative prompt", "both": "both prompts"}[study.setting.branch]
    return f"{study.family}{grid}; {prompts}; step{'s' if len(study.sigmas) > 1 else ''} {steps} of {study.steps}; mean over up to {study.setting.rows} sampled queries per call"


CAVEAT = "The numbers describe dense attention of the queries and keys as the model makes them, whatever kernel, sparse pattern or other node computed the call."


def text(study: Study, measure: str, heads: list[Head]) -> str:
    """The study in a few sentences."""
    labels = Counter(label for place in study.places() for label in study.labels(place))
    total = sum(labels.values())
    lines = [caption(study), f"{len(study.places())} attentions among image tokens with {total} heads, {len(study.places(cross=True))} cross-attentions"]
    lines.append("kinds of head: " + ", ".join(f"{n} {name} ({100 * n / total:.0f}%)" for name, n in labels.most_common()))
    lines.append(f"by {measure}: {heads_text(heads)}")
    if study.grid is not None and study.grid[0] > 1:
        lines.append(suggest(profiles(study)[1]).reason)
    if study.pruned:
        lines.append(_importance(study))
    lines += [f"note: {n}" for n in study.notes]
    if study.other:
        lines.append("not read: " + ", ".join(f"{n} x {what}" for what, n in study.other.most_common(6)))
    missing = len({min(study.steps - 1, int(p * study.steps)) for p in study.setting.percents}) - len(study.sigmas)
    if missing > 0:
        lines.append(f"note: {missing} of the chosen steps never came (the run was short or broken off)")
    lines.append(CAVEAT)
    return "\n".join(lines)


def _importance(study: Study) -> str:
    """Which heads matter and how unequally, from the pruned ones."""
    by = next(m for m in (PRUNED[0], FAST) if m in available(study) or crossed(study, m))
    known = np.array([value_of(study, place, by)[head] for place, head in top_heads(study, by, MOST_HEADS)])
    top = float(known[: max(1, len(known) // 10)].mean() / max(float(np.median(known)), 1e-12))
    part = study.how.get("part", WHOLE)
    words = f": {', '.join(study.setting.words)}" if part == WORDS else ""
    what = "to first order" if by == FAST else "pruned one by one"
    return (
        f"importance: {len(known)} heads {what}{'' if part == WHOLE else f' (part {part}{words})'} in {study.evaluations} evaluations; "
        f"most: {heads_text(top_heads(study, by, 5))}; the top tenth changes the prediction {top:.1f} times as much as the median head"
        + (f"; {study.handed_on} blocks before a pruned layer were handed on instead of computed (reuse_prefix)" if study.how.get("reuse_prefix") == "on" else "")
    )


def as_json(study: Study, measure: str, order: str, heads: list[Head]) -> str:
    """All numbers; maps are in the pictures. A number that is none is null."""
    s = study.setting
    found = suggest(profiles(study)[1])
    data: dict[str, Any] = {
        "model": study.family,
        "n_layers": study.layers,
        "n_heads": {f"L{p.layer}": len(study.labels(p)) for p in study.places()},
        "grid": study.grid,
        "steps": study.steps,
        "sigmas": {str(step): sigma for step, sigma in sorted(study.sigmas.items())},
        "settings": {"percents": s.percents, "branch": s.branch, "rows": s.rows, "words": s.words, "points": s.points},
        "chosen": {"measure": measure, "order": order, "heads": heads_text(heads)},
        "train_frames": {"suggested": found.train_frames, "reason": found.reason},
        "importance": study.how | {"evaluations": study.evaluations, "blocks_handed_on": study.handed_on, "layers": {f"L{n}": v for n, v in study.layer_importance.items()}},
        "notes": study.notes,
        "not_read": dict(study.other),
        "places": [_place(study, p) for cross in (False, True) for p in study.places(cross)],
    }
    return json.dumps(data, allow_nan=False)


def _place(study: Study, place: Place) -> dict[str, Any]:
    mean = study.mean(place)
    out: dict[str, Any] = {
        "layer": place.layer,
        "block": str(place.block),
        "kind": place.kind,
        "turn": place.turn,
        "grid": mean.grid,
        "keys": mean.keys,
        "rows_read": mean.rows,
        "labels": study.labels(place),
        "mean": _numbers(mean),
        "steps": {str(step): [{n: _list(v) for n, v in call.scalars.items()} for call in calls] for step, calls in sorted(study.stats[place].items())},
    }
    return out


def _numbers(stats: HeadStats) -> dict[str, Any]:
    out: dict[str, Any] = {name: _list(values) for name, values in stats.scalars.items()}
    if stats.text_rows:
        out["text queries"] = {name: _list(values) for name, values in stats.text_rows.items()}
    for name in ("rings", "frames", "per_frame", "words"):
        values = getattr(stats, name)
        if values is not None:
            out[name] = [_list(row) for row in values]
    return out


def _list(values: Tensor) -> list[float | None]:
    return [float(f"{v:.5g}") if math.isfinite(v) else None for v in values.tolist()]
