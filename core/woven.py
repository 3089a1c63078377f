"""One model call in which methods act: the attention override that reads each call, weaves the methods and runs what they made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..kernels import Trace, attend
from . import signature
from .call import QUEUE, AttentionCall, Block, Seen, rows_of, window_of
from .errors import LoomError
from .families.base import Mark, Place, Unclear, running
from .parted import parted
from .report import Entry
from .weave import Draft, weave

if TYPE_CHECKING:
    from .families.base import Family, Laid, RopeAxis, RopePlane
    from .guidance import ExtraPass
    from .methods.base import Method
    from .report import Run


@dataclass(eq=False)
class Woven:
    """What is known of one model call, and its override.

    methods: those that act at this noise level; previous: the override that was there, another pack's or None; replaced: names of
    the blocks and attentions other nodes replace; extra: the extra pass this call belongs to. The rest as in :class:`AttentionCall`.
    """

    methods: tuple[Method, ...]
    family: Family
    diffusion: Any
    geometry: Laid
    run: Run
    sigma: float
    progress: float
    steps: int
    done: float | None
    rope: RopeAxis | None
    plane: RopePlane | None
    previous: Callable[..., Tensor] | None
    replaced: tuple[str, ...]
    extra: ExtraPass | None
    turns: Counter[tuple[Block, str]] = field(default_factory=Counter)

    def override(self, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The host calls this instead of its attention."""
        try:
            sig = signature.read(func, *args, **kwargs)
        except TypeError as error:
            self.run.count(Entry("unreadable call", False, "host", reason=str(error)))
            return func(*args, **kwargs) if self.previous is None else self.previous(func, *args, **kwargs)
        mark = running(sig.options)
        methods = self.methods
        try:
            call = self._call(sig, self._place(sig))
        except Unclear as error:
            self._insist(mark, error)
            methods = tuple(m for m in methods if m.counts_tokens)
            place = self.family.merged(sig.options, sig.q.shape[2], sig.k.shape[2]) if methods else None
            if place is None:
                self.run.count(Entry("call not understood", False, self._host, reason=str(error)))
                return sig.stock(self.previous)
            call = self._call(sig, place)
        finally:
            if mark is not None:
                mark.calls += 1
        draft = weave(methods, call, lambda method: True)
        out = self._execute(sig, call, draft)
        for owner, reader in draft.readers if self.extra is None else ():  # what is read is the attention of the main pass
            reader(call.seen)  # type: ignore[arg-type]
            self.run.read(owner)
        for owner, tap in draft.taps:
            out = out + sig.give(tap(call.seen)).to(out.dtype)  # type: ignore[arg-type]
            self.run.read(owner)
        return out

    def _insist(self, mark: Mark | None, error: Unclear) -> None:
        """Outside the blocks (refiners, embedders) an unknown call is nobody's business; inside it may not pass silently."""
        strict = [m.owner for m in self.methods if m.needs_grid and (mark is None or mark.block in m.blocks)]
        if mark is not None and strict:
            raise LoomError(
                f"{strict[0]} cannot tell the video tokens of {mark.block} apart: {error}. A node that packs, tiles or concatenates latents probably "
                "changed the token layout; take it out, or take this method out."
            ) from error

    @property
    def _host(self) -> str:
        return "host" if self.previous is None else "host, through another pack's override"

    def _place(self, sig: signature.Signature) -> Place:
        place = self.family.place(sig.options, self.geometry, sig.q.shape[2], sig.k.shape[2])
        for side, layout, n in (("queries", place.q, sig.q.shape[2]), ("keys", place.k, sig.k.shape[2])):
            if layout.length != n:
                raise Unclear(f"{place.block} {place.kind}: {n} {side}, but the tokens known make {layout.length}")
        return place

    def _window(self, options: dict[str, Any]) -> tuple[tuple[int, ...] | None, int]:
        """Frames of the context window as tokens count them, where one token holds several latent frames."""
        frames, lead = window_of(options)
        held = self.family.frames_per_token(self.diffusion)
        if frames is None or held == 1:
            return frames, lead
        if lead or frames[0] % held:
            self.run.warn(
                f"a context window begins at latent frame {frames[lead]}, within the {held} frames of one token; choose windows and overlaps that are multiples of {held}"
            )
        return tuple(frame // held for frame in frames[::held]), -(-lead // held)

    def _call(self, sig: signature.Signature, place: Place) -> AttentionCall:
        frames, lead = self._window(sig.options)
        turn = self.turns[place.block, place.kind]
        self.turns[place.block, place.kind] += 1
        return AttentionCall(
            family=self.family.name,
            block=place.block,
            kind=place.kind,
            heads=sig.heads,
            width=sig.q.shape[3],
            q=place.q,
            k=place.k,
            sigma=self.sigma,
            progress=self.progress,
            rows=rows_of(sig.options, self.run.roles),
            batch=sig.q.shape[0],
            device=sig.q.device,
            dtype=sig.q.dtype,
            frames=frames,
            lead=lead,
            uuids=tuple(sig.options.get("uuids", ())),
            rope=self.rope,
            plane=self.plane,
            steps=self.steps,
            done=self.done,
            turn=turn,
            replaced=self.replaced,
            run=self.run,
            extra=self.extra,
            project=self.family.text_reader(self.diffusion, place.block, turn) if place.kind == "cross" else None,
            seen=Seen(sig.q, sig.k, sig.v, sig.mask, sig.scale, sig.dense(self.previous)),
            queue=sig.options.get(QUEUE),
        )

    def _execute(self, sig: signature.Signature, call: AttentionCall, draft: Draft) -> Tensor:
        if draft.parts:
            return self._parted(sig, draft)
        replaced = draft.replaced()
        out = self._planned(sig if replaced is None else sig.reading(*replaced), call, draft)
        if draft.results or draft.reworks:
            result = sig.take(out)
            for _, reader in draft.results:
                reader(result)
            made = draft.reworked(result)
            out = out if made is result else sig.give(made)
        return out

    def _planned(self, sig: signature.Signature, call: AttentionCall, draft: Draft) -> Tensor:
        """The call by its plan, on the keys and values in ``sig``."""
        plan = draft.plan()
        if plan.empty:
            owners = draft.owners if draft.beside else ()
            self.run.count(Entry(call.kind, bool(owners), self._host, owners, draft.beside, "; ".join(draft.reasons)), call)
            return sig.stock(self.previous)
        try:
            bias = sig.key_bias()
        except ValueError as error:
            self.run.warn(f"{', '.join(draft.owners)} left calls alone: {error}")
            self.run.count(Entry(call.kind, False, self._host, reason=str(error)), call)
            return sig.stock(self.previous)
        parts, alone = tuple(sorted({*plan.features, *draft.beside})), plan.without("blocks").empty
        owners, backend = draft.owners, draft.backend()
        if bias is not None:
            draft.bias("the prompt's padding mask", bias)
            plan = draft.plan()
        trace, dense, race = Trace(), sig.dense(self.previous), draft.race

        def work() -> Any:
            trace.declined.clear()
            return attend(sig.q, sig.k, sig.v, plan, scale=sig.scale, backend=backend, dense=dense, trace=trace)

        def without_sparse() -> Any:
            """What this call would be if it stayed dense: stock, or what the other methods make of it."""
            if alone:
                return sig.stock(self.previous)
            return attend(sig.q, sig.k, sig.v, plan.without("blocks"), scale=sig.scale, backend=backend, dense=dense)

        out = self.run.timed(work if race is None or plan.blocks is None else lambda: race.run(work, without_sparse))
        declined = "; ".join(dict.fromkeys([*draft.reasons, *(f"{name}: {why}" for name, why in trace.declined)]))
        self.run.count(Entry(call.kind, True, self._host if trace.backend == "host" else trace.backend, owners, parts, declined), call)
        return sig.give(out)

    def _parted(self, sig: signature.Signature, draft: Draft) -> Tensor:
        """Each part of the batch by its own plan."""
        out: Tensor | None = None
        for elements, part in parted(draft):
            made = self._execute(sig.only(elements), part.call, part)
            out = made.new_empty(sig.q.shape[0], *made.shape[1:]) if out is None else out
            out[list(elements)] = made
        assert out is not None
        return out
