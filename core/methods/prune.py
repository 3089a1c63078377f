"""Pruning, for the Attention Inspector: heads of a marked extra pass lose what they attend to; the main pass stays as it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ..errors import LoomError
from ..guidance import ExtraPass
from .base import Method
from .prune_part import WHOLE, WORDS, check_part, has_part, share
from .softpag import head_mix

if TYPE_CHECKING:
    from ..call import AttentionCall, Seen
    from ..concepts import Located
    from ..families.base import Family
    from ..weave import Draft

PRUNE = {"mean": "mean", "identity": "identity", "zero": ""}
"""The user's word -> the plan's target: every token reads the mean of all values, or its own value alone; zero: nothing, whatever the plan."""


@dataclass
class PrunePass(ExtraPass):
    """heads: layer -> which are pruned; None: all of that layer."""

    heads: dict[int, int | None] = field(default_factory=dict)


@dataclass(frozen=True)
class HeadPruning(Method):
    """What pruning in passes of its own needs, whole or to first order. prune: a key of :data:`PRUNE`; part: one of ``PARTS``, put out whatever ``prune``
    says; words: those of part "words".
    """

    reads: ClassVar[bool] = True

    prune: str = "mean"
    part: str = WHOLE
    words: Located | None = None

    def __post_init__(self) -> None:
        if self.prune not in PRUNE:
            raise LoomError(f"prune '{self.prune}' was given; choose one of {', '.join(PRUNE)}.")
        check_part(self.part, words=self.words)

    @property
    def only_in(self) -> str:
        """Its own passes."""
        return self.owner

    def check_family(self, family: Family, model: Any) -> None:
        """A part needs text and picture in one attention."""
        check_part(self.part, family, self.words)

    def check_prompts(self, prompts: dict[str, list[dict[str, Any]]], batch: int) -> None:
        """The words' places are those of one prompt."""
        several = len(prompts.get("positive", ()))
        if self.part == WORDS and several > 1:
            raise LoomError(f"part words knows the words' places in one positive prompt, and this run has {several} (areas, times or combined); use one prompt, or another part.")

    def has(self, call: AttentionCall) -> bool:
        """Whether heads of this call can be pruned."""
        return has_part(self.part, call, self.words)

    def share(self, call: AttentionCall, seen: Seen, draft: Draft) -> Tensor:
        """What the part adds to every head's result."""
        return share(self.part, call, seen, draft, self.owner, self.words)


@dataclass(frozen=True)
class Pruning(HeadPruning):
    """negative: the negative prompt is asked as well."""

    owner: ClassVar[str] = "Attention Inspector, pruning"

    negative: bool = False

    def check_prompts(self, prompts: dict[str, list[dict[str, Any]]], batch: int) -> None:
        """There must be a negative prompt where it is asked."""
        super().check_prompts(prompts, batch)
        if self.negative and not prompts.get("negative"):
            raise no_negative()

    def wants(self, call: AttentionCall) -> bool:
        """The pruned layer's attention over its own tokens."""
        return isinstance(call.extra, PrunePass) and call.block.ordinal in call.extra.heads and self.has(call)

    def contribute(self, call: AttentionCall, draft: Draft) -> None:
        """Stage 7, at full amount."""
        assert isinstance(call.extra, PrunePass)
        call.extra.touched.add(call.block)
        head = call.extra.heads[call.block.ordinal]
        if self.part != WHOLE:
            draft.rework(self.owner, lambda out: _less(out, self.share(call, call.seen, draft), head))  # type: ignore[arg-type]
            return
        if self.prune == "zero":
            draft.rework(self.owner, lambda out: _without(out, head))
            return
        amounts = tuple(1.0 if head in (None, h) else 0.0 for h in range(call.heads))
        draft.mix(self.owner, head_mix(amounts, PRUNE[self.prune], "all", call.q, str(call.device)))


def no_negative() -> LoomError:
    """The sentence where the direction of CFG has only one end."""
    return LoomError(
        "importance of the guidance compares the positive with the negative prompt, and this run evaluates no negative one (cfg 1, or a guider without it); raise cfg above 1, "
        "connect a negative prompt, or switch 'guidance' off."
    )


def _less(out: Tensor, share: Tensor, head: int | None) -> Tensor:
    """The result [B, H, Nq, D] less what a part adds to one head, or to all."""
    out = out.clone()
    out[:, slice(None) if head is None else head] -= share[:, slice(None) if head is None else head]
    return out


def _without(out: Tensor, head: int | None) -> Tensor:
    """The result [B, H, Nq, D] with one head, or all, put out."""
    out = out.clone()
    out[:, slice(None) if head is None else head] = 0
    return out
