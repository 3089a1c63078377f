"""Sparse attention: a pattern of blocks in place of all pairs of tokens.

The patterns themselves are in ``kernels/patterns``; this file decides where one acts: self- and joint attention with enough
tokens, outside of the blocks that stay dense, on each conditioning by itself. Text, reference and unexplained tokens are
always read and always read everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ...kernels.patterns.base import Moment, Pattern, Situation, Tokens
from ...kernels.patterns.fit import Choice, fit
from ...kernels.patterns.rettention import Rettention
from ...kernels.sparse import Sparse
from ..errors import LoomError
from ..race import Race
from ..schedule import BlockSelection
from .base import Method

if TYPE_CHECKING:
    from ..call import AttentionCall, Geometry, QueueWindow, TokenLayout
    from ..families.base import Family
    from ..report import Run
    from ..weave import Draft


@dataclass(frozen=True)
class SparseAttention(Method):
    """Settings. choice: which pattern, how dense (see :class:`kernels.patterns.fit.Choice`).

    dense_blocks: blocks left alone (empty selection: none). min_tokens: calls with fewer tokens stay dense. measure: on a
    GPU, time sparse against dense once per run and stay dense where sparse is not faster.
    """

    owner: ClassVar[str] = "Sparse Attention"

    choice: Choice
    dense_blocks: BlockSelection | None = None
    min_tokens: int = 8192
    measure: bool = True

    @property
    def off(self) -> bool:
        """Everything is kept: nothing changes."""
        return super().off or self.choice.density >= 1.0

    @property
    def needs_grid(self) -> bool:  # type: ignore[override]
        """A pattern over frames or pictures must not be switched off silently where the grid cannot be told."""
        return self.choice.kind.needs_grid

    def check_run(self, family: Family, geometry: Geometry, warn: Any) -> None:
        """Refuse a pattern without meaning for the latent before the first step."""
        t, y, x = geometry.grid
        try:
            chosen, note = fit(self.choice, Tokens(t * y * x, geometry.grid))
            chosen.check(Tokens(t * y * x, geometry.grid))
        except ValueError as error:
            raise LoomError(f"{self.owner}: {error}") from error
        for line in note.splitlines():
            warn(line)
        if t * y * x < self.min_tokens:
            warn(f"{t * y * x} tokens are fewer than min_tokens {self.min_tokens}: attention this short is as fast dense, so nothing is made sparse; lower min_tokens to try it")

    def wants(self, call: AttentionCall) -> bool:
        """Attention of the generated tokens among themselves."""
        return super().wants(call) and call.kind in ("self", "joint") and call.q == call.k

    def contribute(self, call: AttentionCall, draft: Draft) -> None:
        """Stage 5: the pattern, bound to this call."""
        tokens = tokens_of(call.q)
        reason = self._rests(call, tokens)
        if reason:
            draft.leave(self.owner, reason)
            return
        try:
            pattern, note = fit(self.choice, tokens)
            pattern.check(tokens)
            if isinstance(pattern, Rettention):
                pattern = replace(pattern, layers=max(1, call.block.total))
        except ValueError as error:
            raise LoomError(f"{self.owner}, {call.block}: {error}") from error
        if call.run is not None:
            for line in note.splitlines():
                call.run.warn(line)
        race = self._race(call, pattern, tokens)
        if race is not None and race.lost:
            draft.leave(self.owner, f"{race.verdict}, {tokens.count} tokens: dense is as fast here")
            return

        def heard(s: Situation) -> None:
            if race is not None:
                race.note = s.note
            if call.run is not None:
                call.run.sparse(pattern.label, s.note, s.densities, s.facts)

        draft.prefer(self.owner, self.backend)
        draft.sparsify(self.owner, Sparse(pattern, tokens, Moment(call.progress, call.steps), parts(call, pattern), heard))
        draft.race = race

    def _rests(self, call: AttentionCall, tokens: Tokens) -> str:
        if tokens.count < self.min_tokens:
            return f"{tokens.count} tokens, fewer than min_tokens {self.min_tokens}"
        if self.dense_blocks is not None and call.block in self.dense_blocks:
            return f"dense_blocks '{self.dense_blocks.text}'"
        return ""

    def _race(self, call: AttentionCall, pattern: Pattern, tokens: Tokens) -> Race | None:
        if not self.measure or call.device.type != "cuda" or call.run is None:
            return None
        key = ("race", pattern.label, tokens, call.heads, call.width, call.dtype, call.batch, str(call.device))
        return call.run.kept(key, Race)


UNUSED = 2
"""Steps after which a context window that was not seen again is forgotten: some schedules move the windows with every step."""


@dataclass
class Memory:
    """What a pattern remembers of one conditioning in one block, by context window; freed with the run.

    The windows of an endless clip's queue move with every frame: they are told apart by their conditionings, and what was learned
    is dropped when a window's content has been replaced once.
    """

    states: dict[tuple[int, ...] | None, dict[Any, Any]] = field(default_factory=dict)
    seen: dict[tuple[int, ...] | None, float] = field(default_factory=dict)
    lap: int | None = None

    def state(self, frames: tuple[int, ...] | None, progress: float, steps: int, queue: QueueWindow | None = None) -> dict[Any, Any]:
        """Of the window with these latent ``frames``, made on first use."""
        if queue is not None:
            if queue.lap != self.lap:
                self.states.clear()
                self.lap = queue.lap
            return self.states.setdefault(None, {})
        self.seen[frames] = progress
        if steps:
            for old in [f for f, at in self.seen.items() if at < progress - (UNUSED + 0.5) / steps]:
                del self.seen[old], self.states[old]
        return self.states.setdefault(frames, {})


def tokens_of(layout: TokenLayout) -> Tokens:
    """The layout as patterns see it: a grid, and everything else free."""
    found = layout.grid_span
    return Tokens(layout.length) if found is None else Tokens(layout.length, found[1].grid, found[0])


def parts(call: AttentionCall, pattern: Pattern) -> tuple[tuple[int, dict[Any, Any]], ...]:
    """(batch rows, memory) of each conditioning in the batch.

    Keyed by the conditioning itself, not by its place in the batch: the host may run it alone or together with others, in
    either order, over several context windows, and once more with layers skipped or perturbed, for guidance.
    """
    chunks = max(1, len(call.rows))
    if call.batch % chunks:
        chunks = 1
    run: Run | None = call.run
    if run is None:
        return ((call.batch, {}),)
    who = call.uuids if len(call.uuids) == chunks else call.rows if len(call.rows) == chunks else (None,)
    rows = call.batch // chunks
    key = (pattern.label, call.block, call.kind, call.turn, call.replaced, call.q, call.heads, call.width, rows, str(call.device))
    return tuple((rows, run.kept(("sparse", w, *key), Memory).state(call.frames, call.progress, call.steps, call.queue)) for w in who)
