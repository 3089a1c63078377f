"""What a family adapter tells: a table row, not a fork of a forward.

An adapter recognises a model class, reads the token grid from the arguments of one model call, makes the host mark which
block is running, and turns the shapes of an attention call into token layouts. It never changes a tensor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..call import Block, Geometry, Kind, Project, Span, TokenLayout
from ..prefix import PREFIX, Prefix
from ..relay import Handing

MARK = "loom_block"
"""Key in transformer_options under which the running block is published."""

HEAD_COUNTS = ("num_heads", "n_heads", "num_attention_heads", "heads")
"""Names under which the host's models keep their number of heads, the whole model first."""


@dataclass(eq=False)
class Mark:
    """The running block. A fresh one for every execution of a block, so ``calls`` counts its attention calls from zero.

    hint: which of a block's attentions runs, where the host tells ("attn1", "attn2" of a UNet). text: tokens the host
    handed to the blocks as text, which can be more than the prompt has; None where the host does not tell.
    """

    block: Block
    calls: int = 0
    hint: str = ""
    text: int | None = None


NOTHING = TokenLayout(())


@dataclass(frozen=True)
class Laid(Geometry):
    """A geometry that already knows the order of the tokens.

    sequence: what the blocks run on: all tokens of a joint attention, or the queries of self- and cross-attention.
    prompt: the text alone, as a cross-attention or a text refiner reads it. sound: tokens of sound that stand apart.
    """

    sequence: TokenLayout = NOTHING
    prompt: TokenLayout = NOTHING
    sound: TokenLayout = NOTHING


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
    channel pair, -1 = none (other axes). times(T) -> fp64 [T]: temporal position of each latent frame, in latent frames; the
    stock angle of frame t is ``per_frame * times(T)[t]`` up to a constant. pairing as in :class:`kernels.plan.Rotation`.
    references_in_line: whole reference frames before and behind the video take part in its count of time.
    """

    per_frame: Tensor
    pair_of: Tensor
    pairing: Literal["interleaved", "halves"] = "interleaved"
    references_in_line: bool = False
    times: Callable[[int], Tensor] = field(default=lambda frames: torch.arange(frames, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class RopePlane:
    """The two axes of a rotary embedding that lie in the picture.

    freqs fp64 [2, H|1, D/2]: radians per token downwards and to the right, 0 where an axis does not turn a channel pair; pairing
    as in :class:`kernels.plan.Rotation`.
    """

    freqs: Tensor
    pairing: Literal["interleaved", "halves"] = "interleaved"


class Family(ABC):
    """Base of all adapters."""

    name: ClassVar[str]
    """As the user reads it."""
    classes: ClassVar[tuple[str, ...]]
    """Names of the host's diffusion-model classes."""
    video: ClassVar[bool] = False
    positions_in_model_dtype: ClassVar[bool] = False
    joint: ClassVar[bool] = False
    """Whether text and picture stand in one attention."""
    stacks: ClassVar[dict[str, str]] = {}
    """Kind of main block -> where the model keeps those blocks, in order of execution."""
    slots: ClassVar[dict[str, str]] = {}
    """Kind of main block -> the host's name of its block replace. Blocks without one are marked by their ``forward``."""
    side_stacks: ClassVar[dict[str, str]] = {}
    """Kind -> where the model keeps blocks that are not main ones: refiners, control blocks."""
    whole_blocks: ClassVar[bool] = True
    """Whether a block's work can be taken over as a whole (``core/prefix.py``)."""
    word_stacks: ClassVar[tuple[str, ...]] = ()
    """Kinds of main block whose joint attention tells where each token of the prompt acts in a picture. Empty where the text that
    stands there is not the conditioning, token by token."""
    refused: ClassVar[dict[str, str]] = {}
    """Class names that look like this family but cannot be hooked, with the reason."""

    def matches(self, model: Any) -> bool:
        """Whether a diffusion model (``model.diffusion_model``) belongs to this family."""
        return any(c.__name__ in self.classes for c in type(model).__mro__)

    def refuses(self, model: Any) -> str | None:
        """The class of :attr:`refused` a diffusion model is of, None where it can be used."""
        return next((c.__name__ for c in type(model).__mro__ if c.__name__ in self.refused), None)

    def blocks(self, model: Any) -> list[Block]:
        """The main blocks in order of execution: what a user's block selection counts. Refiners and side blocks are not in it."""
        return number({kind: len(_stack(model, path)) for kind, path in self.stacks.items()})

    def heads(self, model: Any, block: Block) -> int:
        """Query heads of a main block's own attention. All blocks have the same number, but in U-Nets."""
        found = (getattr(module, name, None) for module in model.modules() for name in HEAD_COUNTS)
        return next(n for n in found if isinstance(n, int))

    def batch_axis(self, model: Any) -> int:
        """The axis of the batch in what a block gives."""
        return 0

    def frames_per_token(self, model: Any) -> int:
        """Latent frames that one token holds."""
        return 1

    def install(self, patcher: Any) -> None:
        """Put what cannot be put at run time on the clone (object patches). Called once per clone chain."""
        model = patcher.get_model_object("diffusion_model")
        marked = [(self.stacks[b.kind], b) for b in self.blocks(model) if b.kind in self.stacks and b.kind not in self.slots]
        marked += [(path, Block(kind, index)) for kind, path in self.side_stacks.items() for index, _ in enumerate(_stack(model, path))]
        for path, block in marked:
            mark_forward(patcher, f"diffusion_model.{path}.{block.index}", block, self.whole(block))

    def whole(self, block: Block) -> bool:
        """Whether the work of this block can be taken over as a whole."""
        return self.whole_blocks

    @abstractmethod
    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        """Token grid of one model call. x: the latent [B, C, (T,) h, w]; context: [B, N, C] or None; extra: the keyword
        conditions. Raises IndexError for a latent of the wrong rank, nothing else.
        """

    def mark(self, options: dict[str, Any], model: Any) -> None:
        """Make the running block known: edits ``options``, the wrapper's own copy of transformer_options."""
        if self.slots:
            mark_dit(options, [b for b in self.blocks(model) if b.kind in self.slots], self.slots)

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        """Where a call with nq queries and nk keys happens. Raises Unclear; whether the layouts have nq and nk tokens is
        checked by the caller.
        """
        return (joint if self.joint else self_then_cross)(inside(options), geometry)

    def text_width(self, model: Any) -> int | None:
        """Width of the text its cross-attention reads, None where there is none whose projections can be found."""
        return None

    def text_reader(self, model: Any, block: Block, turn: int) -> Project | None:
        """What the cross-attention number ``turn`` of ``block`` makes of a text: keys and values; None where it reads no text."""
        return None

    def merged(self, options: dict[str, Any], nq: int, nk: int) -> Place | None:
        """Where a call happens whose tokens another pack has merged or cut into tiles, so that only their number is known."""
        return None

    def rope(self, model: Any, extra: dict[str, Any] | None = None) -> RopeAxis | None:
        """The temporal rotary axis, or None. extra: the keyword conditions, for models whose positions depend on the frame
        rate; without them the host's default rate holds.
        """
        return None

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane | None:
        """The rotary axes of a video's picture plane, or None. options: the transformer options of the model call."""
        return None


# --- helpers the adapters share -------------------------------------------------------------------------------------


def tokens(size: int, patch: int) -> int:
    """Tokens along one axis: the host pads a latent up to whole patches."""
    return -(-size // patch)


def grid_span(grid: tuple[int, int, int], still: bool) -> Span:
    """The generated picture or video as a span."""
    return Span("image" if still else "video", grid[0] * grid[1] * grid[2], grid)


def layout(*spans: Span) -> TokenLayout:
    """Spans in order, empty ones left out."""
    return TokenLayout(tuple(s for s in spans if s.length))


def laid(grid: tuple[int, int, int], still: bool, *sequence: Span, prompt: Span | None = None, **more: Any) -> Laid:
    """A geometry from the spans of its sequence. prompt: the text where it stands apart, in a cross-attention; more: further fields."""
    words = [s for s in sequence if s.kind == "text"] if prompt is None else [prompt]
    references = sum(s.length for s in sequence if s.kind == "reference")
    return Laid(grid, sum(s.length for s in words), references, still, sequence=layout(*sequence), prompt=layout(*words), **more)


def latent_tokens(latent: Tensor, patch: Sequence[int]) -> int:
    """Tokens of a latent [..., t, h, w] that the host pads up to whole patches."""
    return math.prod(tokens(n, p) for n, p in zip(latent.shape[-len(patch) :], patch, strict=True))


def length(context: Tensor | None) -> int:
    """Tokens of a [B, N, C] conditioning, 0 for none."""
    return 0 if context is None else context.shape[1]


def picture_tokens(latents: Any, patch: int) -> int:
    """Tokens of reference latents, a list of [B, C, ..., h, w] or None."""
    return sum(tokens(x.shape[-2], patch) * tokens(x.shape[-1], patch) for x in latents or ())


def _stack(model: Any, path: str) -> Any:
    """A list of blocks, empty where this model has none of the kind. path: dotted, below the model."""
    for name in path.split("."):
        model = getattr(model, name, None)
    return model or ()


def number(groups: dict[str, int]) -> list[Block]:
    """Blocks of kinds that run one after another, numbered through: {"double": 19, "single": 38}."""
    named = [(kind, index) for kind, count in groups.items() for index in range(count)]
    return [Block(kind, index, ordinal, len(named)) for ordinal, (kind, index) in enumerate(named)]


# --- making the running block known ---------------------------------------------------------------------------------


def mark_dit(options: dict[str, Any], blocks: list[Block], names: dict[str, str]) -> None:
    """Publish the running block through ``patches_replace["dit"]``, composing with what is there.

    names: our kind of block -> the host's name of the replace slot ("double_block", "single_block").
    """
    patches = dict(options.get("patches_replace", {}))
    slots = dict(patches.get("dit", {}))
    seen: dict[str, int] = {}
    for block in blocks:
        slot = (names[block.kind], block.index)
        slots[slot] = _marking(block, slots.get(slot), seen)
    options["patches_replace"] = patches | {"dit": slots}


def _marking(block: Block, previous: Callable[..., Any] | None, seen: dict[str, int]) -> Callable[..., Any]:
    def replace(args: dict[str, Any], extra: dict[str, Any]) -> Any:
        if "txt" in args:  # single blocks get the joined sequence, and take the number from the double blocks before them
            seen["text"] = args["txt"].shape[1]
        options = args["transformer_options"]
        args = args | {"transformer_options": options | {MARK: Mark(block, text=seen.get("text"))}}
        return _through(options, block, lambda: extra["original_block"](args) if previous is None else previous(args, extra))

    return replace


def _through(options: dict[str, Any], block: Block, compute: Callable[[], Any]) -> Any:
    prefix: Prefix | Handing | None = options.get(PREFIX)
    return compute() if prefix is None else prefix.through(block, compute)


def mark_forward(patcher: Any, path: str, block: Block, whole: bool = True) -> None:
    """Publish the running block by an object patch on its ``forward`` (families without a block replace).

    path: of the block below the model, for instance "diffusion_model.layers.3". whole: its work can be taken over as a whole.
    """
    original = patcher.get_model_object(f"{path}.forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        options = kwargs.get("transformer_options")
        if not options:
            return original(*args, **kwargs)
        kwargs["transformer_options"] = options | {MARK: Mark(block)}
        return _through(options, block, lambda: original(*args, **kwargs)) if whole else original(*args, **kwargs)

    patcher.add_object_patch(f"{path}.forward", forward)


def mark_outside(options: dict[str, Any], kind: str) -> None:
    """Publish what runs outside of the marked blocks (a text refiner); calls are counted over the whole model call."""
    options[MARK] = Mark(Block(kind, 0))


def running(options: dict[str, Any]) -> Mark | None:
    """The block that runs, or None where nothing was published."""
    return options.get(MARK)


def elsewhere(mark: Mark, nq: int, nk: int) -> Place:
    """A call that belongs to no known block, for instance of a module another pack put in: nobody's business."""
    return Place(Block("outside", mark.calls), "other", layout(Span("other", nq)), layout(Span("other", nk)))


def inside(options: dict[str, Any]) -> Mark:
    """The block that runs. Raises Unclear outside of blocks."""
    mark = running(options)
    if mark is None:
        raise Unclear("attention outside of the known blocks")
    return mark


# --- where a call happens: the two usual kinds of block -------------------------------------------------------------


def joint(mark: Mark, geometry: Laid) -> Place:
    """A block that runs one attention over all its tokens."""
    return Place(mark.block, "joint", geometry.sequence, geometry.sequence)


def refined(mark: Mark, geometry: Laid, nq: int, nk: int) -> Place:
    """A text refiner that runs outside of the marked blocks."""
    if nq != geometry.prompt.length or nk != nq:
        return elsewhere(mark, nq, nk)
    return Place(Block("refiner", mark.calls), "other", geometry.prompt, geometry.prompt)


def self_then_cross(mark: Mark, geometry: Laid) -> Place:
    """A block that runs self-attention first and then cross-attention to the prompt."""
    if mark.calls == 0:
        return Place(mark.block, "self", geometry.sequence, geometry.sequence)
    return Place(mark.block, "cross", geometry.sequence, geometry.prompt)
