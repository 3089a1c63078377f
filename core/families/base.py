"""What a family adapter tells: a table row, not a fork of a forward.

An adapter recognises a model class, reads the token grid from the arguments of one model call, makes the host mark which
block is running, and turns the shapes of an attention call into token layouts. It never changes a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..call import Block, Geometry, Kind, Span, TokenLayout

MARK = "loom_block"
"""Key in transformer_options under which the running block is published."""


@dataclass(eq=False)
class Mark:
    """The running block. A fresh one for every execution of a block, so ``calls`` counts its attention calls from zero."""

    block: Block
    calls: int = 0
    hint: str = ""


@dataclass(frozen=True)
class Place:
    """Where a call happens, as the adapter read it."""

    block: Block
    kind: Kind
    q: TokenLayout
    k: TokenLayout


class Unclear(Exception):
    """The arithmetic of a call does not close; the message says which numbers. The call stays stock, the report says why."""


@dataclass(frozen=True, eq=False)
class RopeAxis:
    """The temporal axis of a rotary embedding.

    per_frame fp64 [n]: radians per latent frame, descending. pair_of int64 [H|1, D/2]: which of the n frequencies turns a
    channel pair, -1 = none (other axes). times(T) -> [T]: temporal position in latent frames. pairing as in
    :class:`kernels.plan.Rotation`.
    """

    per_frame: Tensor
    pair_of: Tensor
    pairing: Literal["interleaved", "halves"] = "interleaved"
    times: Callable[[int], Tensor] = field(default=lambda frames: torch.arange(frames, dtype=torch.float64))


class Family:
    """Base of all adapters."""

    name: ClassVar[str]
    """As the user reads it."""
    classes: ClassVar[tuple[str, ...]]
    """Names of the host's diffusion-model classes."""
    video: ClassVar[bool] = False
    positions_in_model_dtype: ClassVar[bool] = False
    refused: ClassVar[dict[str, str]] = {}
    """Class names that look like this family but cannot be hooked, with the reason."""

    def matches(self, model: Any) -> bool:
        """Whether a diffusion model (``model.diffusion_model``) belongs to this family."""
        return any(c.__name__ in self.classes for c in type(model).__mro__)

    def blocks(self, model: Any) -> list[Block]:
        """All blocks in order of execution."""
        raise NotImplementedError

    def install(self, patcher: Any) -> None:
        """Put what cannot be put at run time on the clone (object patches). Called once per clone chain."""

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Geometry:
        """Token grid of one model call. x: the latent [B, C, (T,) h, w]; extra: the keyword conditions."""
        raise NotImplementedError

    def mark(self, options: dict[str, Any], model: Any) -> None:
        """Make the running block known: edits ``options``, the wrapper's own copy of transformer_options."""
        raise NotImplementedError

    def place(self, options: dict[str, Any], geometry: Geometry, nq: int, nk: int) -> Place:
        """Where a call with nq queries and nk keys happens. Raises Unclear."""
        raise NotImplementedError

    def rope(self, model: Any) -> RopeAxis | None:
        """The temporal rotary axis, or None."""
        return None


# --- helpers the adapters share -------------------------------------------------------------------------------------


def tokens(size: int, patch: int) -> int:
    """Tokens along one axis: the host pads a latent up to whole patches."""
    return -(-size // patch)


def grid_span(geometry: Geometry) -> Span:
    """The generated picture or video as a span."""
    t, y, x = geometry.grid
    return Span("image" if geometry.still else "video", t * y * x, geometry.grid)


def layout(*spans: Span) -> TokenLayout:
    """Spans in order, empty ones left out."""
    return TokenLayout(tuple(s for s in spans if s.length))


def number(groups: dict[str, int]) -> list[Block]:
    """Blocks of kinds that run one after another, numbered through: {"double": 19, "single": 38}."""
    total = sum(groups.values())
    out: list[Block] = []
    for kind, count in groups.items():
        out.extend(Block(kind, i, len(out) + i - 0, total) for i in range(count))
    return [Block(b.kind, b.index, n, total) for n, b in enumerate(out)]


def mark_dit(options: dict[str, Any], blocks: list[Block], names: dict[str, str]) -> None:
    """Publish the running block through ``patches_replace["dit"]``, composing with what is there.

    names: our kind of block -> the host's name of the replace slot ("double_block", "single_block").
    """
    patches = dict(options.get("patches_replace", {}))
    slots = dict(patches.get("dit", {}))
    for block in blocks:
        slot = (names[block.kind], block.index)
        slots[slot] = _marking(block, slots.get(slot))
    options["patches_replace"] = patches | {"dit": slots}


def _marking(block: Block, previous: Callable[..., Any] | None) -> Callable[..., Any]:
    def replace(args: dict[str, Any], extra: dict[str, Any]) -> Any:
        args = args | {"transformer_options": args["transformer_options"] | {MARK: Mark(block)}}
        if previous is not None:
            return previous(args, extra)
        return extra["original_block"](args)

    return replace


def mark_forward(patcher: Any, path: str, block: Block) -> None:
    """Publish the running block by an object patch on its ``forward`` (families without a block replace).

    path: of the block below the model, for instance "diffusion_model.layers.3".
    """
    original = patcher.get_model_object(f"{path}.forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        options = kwargs.get("transformer_options")
        if options:
            kwargs["transformer_options"] = options | {MARK: Mark(block)}
        return original(*args, **kwargs)

    patcher.add_object_patch(f"{path}.forward", forward)


def running(options: dict[str, Any]) -> Mark | None:
    """The block that runs, or None outside of blocks (text refiners, embedders)."""
    return options.get(MARK)
