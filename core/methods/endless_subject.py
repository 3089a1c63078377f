"""Subject-aware attention and guidance for endless clips: where the subject is, and what its keys are.

Source: "Ouroboros-Diffusion: Exploring Consistent Content Generation in Tuning-free Long Video Diffusion", arXiv 2501.09019
(SACFA and self-recurrent guidance). Written from the paper and the released parts. In each model call of a queue's window the
attention the picture pays to the subject's words is read in the blocks before the middle; thresholded it is the subject's mask.
In the blocks behind, self-attention attends to the subject's tokens once more: in a model whose frames see each other all
those keys are there already, and m more copies of a key are ``log(1 + m)`` on its logit. Or it attends to the subject as it leaves the
queue: keys and values of the frame at the head, m copies, placed one frame before the window. The mean key under the mask describes
the subject; ``core/samplers/recurrent.py`` remembers it and guides by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from ...kernels.plan import ExtraKV
from ...kernels.stages import rotate
from ..call import Block
from ..columns import Collector, Columns, Finished
from ..errors import LoomError
from ..otsu import otsu
from ..unrotated import spectrum, unrotated
from .base import Method

if TYPE_CHECKING:
    from ..call import AttentionCall, QueueWindow, Seen
    from ..concepts import Located
    from ..families.base import Family, RopeAxis
    from ..weave import Draft

Source = Literal["this window", "the head"]
SOURCES = ("this window", "the head")
NEVER = -1e9
"""On the logit of a key that a row of the batch shall not read: its weight is exactly 0."""
Which = Literal["noisier half", "all", "cleaner half"]
WHICH = ("noisier half", "all", "cleaner half")
FAMILIES = ("Wan", "LTX", "Cosmos")
"""Self-attention over all frames, then cross-attention to words, in every block."""


@dataclass(eq=False)
class Reading:
    """What one model call has shown so far. differentiable: keep the graph of keys, and end the call when all are read."""

    collector: Collector
    mask: Tensor | None = None
    keys: dict[Block, Tensor] = field(default_factory=dict)
    segments: dict[str, Tensor] = field(default_factory=dict)
    differentiable: bool = False


@dataclass(frozen=True)
class EndlessSubject(Method):
    """Settings. scenes: (frame from which a prompt holds, where the subject's words stand in it), ascending.

    copies: m, how often more the subject's keys count; 0 = not. source: whose keys: those of the window itself, or of the frame at the
    head of the queue. gamma: strength of the guidance; 0 = none. lam: how much the memory keeps
    at each frame. threshold: of the subject's map scaled to 0..1; 0 = Otsu's. which: windows of the queue it acts in. normalised: steps
    of the guidance have a fixed size instead of the gradient's. spare_memory: what its gradient needs waits in system memory.
    ``blocks``: where attention is changed and keys are read; empty = the second half.
    """

    owner: ClassVar[str] = "Keep Subject in Endless Video"

    scenes: tuple[tuple[int, Located], ...]
    copies: float = 1.0
    source: Source = "this window"
    gamma: float = 0.0
    lam: float = 0.9
    threshold: float = 0.0
    which: Which = "noisier half"
    normalised: bool = False
    spare_memory: bool = False

    def __post_init__(self) -> None:
        for name, value, most in (("lam", self.lam, 1.0), ("threshold", self.threshold, 1.0), ("strength", self.copies, 100.0), ("guidance", self.gamma, 1000.0)):
            if not 0.0 <= value <= most:
                raise LoomError(f"{name} {value:g} was given; it lies between 0 and {most:g}.")
        if self.source not in SOURCES:
            raise LoomError(f"attend_to '{self.source}' was given; choose one of {', '.join(SOURCES)}.")
        if self.which not in WHICH:
            raise LoomError(f"windows '{self.which}' was given; choose one of {', '.join(WHICH)}.")

    @property
    def off(self) -> bool:
        """Neither attention nor guidance."""
        return super().off or (self.copies == 0 and self.gamma == 0)

    def check_family(self, family: Family, model: Any) -> None:
        """Video models with self-attention over all frames and cross-attention to words."""
        if family.name not in FAMILIES:
            raise LoomError(f"{self.owner} needs a video model that reads words in a cross-attention of its own; connect Wan, LTX-Video or Cosmos Predict2.")
        used = self.used(family.blocks(model))
        if not used or used[0].ordinal == 0:
            raise LoomError(f"blocks '{self.blocks.text}' leaves no block before the first chosen one in which the subject could be found; choose later blocks, or leave it empty.")

    # --- where ----------------------------------------------------------------------------------------------------------

    def used(self, blocks: list[Block]) -> list[Block]:
        """Where attention is changed and keys are read."""
        return [b for b in blocks if b in self.blocks] if self.blocks.items else blocks[len(blocks) // 2 :]

    def read(self, blocks: list[Block]) -> list[Block]:
        """Where the subject is looked for: the last half of what comes before the first used block."""
        before = blocks[: self.used(blocks)[0].ordinal]
        return before[len(before) // 2 :]

    def acts(self, window: QueueWindow) -> bool:
        """Whether a window of the queue is one of the chosen."""
        noisier = 2 * window.number >= window.count
        return self.which == "all" or window.count == 1 or noisier == (self.which == "noisier half")

    def located(self, scene: int) -> Located:
        """Where the words stand in the prompt that holds from ``scene`` on."""
        return next(found for frame, found in reversed(self.scenes) if frame <= scene or frame == self.scenes[0][0])

    # --- what one call shows ----------------------------------------------------------------------------------------------

    def wants(self, call: AttentionCall) -> bool:
        """Calls on a window of a queue that hold the positive prompt: chosen windows, and the head's for the memory."""
        return call.queue is not None and call.kind in ("self", "cross") and call.q.grid is not None and 0 in call.rows and (self.acts(call.queue) or self._remembers(call.queue))

    def _remembers(self, window: QueueWindow) -> bool:
        return window.number == 0 and (self.gamma > 0 or (self.copies > 0 and self.source == "the head"))

    def _looks(self, window: QueueWindow, reading: Reading) -> bool:
        """Whether this call needs to know where the subject is."""
        return reading.differentiable or self._remembers(window) or (self.copies > 0 and self.source == "this window" and self.acts(window))

    def reading(self, call: AttentionCall) -> Reading:
        """What this model call has shown, begun on first use."""
        assert call.queue is not None
        found = call.queue.notes.get(self.owner)
        if found is None:
            found = call.queue.notes[self.owner] = self.begun(call.block.total, call.queue.scene)
        if found.collector.chosen is None:
            found.collector.chosen = call.uuids[call.rows.index(0)] if len(call.uuids) == len(call.rows) else None
        return found  # type: ignore[no-any-return]

    def begun(self, total: int, scene: int, differentiable: bool = False) -> Reading:
        """An empty reading of a model with ``total`` blocks."""
        located = self.located(scene)
        tokens = tuple(t for concept in located.concepts for t in concept.tokens)
        wanted = Columns(frozenset(self.read(_numbered(total))), (tokens,))
        return Reading(Collector(wanted, located.length), differentiable=differentiable)

    def contribute(self, call: AttentionCall, draft: Draft) -> None:
        """Look at the text columns; then the bias or the segment, and a look at the keys."""
        reading, window = self.reading(call), call.queue
        assert window is not None
        if call.kind == "cross":
            if self._looks(window, reading) and reading.collector.wants(call):
                reading.collector.join(self.owner, call, draft)
            return
        if call.block not in self.used(_numbered(call.block.total)) or call.turn:
            return
        if self.copies and self.source == "the head" and self.acts(window):
            self._extend(call, window, draft)
        mask = self.mask(reading) if self._looks(window, reading) else None
        if mask is None or tuple(mask.shape[1:]) != call.q.grid or not bool(mask.any()):
            draft.leave(self.owner, "the subject was not found in this window")
            return
        if self.copies and self.source == "this window" and self.acts(window):
            draft.bias(self.owner, bias(call, mask, self.copies))
        if reading.differentiable or self._remembers(window):
            draft.watch(self.owner, lambda seen: self._keep(call, reading, seen))

    def _extend(self, call: AttentionCall, window: QueueWindow, draft: Draft) -> None:
        """The subject at the head as one more segment of keys and values, read by the positive prompt's rows."""
        k, v, kept = (window.memory.get(f"segment.{call.block.ordinal}.{part}") for part in "kvb")
        if k is None or v is None or kept is None:
            return
        rows = _positive(call)
        if rows.stop - rows.start != k.shape[0]:
            draft.leave(self.owner, f"the head's window had {k.shape[0]} items in the batch and this one {rows.stop - rows.start}")
            return
        weight = torch.full((call.batch, 1, k.shape[2]), NEVER, device=call.device)
        weight[rows, 0] = kept.to(weight) + math.log(self.copies)
        full = [x.new_zeros(call.batch, *x.shape[1:], dtype=call.dtype, device=call.device) for x in (k, v)]
        for out, x in zip(full, (k, v), strict=True):
            out[rows] = x.to(out)
        draft.extend(self.owner, ExtraKV(full[0], full[1], bias=weight))

    def mask(self, reading: Reading) -> Tensor | None:
        """bool [b, T, Y, X] from what was read, None if nothing was."""
        if reading.mask is None and reading.collector.maps is not None:
            reading.mask = subject(reading.collector.maps[:, 0].detach(), self.threshold)
        return reading.mask

    def _keep(self, call: AttentionCall, reading: Reading, seen: Seen) -> None:
        assert reading.mask is not None
        rows, (offset, length) = _positive(call), _grid(call)
        k, v = (x[rows, :, offset : offset + length] for x in (seen.k, seen.v))
        if self.gamma:
            reading.keys[call.block] = mean_key(unrotated(call, k.float()), reading.mask)
        if self.copies and self.source == "the head" and not reading.differentiable:
            assert call.queue is not None
            found = segment(k, v, reading.mask, call.queue.leaves)
            if found is not None:
                found["k"] = before_first(call, found["k"], call.queue.leaves)
                reading.segments |= {f"segment.{call.block.ordinal}.{part}": value for part, value in found.items()}
        if reading.differentiable and call.block.ordinal == self.used(_numbered(call.block.total))[-1].ordinal:
            raise Finished


# --- pure parts -----------------------------------------------------------------------------------------------------


def subject(maps: Tensor, threshold: float = 0.0) -> Tensor:
    """bool like ``maps`` [b, T, Y, X]: above the threshold of the map scaled to 0..1 over the whole window; 0 = Otsu's."""
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    scaled = (maps - low) / (high - low).clamp_min(1e-12)
    limit = torch.stack([otsu(m) for m in scaled]) if threshold == 0 else torch.full((len(maps),), threshold, device=maps.device)
    return (scaled > limit.to(scaled).view(-1, 1, 1, 1)) & (high > low)


def mean_key(k: Tensor, mask: Tensor) -> Tensor:
    """[b, H D]: the mean of keys [b, H, N, D] under a mask [b, T, Y, X] of N tokens; zeros where the mask is empty."""
    weight = mask.flatten(1).to(k)
    total = torch.einsum("bn,bhnd->bhd", weight, k) / weight.sum(1).clamp_min(1).view(-1, 1, 1)
    return total.flatten(1)


def segment(k: Tensor, v: Tensor, mask: Tensor, leaves: int) -> dict[str, Tensor] | None:
    """Keys and values [b, H, N, D] of the subject in the frame that leaves, number ``leaves`` of the window: k and v [b, H, M, D], and b [b, M]: 0 where an item's mask [b, T, Y, X] holds the token, else :data:`NEVER`. None if it holds none."""
    frame = mask[:, leaves].flatten(1)
    at = frame.any(0).nonzero().flatten()
    if not len(at):
        return None
    tokens = at + leaves * frame.shape[1]
    kept = torch.where(frame[:, at], 0.0, NEVER)
    return {"k": k[:, :, tokens].clone(), "v": v[:, :, tokens].clone(), "b": kept}


def before_first(call: AttentionCall, k: Tensor, frame: int) -> Tensor:
    """Keys [b, H, M, D] of a frame of this window as if it stood one frame before the first."""
    grid = call.q.grid
    if call.rope is None or grid is None or grid[0] < 2:
        return k
    axis: RopeAxis = call.rope  # type: ignore[assignment]
    times = axis.times(grid[0])
    shift = float(times[0] - (times[-1] - times[-2]) - times[frame])
    delta = torch.full((k.shape[2], 1), shift, device=k.device)
    return rotate(k, delta, spectrum(axis, k.shape[-1] // 2)[None].to(k.device), axis.pairing)


def bias(call: AttentionCall, mask: Tensor, copies: float) -> Tensor:
    """fp32 [batch, 1, Nk]: log(1 + m) on the subject's keys in the rows of the positive prompt, 0 elsewhere."""
    offset, length = _grid(call)
    out = torch.zeros(call.batch, 1, call.k.length, device=call.device)
    out[_positive(call), 0, offset : offset + length] = torch.log1p(torch.tensor(copies)).to(out) * mask.flatten(1).to(out)
    return out


def _positive(call: AttentionCall) -> slice:
    size = call.batch // len(call.rows)
    at = call.rows.index(0)
    return slice(at * size, (at + 1) * size)


def _grid(call: AttentionCall) -> tuple[int, int]:
    found = call.q.grid_span
    assert found is not None
    return found[0], found[1].length


def _numbered(total: int) -> list[Block]:
    return [Block("block", i, i, total) for i in range(total)]
