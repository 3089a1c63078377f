"""The queue of an endless clip: latent frames at rising noise; one leaves clean at the head, one enters at the tail. Pure.

Source: "FIFO-Diffusion: Generating Infinite Videos from Text without Training", arXiv 2405.11473. With f frames per model call
and n partitions there are f n noise levels and as many slots, slot i at level i (0 = cleanest). One iteration brings every slot
one level down, then all move one slot towards the head. Lookahead prepends floor(f/2) slots that stay at level 0: every slot is
then computed in the noisier half of its window, with cleaner frames before it, at twice the number of model calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import LoomError


@dataclass(frozen=True)
class Window:
    """One model call of an iteration: it sees slots [start, end) and changes [mid, end). number: 0 at the head."""

    number: int
    start: int
    mid: int
    end: int


@dataclass(frozen=True)
class Layout:
    """Sizes of a queue. frames: f, latent frames of a model call; partitions: n; lookahead: whether the head has pinned slots."""

    frames: int
    partitions: int
    lookahead: bool = True

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise LoomError(f"a window of {self.frames} latent frames was given; the queue needs at least 2: give a longer latent, or set window to 2 or more.")
        if self.partitions < 1:
            raise LoomError(f"partitions {self.partitions} was given; it is 1 or more (4 suits most models).")

    @property
    def levels(self) -> int:
        """Noise levels, f n: the steps the schedule must have."""
        return self.frames * self.partitions

    @property
    def pinned(self) -> int:
        """Slots at the head that no iteration changes."""
        return self.frames // 2 if self.lookahead else 0

    @property
    def length(self) -> int:
        """Slots in all."""
        return self.levels + self.pinned

    @property
    def warm_up(self) -> int:
        """Iterations before the first frame that counts: what leaves until then are copies of the start clip's first frame."""
        return self.levels - self.frames

    def level(self, slot: int) -> int:
        """Noise level of a slot."""
        return max(0, slot - self.pinned)

    def frame(self, slot: int, iteration: int) -> int:
        """Which frame of the finished clip stands in a slot; negative for the copies that are dropped."""
        return iteration + slot - self.pinned - self.warm_up

    def windows(self) -> tuple[Window, ...]:
        """The model calls of one iteration, the noisiest first."""
        f, h = self.frames, self.frames // 2
        if not self.lookahead:
            return tuple(Window(r, r * f, r * f, (r + 1) * f) for r in reversed(range(self.partitions)))
        found = []
        for r in reversed(range(2 * self.partitions)):
            start = (r // 2) * f + (r % 2) * h
            found.append(Window(r, start, start + h + (r % 2 if f % 2 else 0), start + f))
        return tuple(found)


def ascending(schedule: Tensor, layout: Layout) -> Tensor:
    """The noise of each level, fp32 [f n] ascending, from the host's schedule (descending, ending in 0).

    Raises LoomError for a schedule of another length, one that does not fall, or one that does not end in 0.
    """
    steps = len(schedule) - 1
    if steps != layout.levels:
        raise LoomError(
            f"the schedule has {steps} steps, but a window of {layout.frames} frames with {layout.partitions} partitions needs exactly "
            f"{layout.frames} x {layout.partitions} = {layout.levels}; set the scheduler's steps to {layout.levels}, or change window or partitions."
        )
    values = schedule.detach().float().cpu()
    if float(values[-1]) != 0.0:
        raise LoomError(f"the schedule ends at sigma {float(values[-1]):.4g}; a queue needs one that ends at 0: set denoise to 1 and do not cut the schedule.")
    if not bool((values[1:] < values[:-1]).all()):
        raise LoomError("two neighbouring steps of the schedule have the same or a rising sigma; choose the scheduler simple, normal or sgm_uniform, or fewer partitions.")
    return values[:-1].flip(0).contiguous()


def start_frame(layout: Layout, slot: int, frames: int) -> int:
    """Which frame of a start clip of ``frames`` frames a slot begins with."""
    return min(frames - 1, max(0, layout.level(slot) - layout.warm_up)) if slot >= layout.pinned else 0


def first_queue(clip: Tensor, layout: Layout, noised: Callable[[Tensor, int, int], Tensor]) -> Tensor:
    """The queue [B, C, length, H, W] from a clean clip [B, C, >= f, H, W]. noised(frame, level, slot) brings one frame to a level."""
    return torch.cat([noised(clip[:, :, (at := start_frame(layout, slot, layout.frames)) : at + 1], layout.level(slot), slot) for slot in range(layout.length)], 2)


def iterate(queue: Tensor, windows: Iterable[Window], denoised: Callable[[Window, Tensor], Tensor]) -> Tensor:
    """One iteration: every slot behind the pinned ones one level cleaner. Not shifted yet.

    denoised(window, slots [B, C, f, H, W]) -> the same slots one level down. All windows read the queue as it was before the
    iteration, so their order plays no part.
    """
    out = queue.clone()
    for window in windows:
        out[:, :, window.mid : window.end] = denoised(window, queue[:, :, window.start : window.end])[:, :, window.mid - window.start :]
    return out


def shift(queue: Tensor, tail: Tensor) -> Tensor:
    """All slots one place towards the head; ``tail`` [B, C, 1, H, W] enters."""
    return torch.cat([queue[:, :, 1:], tail], 2)


# --- noise that does not depend on when it is drawn -----------------------------------------------------------------


def noise_like(example: Tensor, seed: int, *key: int) -> Tensor:
    """Standard normal of the shape of ``example``, a function of seed and key alone: the same on every device and after a pause."""
    generator = torch.Generator("cpu").manual_seed(_mixed(seed, *key))
    return torch.randn(example.shape, generator=generator, dtype=torch.float32).to(example)


def _mixed(*numbers: int) -> int:
    """One number of 63 bits from several (the finaliser of SplitMix64 after each)."""
    mask, state = (1 << 64) - 1, 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state + (number & mask) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1
