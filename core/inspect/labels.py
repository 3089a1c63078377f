"""What kind a head is, by rules on its statistics.

The rules and thresholds are ours; kinds of heads as in Li et al., arXiv 2303.13731. The first rule that fits wins: where most of
the attention falls on one key or on text, its shape over the picture says little.
"""

from __future__ import annotations

from collections.abc import Mapping

RULES = {
    "sink": "one key takes more than 30 % of the attention",
    "text": "more than 60 % on text",
    "temporal": "more than 30 % on its own place in other frames",
    "self": "more than half on its own place",
    "local": "mean distance below 10 % of the diagonal",
    "row": "more than 3 times an even share on its own row",
    "column": "more than 3 times an even share on its own column",
    "frame": "more than 60 % on its own frame of at least 3",
    "global": "entropy above 90 % of the largest possible",
    "content": "none of these: what it reads depends on the picture",
}
"""Label -> rule, in the order in which they are tried."""


def label(scalars: Mapping[str, float], frames: int = 1) -> str:
    """The label of one head from its scalars (names as in :class:`statistics.HeadStats`); frames: T of the grid.

    A cross-attention has no image keys and is "sink", "global" or "content".
    """
    get = scalars.get
    if get("top key", 0.0) > 0.3:
        return "sink"
    if "image mass" in scalars and "distance" in scalars:
        found = _placed(scalars, frames)
        if found:
            return found
    return "global" if get("entropy", 0.0) > 0.9 else "content"


def _placed(scalars: Mapping[str, float], frames: int) -> str | None:
    get = scalars.get
    if get("text mass", 0.0) > 0.6:
        return "text"
    if get("same place, other frames", 0.0) > 0.3:
        return "temporal"
    if scalars["own place"] > 0.5:
        return "self"
    if scalars["distance"] < 0.1:
        return "local"
    row, column = scalars["row"], scalars["column"]
    if max(row, column) > 3:
        return "row" if row >= column else "column"
    return "frame" if frames >= 3 and get("same frame", 0.0) > 0.6 else None
