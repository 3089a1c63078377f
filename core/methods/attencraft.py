"""AttenCraft's maps: reads what words and places look at in one model call; changes nothing.

Source: Shentu, Watson, Al Moubayed, "AttenCraft: Attention-guided Disentanglement of Multiple Concepts for Text-to-Image Customization",
arXiv 2405.17965. Written from its description; no code was taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..columns import Collector
from .base import Method

if TYPE_CHECKING:
    from ..attencraft.layers import Reading
    from ..attencraft.self_map import SelfMap
    from ..call import AttentionCall, Seen
    from ..weave import Draft

WINDOW = 77
"""Tokens of one stretch of CLIP text, each with a start token of its own."""


class Capture:
    """Where maps of the model call under way go. words, places: None where nothing is to be read. A copy of the model's options shares it."""

    def __init__(self) -> None:
        self.words: Collector | None = None
        self.places: SelfMap | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> Capture:
        return self


@dataclass(frozen=True)
class ConceptMaps(Method):
    """reading: which blocks; into: where maps go; hold_start: the start token's keys are constants of a gradient."""

    owner: ClassVar[str] = "Concept Masks (AttenCraft)"
    reads: ClassVar[bool] = True

    reading: Reading
    into: Capture = field(compare=False, repr=False)
    hold_start: bool = False

    def wants(self, call: AttentionCall) -> bool:
        """Calls that somebody wants to read now."""
        return call.extra is None and (self._words(call) or self._places(call))

    def contribute(self, call: AttentionCall, draft: Draft) -> None:
        """Nothing for the plan."""
        words, places = self.into.words, self.into.places
        if words is not None and self._words(call):
            draft.watch(self.owner, lambda seen: words.take(call, self._held(seen)))
        if places is not None and self._places(call):
            draft.watch(self.owner, lambda seen: places.add(call, seen))

    def _words(self, call: AttentionCall) -> bool:
        return self.into.words is not None and self.into.words.wants(call)

    def _places(self, call: AttentionCall) -> bool:
        kind = "joint" if self.reading.joint else "self"
        return self.into.places is not None and call.kind == kind and call.block in self.reading.places and call.q.grid_span is not None

    def _held(self, seen: Seen) -> Seen:
        return replace(seen, k=start_held(seen.k, 2)) if self.hold_start else seen


def start_held(x: Tensor, axis: int) -> Tensor:
    """Keys or values with those of every start token as constants: their gradient ends here, their values are the same."""
    if not x.requires_grad:
        return x
    parts = [part for stretch in x.split(WINDOW, axis) for part in (stretch.narrow(axis, 0, 1).detach(), stretch.narrow(axis, 1, stretch.shape[axis] - 1))]
    return torch.cat(parts, axis)
