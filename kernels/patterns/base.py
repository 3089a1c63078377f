"""What every sparse pattern is: a frozen description that turns a call into a :class:`BlockPlan`.

Three sorts, by what they look at:

* geometry (radial, clear, sliding tile): derive from :class:`GeometryPattern` and override :meth:`GeometryPattern.make`;
* q and k of the call (draft, SLA's top-k): override :meth:`Pattern.blocks` and read them;
* history (AdaSpa, SparseD, Re-ttention): override :meth:`Pattern.run`, keep what they learn in ``situation.state``, which
  belongs to one conditioning in one block of the model and is freed when sampling ends.

Free tokens, that is everything outside the grid (text, references, unexplained tokens), are always read and always read
everything: :meth:`Pattern.with_free` forces their rows and columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..blocks import BlockPlan, Tail, TokenOrder
from ..caching import remembered
from ..plan import AttentionPlan, RowAffine

Core = Callable[[Tensor, Tensor, Tensor, AttentionPlan, bool], tuple[Tensor, Tensor | None]]
"""(q, k, v, plan of logit parts, lse wanted) -> (o, lse or None): runs any plan on the backend of the call."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a self- or joint attention: ``count`` in all, a grid (T, Y, X) of them from token ``start`` on, or none."""

    count: int
    grid: tuple[int, int, int] | None = None
    start: int = 0

    @property
    def inside(self) -> int:
        """Tokens on the grid."""
        return 0 if self.grid is None else self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def free(self) -> int:
        """Tokens outside of the grid."""
        return self.count - self.inside


@dataclass(frozen=True)
class Moment:
    """Where in the sampling a call happens. progress: 0 first step, towards 1; steps: model steps of the run (0 unknown).

    A step number is ``progress * steps``; samplers that evaluate between steps give fractions.
    """

    progress: float = 0.0
    steps: int = 0

    @property
    def step(self) -> float:
        """Number of the step, 0-based."""
        return self.progress * self.steps


@dataclass
class Situation:
    """One conditioning's part of one attention call, after rotation.

    q [b,H,N,D], k, v [b,Hk,N,D]; plan: logit parts of the call without blocks; scale: on the logits; lse: whether the caller
    wants the log-sum-exp. state: what this (conditioning, block, shape) remembers. note: collects what was done, for the
    report: "sparse", "dense: search", ... ; densities: device scalars of the plans run; facts: other numbers worth reporting
    by name ("recall", "overlap"), device scalars.
    """

    tokens: Tokens
    moment: Moment
    q: Tensor
    k: Tensor
    v: Tensor
    plan: AttentionPlan
    scale: float
    lse: bool
    state: dict[Any, Any] = field(default_factory=dict)
    backend: str = "auto"
    note: str = ""
    densities: list[Tensor] = field(default_factory=list)
    facts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Pattern(ABC):
    """Base of all patterns. block: tokens per query and key block, 64 or 128. tail: see :class:`BlockPlan`."""

    name: ClassVar[str]
    """As in the node's list."""
    reads: ClassVar[Literal["geometry", "q and k", "history"]]
    needs_grid: ClassVar[bool] = False
    """Whether the pattern has no meaning without a grid of tokens."""
    needs_lse: ClassVar[bool] = False
    """Whether :meth:`run` asks the core for the log-sum-exp."""

    block: int = field(default=128, kw_only=True)
    tail: Tail = field(default="off", kw_only=True)

    @property
    @abstractmethod
    def label(self) -> str:
        """Name and settings in one word, for reports and benchmarks: ``radial_b128_d0.20_sink``."""

    def check(self, tokens: Tokens) -> None:
        """Raise ValueError with one clear sentence if the pattern has no meaning for these tokens."""
        if self.needs_grid and tokens.grid is None:
            raise ValueError(f"the pattern {self.name} needs a grid of tokens and this model has none; choose adaspa, sparsed or sla_topk")

    @abstractmethod
    def blocks(self, s: Situation) -> BlockPlan:
        """The blocks to read. For patterns with a history: what a sparse step reads now."""

    def run(self, s: Situation, core: Core) -> tuple[Tensor, Tensor | None]:
        """(o, lse if wanted) of the call. Patterns with a history decide here between searching and reusing."""
        return self.sparse(s, core, self.blocks(s))

    def sparse(self, s: Situation, core: Core, blocks: BlockPlan, lse: bool | None = None, affine: RowAffine | None = None) -> tuple[Tensor, Tensor | None]:
        """Run one plan of blocks and note it. affine: applied to what the blocks give."""
        s.note = s.note or "sparse"
        s.densities.append(blocks.density())
        return core(s.q, s.k, s.v, replace(s.plan, blocks=blocks, row_affine=affine), s.lse if lse is None else lse)


@dataclass(frozen=True)
class GeometryPattern(Pattern):
    """Base of the patterns that look at the tokens alone: one plan for all heads, layers and steps, made once and kept."""

    reads: ClassVar[Literal["geometry", "q and k", "history"]] = "geometry"

    @abstractmethod
    def make(self, tokens: Tokens, device: str) -> BlockPlan:
        """The plan, from nothing but the tokens and the settings."""

    def plan(self, tokens: Tokens, device: str = "cpu") -> BlockPlan:
        """The plan for ``tokens``; the same object for the same question. Raises ValueError where it has no meaning."""
        self.check(tokens)
        return _made(self, tokens, device)

    def blocks(self, s: Situation) -> BlockPlan:
        return self.plan(s.tokens, str(s.q.device))


@remembered(8)
def _made(pattern: GeometryPattern, tokens: Tokens, device: str) -> BlockPlan:
    return pattern.make(tokens, device)


def with_free(mask: Tensor, q: TokenOrder, k: TokenOrder) -> Tensor:
    """``mask`` bool [..., nQ, nK] with the rows and columns of free tokens set."""
    out = mask.clone()
    out[..., q.grid_blocks :, :] = True
    out[..., :, k.grid_blocks :] = True
    return out
