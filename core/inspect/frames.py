"""How far heads look in time, and what that says about the length a model was trained on.

Derived here and tried on a model whose trained length is known (docs/methods/inspector.md). Positions a model was trained on get
less attention the further apart they are. Beyond the trained length most heads' attention rises again, because nothing taught
them what such distances mean: that rise is what longer-video methods damp.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .study import Study

RISE = 1.5
"""Times by which attention beyond a distance exceeds that at it, to count as a rise."""
HEADS = 0.5
"""Share of the heads that must rise."""
FEWEST = 4
"""Latent frames below which nothing can be said."""


@dataclass(frozen=True, eq=False)
class Suggestion:
    """train_frames for UltraViCo in latent frames, or None; reason: the sentence that goes with it."""

    train_frames: int | None
    reason: str


def profiles(study: Study) -> tuple[list[tuple[str, Tensor]], Tensor | None]:
    """Attention per key frame against distance in frames: [(layer name, [H, T])] and all heads [n, T], or None without frames.

    Both directions of time are averaged. Places with another number of frames than the first are left out.
    """
    found: list[tuple[str, Tensor]] = []
    for place in study.places():
        stats = study.mean(place)
        if stats.per_frame is None:
            continue
        t = (stats.per_frame.shape[1] + 1) // 2
        if found and found[0][1].shape[1] != t:
            continue
        found.append((f"L{place.layer}", (stats.per_frame[:, t - 1 :] + stats.per_frame[:, :t].flip(1)) / 2))
    return found, torch.cat([p for _, p in found]) if found else None


def suggest(heads: Tensor | None) -> Suggestion:
    """train_frames from the profiles [n, T] of all heads.

    The first distance behind which the median head's attention rises by half, while at least half of the heads do, is the last
    one that looks trained; a clip of that many frames and one more holds no longer distance.
    """
    if heads is None:
        return Suggestion(None, "no train_frames: this run had no frames.")
    t = heads.shape[1]
    if t < FEWEST:
        return Suggestion(None, f"no train_frames: {t} latent frames are too few to see how attention falls with distance; sample at least {FEWEST}.")
    median = heads.median(0).values
    for d in range(1, t - 1):
        beyond = heads[:, d + 1 :].amax(1)
        bottom = bool(median[d] <= median[: d + 1].min()) and bool(median[d] < median[d + 1])
        rises = bool(median[d + 1 :].max() >= RISE * median[d]) and float((beyond >= RISE * heads[:, d]).float().mean()) >= HEADS
        if bottom and rises:
            return Suggestion(
                d + 1,
                f"train_frames {d + 1}: attention falls up to {d} latent frames apart and rises again beyond, as where a model meets distances it was not trained on. "
                "Where the model's own length is published, use that.",
            )
    return Suggestion(
        None,
        f"no train_frames: over {t} latent frames attention does not rise again with distance, so this clip is not longer than the model bears; "
        "sample one of twice the length to see where it breaks.",
    )
