"""DiTraj: an object follows a path of boxes through a video, without training.

Source: "DiTraj: training-free trajectory control for video diffusion transformer", arXiv 2509.21839. Written from the paper's
rules; no code was taken. Three parts, each with its own share of the steps:

separation   cross-attention of the positive prompt: tokens inside the box read the foreground text alone, all others the
             background text alone; the prompt itself is not read (paper: the first 30 of 50 steps)
STD-RoPE     self-attention of every pass: tokens inside the box take their spatial positions from one anchor box, so that they see
             each other across frames as if the object stood still (the first 5 of 50 steps)
R tokens     the same steps: background tokens that now share a position with a token of the object, and the object, do not see
             each other

Positions are moved by a further rotation of queries and keys, R(p) R(d) = R(p + d): the same as a gather of rows of the model's
rotary table, for any family and without a hook into it. Models whose text stands in one attention with the video read
"background, foreground" as one prompt (:func:`core.texts.joined`) and are kept apart by labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...kernels.plan import Aside, Labels, Rotation
from ..errors import LoomError
from ..texts import elements, projected
from ..trajectory import Moved, Paths, Resample, doubts, moved, paths
from .base import Method

if TYPE_CHECKING:
    from ..call import AttentionCall, Geometry, TokenLayout
    from ..families.base import Family
    from ..weave import Draft

BACKGROUND, SUBJECT, TWIN = 0, 1, 2


@dataclass(frozen=True, eq=False)
class DiTraj(Method):  # two of them are never equal: they hold tensors
    """Settings. boxes fp64 [objects, latent frames, 4]: (x0, y0, x1, y1) in 0..1, NaN where the object is absent.

    background, foregrounds: texts [1, M, C] as the model's text encoder gives them, one foreground per object. mask_end, rope_end:
    shares of the steps in which separation and STD-RoPE act, rounded up to whole steps. strength: share of the way to the separated
    texts and to the moved positions (labels know no part of a way). prompt_tokens: length of the prompt itself, to tell the joined
    text from it. twins: whether R tokens are kept apart. inclusive: box corners as the released code has them.
    """

    owner: ClassVar[str] = "Steer Object Along Path (DiTraj)"
    needs_grid: ClassVar[bool] = True
    __eq__, __hash__ = object.__eq__, object.__hash__

    boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 4), repr=False)
    background: Tensor | None = field(default=None, repr=False)
    foregrounds: tuple[Tensor, ...] = field(default=(), repr=False)
    strength: float = 1.0
    mask_end: float = 0.6
    rope_end: float = 0.1
    resample: Resample = "nearest"
    twins: bool = True
    inclusive: bool = False
    prompt_tokens: int = 0

    def __post_init__(self) -> None:
        for name, value in (("mask_end", self.mask_end), ("rope_end", self.rope_end), ("strength", self.strength)):
            if not 0.0 <= value <= 1.0:
                raise LoomError(f"{name} {value:g} was given; it lies between 0 (off) and 1.")
        if self.mask_end > 0 and (self.background is None or len(self.foregrounds) != len(self.boxes)):
            raise LoomError(
                f"the path has {len(self.boxes)} objects and {len(self.foregrounds)} foreground texts are connected; connect a background text and one foreground text per object."
            )

    @property
    def off(self) -> bool:
        """No strength, or neither part acts."""
        return super().off or self.strength == 0.0 or (self.mask_end == 0.0 and self.rope_end == 0.0)

    def check_family(self, family: Family, model: Any) -> None:
        """Needs a video model with rotary axes in the picture plane, and a text that can be swapped inside it."""
        if not family.video or family.plane(model, {}) is None:
            raise LoomError(f"{self.owner} moves rotary positions of a video, and {family.name} has none that can be read. Connect Wan, HunyuanVideo, CogVideoX, LTX or Cosmos.")
        width = family.text_width(model)
        if self.mask_end > 0 and width is None and not family.joint:
            raise LoomError(
                f"{self.owner} gives object and background texts of their own, and the text of {family.name} cannot be reached; set mask_end to 0 to move positions only."
            )
        for text in (self.background, *self.foregrounds) if width is not None else ():
            if text is not None and text.shape[-1] != width:
                raise LoomError(
                    f"the foreground or background text has the width {text.shape[-1]} and the model reads {width}; encode it with the CLIP that belongs to this model."
                )

    def check_run(self, family: Family, geometry: Geometry, warn: Any) -> None:
        """The path must have the latent's frames; boxes must be large enough for the model's tokens."""
        frames, y, x = geometry.grid
        if geometry.still:
            raise LoomError(f"{self.owner} was given an image latent; connect a video latent.")
        if self.boxes.shape[1] < frames:
            raise self._too(frames)
        if any(a.shape == b.shape and bool(torch.equal(a, b)) for i, a in enumerate(self.texts) for b in self.texts[:i]):
            warn(f"{self.owner}: two of the texts are the same, so nothing tells their regions apart")
        for sentence in doubts(self._paths(y, x), y, x):
            warn(sentence)

    def wants(self, call: AttentionCall) -> bool:
        """Attention of the video, and the refiner of a text that stands in one attention with it."""
        if call.block.kind == "refiner":
            return self._separates(call)
        return super().wants(call) and call.q.grid_span is not None and call.kind in ("self", "joint", "cross")

    def contribute(self, call: AttentionCall, draft: Draft) -> None:
        """Stages 2, 5 and 9."""
        if call.block.kind == "refiner":
            self._part_texts(call, draft)
            return
        assert call.q.grid is not None
        whole = None if call.run is None else call.run.whole
        if whole is not None and whole[1:] != call.q.grid[1:]:
            draft.leave(self.owner, "a conditioning of an area, in which boxes of the whole picture mean nothing")
            return
        if call.queue is None and call.frames is None and self.boxes.shape[1] != call.q.grid[0]:
            raise self._too(call.q.grid[0])
        if call.kind == "cross":
            self._separate(call, draft)
            return
        self._move(call, draft)
        if call.kind == "joint" and self._separates(call):
            self._part_texts(call, draft)

    # --- the parts ------------------------------------------------------------------------------------------------------

    def _separate(self, call: AttentionCall, draft: Draft) -> None:
        """Each token of the positive prompt's rows reads the text of its own region."""
        if call.project is None:
            return  # reads a picture
        if not self._early(call, self.mask_end):
            draft.leave(self.owner, "after the last step of the separation")
            return
        positive = tuple(e for row, chunk in zip(call.rows, elements(call), strict=True) if row == 0 for e in chunk)
        if not positive:
            draft.leave(self.owner, "the negative prompt alone")
            return
        draft.prefer(self.owner, self.backend)
        for text, (rows, weight) in zip(self.texts, self._regions(call), strict=True):
            if len(rows):
                k, v = projected(call, self.owner, text)
                draft.aside(self.owner, Aside(k, v, rows, weight, positive, positive))

    def _move(self, call: AttentionCall, draft: Draft) -> None:
        """STD-RoPE and the R-token rule."""
        if not self._early(call, self.rope_end):
            draft.leave(self.owner, "after the last step of the moved positions")
            return
        if call.plane is None:
            draft.leave(self.owner, "the rotary axes of the picture plane cannot be read")
            return
        rotation, labels = self._moves(call)
        if rotation is None:
            draft.leave(self.owner, "the box does not move in these frames")
            return
        draft.prefer(self.owner, self.backend)
        draft.rotate(self.owner, rotation)
        if labels is not None:
            draft.admit(self.owner, labels)

    def _part_texts(self, call: AttentionCall, draft: Draft) -> None:
        """Joint attention and text refiners: a region's video and text see each other, and no text of another region."""
        positive = torch.zeros(call.batch, 1, dtype=torch.bool)
        for row, chunk in zip(call.rows, elements(call), strict=True):
            positive[list(chunk)] = row == 0
        if not bool(positive.any()):
            return
        made = self._kept(call, "texts", lambda: self._text_labels(call))
        allow = made.allow_q
        if not bool(positive.all()):
            allow = torch.where(positive.to(allow.device), allow, torch.full_like(allow, (1 << made.count) - 1))
        draft.prefer(self.owner, self.backend)
        draft.admit(self.owner, Labels(made.label_k, allow, made.count))

    # --- what is computed once per run ----------------------------------------------------------------------------------

    def moved(self, call: AttentionCall) -> Moved:
        """Tokens of the frames in this call."""
        assert call.q.grid is not None
        _, y, x = call.q.grid
        return self._kept(call, "moved", lambda: moved(self._paths(y, x).at(call.frames), y, x, self.resample))

    def _paths(self, y: int, x: int) -> Paths:
        return paths(self.boxes, y, x, self.inclusive)

    def _regions(self, call: AttentionCall) -> list[tuple[Tensor, Tensor]]:
        """(rows, weights) of the background and of each object."""

        def make() -> list[tuple[Tensor, Tensor]]:
            assert call.q.grid_span is not None
            subject = self.moved(call).subject
            found = [(subject == i).nonzero()[:, 0] + call.q.grid_span[0] for i in range(len(self.boxes) + 1)]
            return [(rows.to(call.device), torch.full((len(rows),), self.strength, device=call.device)) for rows in found]

        return self._kept(call, "regions", make)

    def _moves(self, call: AttentionCall) -> tuple[Rotation | None, Labels | None]:
        def make() -> tuple[Rotation | None, Labels | None]:
            tokens, plane = self.moved(call), call.plane
            if not tokens.shift.any():
                return None, None
            delta_q, delta_k = (layout.along(self.strength * tokens.shift, 0.0).to(call.device) for layout in (call.q, call.k))
            rotation = Rotation(delta_q, delta_k, plane.freqs.float().to(call.device), plane.pairing)  # type: ignore[union-attr,attr-defined]
            return rotation, self._twin_labels(call, tokens)

        return self._kept(call, "moves", make)

    def _twin_labels(self, call: AttentionCall, tokens: Moved) -> Labels | None:
        """Objects and R tokens do not see each other, in any two frames."""
        if not self.twins or not tokens.twin.any():
            return None
        kind = torch.where(tokens.twin, TWIN, (tokens.subject > 0).long() * SUBJECT)
        allow = torch.tensor([0b111, 0b011, 0b101])
        label_k, rows = (layout.along(kind, BACKGROUND) for layout in (call.k, call.q))
        return Labels(label_k.to(torch.int8)[None].to(call.device), allow[rows][None].to(call.device), 3)

    def _text_labels(self, call: AttentionCall) -> Labels:
        """Kinds of token: the text of each region, the video of each region, and all others, which see and are seen by all."""
        regions = len(self.boxes) + 1
        other, words = 2 * regions, torch.cat([torch.full((n,), i) for i, n in enumerate(self._lengths)])

        def kinds(layout: TokenLayout) -> Tensor:
            kind = torch.full((layout.length,), other)
            if layout.grid_span is not None:
                kind = layout.along(regions + self.moved(call).subject, other)
            lo, hi = layout.range("text") or (0, 0)
            kind[lo:hi] = words.repeat((hi - lo) // len(words))  # the host repeats a text to batch it with a longer one
            return kind

        video = sum(1 << (regions + i) for i in range(regions))
        by_text = [1 << i | 1 << (regions + i) | 1 << other for i in range(regions)]
        by_video = [1 << i | video | 1 << other for i in range(regions)]
        allow = torch.tensor([*by_text, *by_video, (1 << (other + 1)) - 1])
        return Labels(kinds(call.k).to(torch.int8)[None].to(call.device), allow[kinds(call.q)][None].to(call.device), other + 1)

    @property
    def _lengths(self) -> list[int]:
        return [text.shape[1] for text in self.texts]

    @property
    def texts(self) -> tuple[Tensor, ...]:
        """Of the background and of each object."""
        return () if self.background is None else (self.background, *self.foregrounds)

    def _too(self, frames: int) -> LoomError:
        return LoomError(f"the path has {self.boxes.shape[1]} latent frames and the video {frames}; draw the path for the length of the video.")

    def _separates(self, call: AttentionCall) -> bool:
        """Whether a call reads the joined text of background and objects: told by its length."""
        lo, hi = call.k.range("text") or (0, 0)
        total = sum(self._lengths)
        if self.mask_end == 0 or hi == lo or (hi - lo) % total:
            return False
        alike = self.prompt_tokens > 0 and (hi - lo) % self.prompt_tokens == 0  # the prompt itself, or repeated to batch it with a longer one
        return not alike or self._early(call, self.mask_end)

    # --- helpers --------------------------------------------------------------------------------------------------------

    def _early(self, call: AttentionCall, share: float) -> bool:
        """Whether the step of this call is among the first ``share`` of all, rounded up to whole steps; in a part of a schedule by
        the model's clock, which does not know how many steps the others have.
        """
        if call.done is not None:
            return call.done < share - 1e-4  # a step at the share is past it, whatever the rounding
        if call.steps == 0:
            return call.progress < share
        return call.step < math.ceil(share * call.steps - 1e-9)

    def _kept(self, call: AttentionCall, what: str, make: Any) -> Any:
        """Made once per run, or once per model call where every call has other frames (an endless clip's queue)."""
        key = (self.owner, what, id(self), call.q, call.k, call.frames, str(call.device))
        if call.queue is not None:
            notes = call.queue.notes
            if key not in notes:
                with torch.inference_mode(False):
                    notes[key] = make()
            return notes[key]
        return call.kept(key, make)
