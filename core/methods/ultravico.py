"""UltraViCo: single-pass long video by decaying attention beyond the training window.

Source: "UltraViCo: Breaking Extrapolation Limits in Video Diffusion Transformers", arXiv 2511.20123. Written from the
paper's rule; no code was taken from the release.

With T latent frames generated, L latent frames in training, f(i) the frame of token i, and the logits
``s_ij = <q_i, k_j - mean(k)> / sqrt(d)`` after q/k norm and RoPE::

    s'_ij = lambda_ij * s_ij,   out_i = softmax_j(s'_ij) v_j

    lambda_ij = 1      if |f(i) - f(j)| <= L/2  or  s_ij < 0
              = beta   if the distance lies within gamma frames of a multiple of the harmonic period
              = alpha  otherwise

Only video-to-video self-attention is touched, in all blocks, steps and passes. If T <= L nothing is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from ...kernels.caching import remembered
from ...kernels.plan import MASKED, DistanceTable, FrameTable, Modulation
from ..errors import LoomError
from .base import Method
from .riflex import RIFLEx

if TYPE_CHECKING:
    from ..call import AttentionCall, Geometry, TokenLayout
    from ..families.base import Family, RopeAxis
    from ..weave import Draft

BF16_EXACT = 256
"""Largest frame number bfloat16 holds exactly; two families build their positions in the model's dtype."""


@dataclass(frozen=True)
class UltraViCo(Method):
    """Settings of the method. Frames are latent frames.

    train_frames: L. alpha: decay beyond the window. beta: decay inside the harmonic bands around multiples of ``period``,
    ``gamma`` frames to each side; period None: no bands, "auto": from the model's rotary frequencies. center_keys: subtract the mean key before reading the sign (as the published
    results were made). first_frame: mask keys at frame >= L for queries of frame 0. sink_frames: the first n frames' keys
    are never decayed. granularity: distances in whole frames, or in flat tokens (parity with the release).
    """

    owner: ClassVar[str] = "Longer Video (UltraViCo)"
    needs_grid: ClassVar[bool] = True

    train_frames: int
    alpha: float = 0.9
    beta: float = 0.6
    period: float | Literal["auto"] | None = None
    gamma: int = 4
    granularity: Literal["frame", "token"] = "frame"
    center_keys: bool = True
    first_frame: bool = False
    sink_frames: int = 0

    def __post_init__(self) -> None:
        if self.train_frames < 2:
            raise LoomError(f"train_frames {self.train_frames} was given; the model's native length in latent frames is needed, at least 2 (Wan 2.1: 21).")
        if not 0.0 < self.alpha <= 1.0:
            raise LoomError(f"alpha {self.alpha:g} was given; it lies above 0 and at most at 1 (1 = off, the paper uses 0.9).")
        if not 0.0 <= self.beta <= 1.0:
            raise LoomError(f"beta {self.beta:g} was given; it lies between 0 and 1 (the paper uses 0.6 for HunyuanVideo).")
        if self.sink_frames and self.granularity == "token":
            raise LoomError(f"sink_frames {self.sink_frames} was given with granularity token, which knows no frames; set granularity to frame, or sink_frames to 0.")
        if self.period is None:
            return
        if self.beta > self.alpha:
            raise LoomError(f"beta {self.beta:g} is above alpha {self.alpha:g}; the repeating distances must be decayed at least as much: lower beta.")
        if self.period != "auto":
            self._check_band(self.period)

    def _check_band(self, period: float) -> None:
        if period - self.gamma <= self.train_frames / 2:
            raise LoomError(
                f"the repetition band starts at {period - self.gamma:g} frames, inside the window of {self.train_frames / 2:g} frames that is "
                "never decayed; raise period, lower gamma, or turn the period off."
            )

    @property
    def off(self) -> bool:
        """alpha = 1 with no band and no first-frame mask changes nothing."""
        return super().off or (self.alpha == 1.0 and (self.period is None or self.beta == 1.0) and not self.first_frame)

    def check_family(self, family: Family, model: Any) -> None:
        """Only video models have a temporal window to outgrow."""
        if not family.video:
            raise LoomError(f"{self.owner} needs a video model; {family.name} makes pictures. Connect a video model such as Wan, HunyuanVideo or LTX.")

    def check_run(self, family: Family, geometry: Geometry, warn: Any) -> None:
        """Refuse pictures; warn beyond what the paper evaluated."""
        frames = geometry.grid[0]
        if geometry.still:
            raise LoomError(f"{self.owner} was given an image latent; connect a video latent (for instance Empty HunyuanVideo Latent).")
        if frames <= self.train_frames:
            return
        ratio = frames / self.train_frames
        if ratio > 4:
            warn(f"{frames} latent frames are {ratio:.1f}x the training length {self.train_frames}; single-pass extrapolation was evaluated up to 4x")
        if self.alpha < 0.85:
            warn(f"alpha {self.alpha:g} is below 0.85; on large models the paper saw consistency drop sharply there")
        if frames > BF16_EXACT and family.positions_in_model_dtype:
            warn(f"{frames} latent frames exceed {BF16_EXACT}: {family.name} builds positions in the model's dtype, and bfloat16 holds whole numbers exactly only up to there")

    def check_company(self, methods: tuple[Method, ...], warn: Any) -> None:
        """RIFLEx moves the frequency whose repetition the bands are there for."""
        if self.period is not None and any(isinstance(m, RIFLEx) for m in methods):
            warn(f"{self.owner}: {RIFLEx.owner} has moved the frequency that repeats, and the repetition bands stay where the stock model repeats; set repetition to off")

    def wants(self, call: AttentionCall) -> bool:
        """Self- and joint attention among video tokens."""
        return super().wants(call) and call.kind in ("self", "joint") and call.q.grid is not None and call.k.grid is not None

    def contribute(self, call: AttentionCall, draft: Draft) -> None:
        """Stage 3: a factor per pair of frames (or per token distance), on positive centred logits."""
        grid = call.q.grid
        if grid is None:  # for the type checker; wants() has seen it
            return
        if grid[0] - call.lead <= self.train_frames:
            draft.leave(self.owner, f"{grid[0] - call.lead} latent frames are within the training length {self.train_frames}")
            return
        draft.prefer(self.owner, self.backend)
        cfg = self.resolved(call.rope, grid[0])  # type: ignore[arg-type]
        draft.modulate(self.owner, modulation(cfg, call.q, call.k, str(call.device)))

    def resolved(self, rope: RopeAxis | None, frames: int) -> UltraViCo:
        """The same settings with "auto" replaced by a number, or by None where the model's frequencies do not repeat."""
        if self.period != "auto":
            return self
        period = None if rope is None else harmonic_period(rope.per_frame, self.train_frames, frames)
        if period is not None:
            self._check_band(period)
        return replace(self, period=period)


@remembered(16)
def modulation(cfg: UltraViCo, q: TokenLayout, k: TokenLayout, device: str) -> Modulation:
    """The same object for the same call shape: what kernels work out from a table (tile lists) is kept with it."""
    at = torch.device(device)
    grid = q.grid
    if grid is None:
        raise ValueError("a layout without a video grid has no frames")
    ids_q, ids_k = q.frame_ids(at), k.frame_ids(at)
    if cfg.granularity == "frame":
        classes, factors = class_table(cfg, grid[0], device)
        frames, distance = FrameTable(ids_q, ids_k, classes, factors), None
    else:
        steps, factors = distance_table(cfg, grid, device)
        frames = FrameTable(ids_q, ids_k, frame_rules(cfg, grid[0], device), torch.ones(1, device=at))
        distance = DistanceTable(q.positions(at), k.positions(at), steps, factors)
    return Modulation(frames=frames, distance=distance, positive_only=True, center_keys=cfg.center_keys)


def decay_class(distance: Tensor, half_window: float, period: float | None, gamma: float) -> Tensor:
    """Class of each distance: 0 inside the window, 1 beyond it, 2 within ``gamma`` of a multiple of ``period``.

    All lengths in one unit, frames or tokens. The window wins over a band. uint8, shape of ``distance``.
    """
    far = distance > half_window
    classes = far.to(torch.uint8)
    if period is not None:
        nearest = (distance / period).round().clamp(min=1) * period
        classes[far & ((distance - nearest).abs() <= gamma)] = 2
    return classes


@remembered(32)
def class_table(cfg: UltraViCo, frames: int, device: str) -> tuple[Tensor, Tensor]:
    """([T, T] uint8 classes, fp32 factors (1, alpha, beta)) of the ``frame`` granularity (spec c.2, c.4)."""
    f = torch.arange(frames)
    classes = decay_class((f[:, None] - f[None, :]).abs().float(), cfg.train_frames / 2, _number(cfg.period), cfg.gamma)
    classes[:, : cfg.sink_frames] = 0
    if cfg.first_frame:
        classes[0, cfg.train_frames :] = MASKED
    return classes.to(device), _factors(cfg, device)


@remembered(8)
def distance_table(cfg: UltraViCo, grid: tuple[int, int, int], device: str) -> tuple[Tensor, Tensor]:
    """([S] uint8 classes by |i - j|, factors) of the ``token`` granularity: the window is P*L/2 tokens to each side."""
    per_frame = grid[1] * grid[2]
    distance = torch.arange(grid[0] * per_frame).double()
    period = _number(cfg.period)
    classes = decay_class(distance, per_frame * cfg.train_frames / 2, None if period is None else per_frame * period, per_frame * cfg.gamma)
    return classes.to(device), _factors(cfg, device)


@remembered(8)
def frame_rules(cfg: UltraViCo, frames: int, device: str) -> Tensor:
    """[T, T] uint8: the rules that count from the start of the video, for ``token`` granularity: the first-frame mask."""
    rules = torch.zeros(frames, frames, dtype=torch.uint8)
    if cfg.first_frame:
        rules[0, cfg.train_frames :] = MASKED
    return rules.to(device)


def _factors(cfg: UltraViCo, device: str) -> Tensor:
    return torch.tensor([1.0, cfg.alpha, cfg.beta], device=device)


def _number(period: float | str | None) -> float | None:
    if isinstance(period, str):
        raise TypeError("an automatic period must be resolved against a model first")
    return period


def harmonic_period(freqs: Tensor, train_frames: int, frames: int) -> float | None:
    """The distance at which a temporal rotary axis repeats itself, in whole frames, or None (spec c.5).

    ``freqs`` [n]: radians per frame, descending. All frequencies faster than the candidate must be whole multiples of it
    (within 1e-3), or they never realign. Shorter periods than the training clip were seen in training and are no loop, so
    the candidate is the shortest beyond it and below T. HunyuanVideo has exact octaves: 16*pi = 50.27 -> 50, as released.
    """
    for n in range(len(freqs)):
        ratios = freqs[: n + 1].double() / freqs[n].double()
        period = 2 * math.pi / float(freqs[n])
        if bool(((ratios - ratios.round()).abs() < 1e-3).all()) and train_frames < period < frames:
            return float(round(period))
    return None
