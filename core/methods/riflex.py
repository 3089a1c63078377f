"""RIFLEx: longer video by slowing one temporal rotary frequency, so that the clip stays inside one of its periods.

Source: "RIFLEx: A Free Lunch for Length Extrapolation in Video Diffusion Transformers", arXiv 2502.15894. Written from
the paper's rule. The temporal axis has frequencies theta_1 > theta_2 > ... (radians per latent frame); the intrinsic one,
whose period is nearest to the distance N at which the video first repeats, is replaced::

    k = argmin_j |2*pi / theta_j - N|,     theta_k := 0.9 * 2*pi / T      if T > N_k = 2*pi / theta_k

All others and both spatial axes stay. Queries and keys already carry the stock rotation; rotating channel pair k once
more by ``t * (theta_k' - theta_k)`` gives exactly the new one (host.md 5: relative rotation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...kernels.caching import remembered
from ...kernels.plan import Rotation
from ..errors import LoomError
from .base import Method

if TYPE_CHECKING:
    from ..call import AttentionCall, Geometry, TokenLayout
    from ..families.base import Family, RopeAxis
    from ..weave import Draft

MARGIN = 0.9
"""Share of the new period that the clip fills (paper: 0.9)."""


@dataclass(frozen=True)
class RIFLEx(Method):
    """k: 1-based index of the frequency to slow, or 0 to take the one whose period is nearest ``repeat`` latent frames.

    strength: share of the way from the stock frequency to the slowed one.
    """

    owner: ClassVar[str] = "Longer Video (RIFLEx)"
    needs_grid: ClassVar[bool] = True

    k: int = 0
    repeat: float = 0.0
    strength: float = 1.0

    @property
    def off(self) -> bool:
        """Strength 0 leaves the frequency where it is."""
        return super().off or self.strength == 0.0

    def __post_init__(self) -> None:
        if self.k < 0 or (self.k == 0 and self.repeat <= 0):
            raise LoomError(
                f"k {self.k} with a repeat distance of {self.repeat:g} frames was given; give k from 1 (Wan 6, HunyuanVideo 4), or k 0 and the number of "
                "latent frames after which the stock video first repeats."
            )

    def check_family(self, family: Family, model: Any) -> None:
        """Needs a temporal rotary axis."""
        axis = family.rope(model) if family.video else None
        if axis is None:
            raise LoomError(f"{self.owner} changes the rotary frequencies of time, and {family.name} has none that can be read. Connect Wan, HunyuanVideo, CogVideoX or LTX.")
        if self.k > len(axis.per_frame):
            raise LoomError(f"k {self.k} was given; {family.name} has {len(axis.per_frame)} temporal frequencies, so k is 1 to {len(axis.per_frame)}.")

    def check_run(self, family: Family, geometry: Geometry, warn: Any) -> None:
        """Refuse pictures."""
        if geometry.still:
            raise LoomError(f"{self.owner} was given an image latent; connect a video latent (for instance Empty HunyuanVideo Latent).")

    def wants(self, call: AttentionCall) -> bool:
        """Self- and joint attention of the video: cross-attention carries no rotation."""
        return super().wants(call) and call.kind in ("self", "joint") and call.q.grid is not None and call.rope is not None

    def contribute(self, call: AttentionCall, draft: Draft) -> None:
        """Stage 2: one channel pair of the video tokens turns slower."""
        axis: RopeAxis = call.rope  # type: ignore[assignment]
        grid = call.q.grid
        if grid is None:
            return
        index = self.index(axis)
        old = float(axis.per_frame[index])
        if grid[0] - call.lead <= 2 * math.pi / old:
            draft.leave(self.owner, f"{grid[0] - call.lead} latent frames fit into the period of {2 * math.pi / old:.1f} frames of frequency k={index + 1}")
            return
        draft.prefer(self.owner, self.backend)
        draft.rotate(
            self.owner,
            Rotation(
                delta_q=frame_times(call.q, axis, str(call.device)),
                delta_k=frame_times(call.k, axis, str(call.device)),
                freqs=(self.strength * slowed(axis, index, grid[0])).to(call.device),
                pairing=axis.pairing,
            ),
        )

    def index(self, axis: RopeAxis) -> int:
        """0-based place of the intrinsic frequency."""
        if self.k:
            return self.k - 1
        return int((2 * math.pi / axis.per_frame - self.repeat).abs().argmin())


def slowed(axis: RopeAxis, index: int, frames: int) -> Tensor:
    """fp32 [1, H|1, D/2]: change of frequency per channel pair; zero but where frequency ``index`` lives."""
    change = MARGIN * 2 * math.pi / frames - float(axis.per_frame[index])
    return (axis.pair_of == index).float()[None] * change


@remembered(32)
def frame_times(layout: TokenLayout, axis: RopeAxis, device: str) -> Tensor:
    """fp32 [N, 1]: temporal position of each token in latent frames; 0 for text and for references that stand apart."""
    found = layout.grid_span
    if found is None or found[1].grid is None:
        return torch.zeros(layout.length, 1, device=device)
    frames, per_frame = found[1].grid[0], found[1].grid[1] * found[1].grid[2]

    def in_line(kind: str, length: int) -> int:
        return length // per_frame if axis.references_in_line and kind == "reference" and length % per_frame == 0 else 0

    at = next(i for i, span in enumerate(layout.spans) if span is found[1])
    beside = [in_line(s.kind, s.length) for s in layout.spans]
    before = sum(beside[:at])
    times = axis.times(before + frames + sum(beside[at + 1 :]))
    parts, frame = [], 0
    for span, count in zip(layout.spans, (*beside[:at], frames, *beside[at + 1 :]), strict=True):
        own = times[frame : frame + count].repeat_interleave(per_frame) if count else torch.zeros(span.length, dtype=times.dtype)
        parts.append(own)
        frame += count
    return torch.cat(parts).float()[:, None].to(device)
