"""What is known about one attention call: where it happens, what its tokens are, and how far the sampling is."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from ..kernels.caching import remembered

if TYPE_CHECKING:
    from .guidance import ExtraPass
    from .report import Run

T = TypeVar("T")
Project = Callable[[Tensor], tuple[Tensor, Tensor]]
Kind = Literal["self", "cross", "joint", "other"]
SpanKind = Literal["text", "image", "video", "reference", "other"]
QUEUE = "loom_queue"
"""Key in transformer_options under which the sampler of an endless clip says which of its windows a model call runs on."""


def window_of(options: Mapping[str, Any]) -> tuple[tuple[int, ...] | None, int]:
    """(absolute latent frames of the context window a model call runs on, how many in front are dropped again); None, 0 without one.

    Later hosts than 0.3.75 put the frame before a window in front of it, so that its first latent frame is not read as a clip's first.
    """
    window = options.get("context_window")
    if window is None:
        return None, 0
    anchor = getattr(window, "causal_anchor_index", None)
    if anchor is None or anchor < 0:
        return tuple(window.index_list), 0
    return (anchor, *window.index_list), 1


ROLES = {"positive": 0, "negative": 1}


def roles_of(prompts: Mapping[str, Any] | None) -> dict[Any, int]:
    """Identity of each conditioning of a guider -> what it is: 0 positive, 1 negative, 2 and up others (a guider's middle or empty prompt)."""
    others = [name for name in prompts or {} if name not in ROLES]
    numbers = ROLES | {name: len(ROLES) + i for i, name in enumerate(others)}
    return {entry.get("uuid"): numbers[name] for name, entries in (prompts or {}).items() for entry in entries}


def rows_of(options: Mapping[str, Any], roles: Mapping[Any, int]) -> tuple[int, ...]:
    """What each chunk of a model call's batch is, as :func:`roles_of` counts. The host's own numbers are places in a list, which some guiders
    fill in another order; they hold where a conditioning is not known.
    """
    numbers, uuids = tuple(options.get("cond_or_uncond", ())), options.get("uuids", ())
    if len(uuids) != len(numbers):
        return numbers
    # a window of an endless clip's queue has an identity of its own: that of its prompt, and its number
    return tuple(roles.get(u, roles.get(u[0], n) if isinstance(u, tuple) else n) for u, n in zip(uuids, numbers, strict=True))


@dataclass(frozen=True)
class Span:
    """A run of consecutive tokens of one meaning.

    grid (T, Y, X) in tokens, frame-major, for "image" (T = 1) and "video" spans; ``length`` is then T * Y * X.
    """

    kind: SpanKind
    length: int
    grid: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.grid is not None and self.grid[0] * self.grid[1] * self.grid[2] != self.length:
            raise ValueError(f"span of {self.length} tokens cannot have the grid {self.grid}")


@dataclass(frozen=True)
class TokenLayout:
    """The ordered spans of one side (queries or keys) of a call."""

    spans: tuple[Span, ...]

    @property
    def length(self) -> int:
        """Number of tokens."""
        return sum(s.length for s in self.spans)

    @property
    def grid_span(self) -> tuple[int, Span] | None:
        """Offset and span of the generated picture or video, or None."""
        offset = 0
        for span in self.spans:
            if span.grid is not None and span.kind in ("image", "video"):
                return offset, span
            offset += span.length
        return None

    @property
    def grid(self) -> tuple[int, int, int] | None:
        """(T, Y, X) of the generated picture or video in tokens."""
        found = self.grid_span
        return None if found is None else found[1].grid

    def range(self, kind: SpanKind) -> tuple[int, int] | None:
        """[lo, hi) of the first span of that kind, or None."""
        offset = 0
        for span in self.spans:
            if span.kind == kind:
                return offset, offset + span.length
            offset += span.length
        return None

    def along(self, values: Tensor, outside: float) -> Tensor:
        """[N, ...]: values [T * Y * X, ...] of the grid's tokens at their places, ``outside`` for all other tokens."""
        out = torch.full((self.length, *values.shape[1:]), outside, dtype=values.dtype, device=values.device)
        if self.grid_span is not None:
            offset, span = self.grid_span
            out[offset : offset + span.length] = values
        return out

    def frame_ids(self, device: torch.device) -> Tensor:
        """int16 [N]: frame of each grid token, -1 outside the grid. Cached: the same tensor for the same layout."""
        return _frame_ids(self, str(device))

    def positions(self, device: torch.device) -> Tensor:
        """int32 [N]: flat position in the grid, -1 outside. Cached."""
        return _positions(self, str(device))


@remembered(64)
def _frame_ids(layout: TokenLayout, device: str) -> Tensor:
    flat = _positions(layout, "cpu")
    found = layout.grid_span
    if found is not None and found[1].grid is not None:
        _, y, x = found[1].grid
        flat = torch.where(flat < 0, flat, flat // (y * x))
    return flat.to(torch.int16).to(device)


@remembered(64)
def _positions(layout: TokenLayout, device: str) -> Tensor:
    flat = torch.full((layout.length,), -1, dtype=torch.int32)
    found = layout.grid_span
    if found is not None:
        lo, span = found
        flat[lo : lo + span.length] = torch.arange(span.length, dtype=torch.int32)
    return flat.to(device)


@dataclass(frozen=True)
class Block:
    """Where a call happens. kind: the family's own word ("double", "single", "block", "input", ...); index within kind.

    ``sub`` counts transformer layers inside one UNet block; ``ordinal`` is the position among all blocks of the model
    in execution order, ``total`` their number (0 where unknown). ``level``: how often a UNet has halved the picture there.
    """

    kind: str
    index: int
    ordinal: int = -1
    total: int = 0
    sub: int = 0
    level: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return f"{self.kind} {self.index}" + (f".{self.sub}" if self.kind in ("input", "middle", "output") else "")


@dataclass(frozen=True)
class Geometry:
    """What one model call says about its tokens, before any attention runs.

    grid (T, Y, X) in tokens after patchify; text, reference: tokens of those kinds if the family can tell; still: the
    latent has no time axis (a picture). batch: pictures in the latent, 0 where it is not known.
    """

    grid: tuple[int, int, int]
    text: int = 0
    reference: int = 0
    still: bool = False
    note: str = ""
    batch: int = 0


def step_of(progress: float, steps: int) -> int:
    """The scheduled step at a place in the schedule, 0 first; a place between two steps belongs to the earlier one."""
    return math.floor(progress * steps + 1e-3)


@dataclass(frozen=True)
class AttentionCall:
    """Everything known about one attention call.

    heads: query heads; width: head width. sigma: noise level of the step; progress: place in the schedule, 0 first, 1
    last. rows: per chunk of the batch 0 = positive conditioning, 1 = negative, as the host orders them; frames: absolute
    latent frames of this context window, or None; lead: how many of them stand in front of it and are dropped again. uuids:
    identity of the conditioning of each chunk; steps: of the run. turn: how many calls of this block and kind came before it in
    the same model call (VACE: one for each control video). replaced: the
    blocks other nodes replace in this model call: an extra pass that skips or perturbs layers differs from the main one in them.
    extra: the extra pass of a guidance method, None in the main one.
    done: where this run is only a part of a schedule (a second sampler, denoise below 1), its place in the whole by the model's own
    clock, 0 first, 1 last; None where it is the whole. rope, plane: the temporal and the spatial rotary axes, as the family adapter reads them.
    project: keys and values [1, M, C] that this cross-attention makes of another text [1, M, width], None elsewhere.
    seen: the call's own tensors, for methods whose factors depend on them.
    queue: the window of an endless clip's queue this call runs on, None elsewhere.
    """

    family: str
    block: Block
    kind: Kind
    heads: int
    width: int
    q: TokenLayout
    k: TokenLayout
    sigma: float
    progress: float
    rows: tuple[int, ...]
    batch: int
    device: torch.device
    dtype: torch.dtype
    frames: tuple[int, ...] | None = None
    lead: int = 0
    uuids: tuple[object, ...] = ()
    rope: object | None = None
    plane: object | None = None
    steps: int = 0
    done: float | None = None
    turn: int = 0
    replaced: tuple[str, ...] = ()
    run: Run | None = field(default=None, compare=False, repr=False)
    extra: ExtraPass | None = field(default=None, compare=False, repr=False)
    project: Project | None = field(default=None, compare=False, repr=False)
    seen: Seen | None = field(default=None, compare=False, repr=False)
    queue: QueueWindow | None = field(default=None, compare=False, repr=False)

    @property
    def step(self) -> int:
        """The scheduled step this call belongs to, 0 first; samplers that evaluate between two steps belong to the earlier one."""
        return step_of(self.progress, self.steps)

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make()`` gives, made once per run. Never in inference mode, whose tensors could not take part in a gradient later."""

        def plain() -> T:
            with torch.inference_mode(False):
                return make()

        return plain() if self.run is None else self.run.kept(key, plain)


@dataclass(frozen=True, eq=False)
class QueueWindow:
    """One model call of an endless clip, whose frames stand at different noise levels.

    number: of the window, 0 at the clean end, of ``count``; frames: absolute latent frames of the finished clip; iteration: one per
    frame that leaves; leaves: place of that frame in the window at the clean end; lap: changes when the window has new content throughout, so what was learned of the old one is stale.
    scene: frame from which the positive prompt of this call holds. memory: what is remembered from earlier iterations, by name.
    notes: what a method writes down in this call and reads later in it.
    """

    number: int
    count: int
    frames: tuple[int, ...]
    iteration: int
    lap: int
    scene: int = 0
    leaves: int = 0
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    notes: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Seen:
    """One attention call as the model made it, for those who only look: before anything a method does to it.

    q [B, H, Nq, D], k, v [B, Hk, Nk, D]; mask: the host's own, as it came; scale: None = D^-0.5. dense(q, k, v, mask=None) ->
    [B, H, Nq, D] runs the attention the user chose on other tensors, with logits scaled by D^-0.5.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    scale: float | None
    dense: Callable[..., Tensor]
