"""Guidance by an extra, weakened prediction: how strong, when, and how it joins what the sampler has.

With the conditional prediction D_c, the extra one D_p and the result D so far (after CFG), all as denoised latents::

    D' = D + w (D_c - D_p)

Denoised latents are affine in the model's output at fixed x and sigma, so this is the same update for eps, v and flow models.
Source: arXiv 2506.10978 and 2403.17377; rescaling: arXiv 2305.08891 (matching the standard deviation) and 2311.10329 (saliency).
Pure numbers; the pass itself is run by ``core/extra_pass.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .call import Block
from .errors import LoomError

if TYPE_CHECKING:
    from .relay import Relay
    from .report import Run

RESCALE_MODES = ("full", "partial", "snf")
TIMESTEPS = 1000


@dataclass(frozen=True)
class Guidance:
    """scale: w. rescale in [0, 1]: how far the push is shrunk so that the result varies as much as the conditional prediction:
    "full" counts the result after CFG, "partial" the conditional prediction alone; "snf" keeps, place by place, whichever of
    CFG and this guidance stands out more, and takes no amount. adaptive: a in ``w - w a^4 (1000 - t)``, floored at 0, with t
    from 999 (noise) to 0. Acts while ``sigma_end < sigma <= sigma_start``; a negative bound is none.
    """

    scale: float = 3.0
    rescale: float = 0.0
    mode: Literal["full", "partial", "snf"] = "full"
    adaptive: float = 0.0
    sigma_start: float = -1.0
    sigma_end: float = -1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise LoomError(f"scale {self.scale:g} was given; a number from 0 (off) to about 10 is needed.")
        for name in ("rescale", "adaptive"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise LoomError(f"{name} {getattr(self, name):g} was given; it lies between 0 (off) and 1.")
        if self.mode not in RESCALE_MODES:
            raise LoomError(f"rescale mode '{self.mode}' was given; choose one of {', '.join(RESCALE_MODES)}.")
        if math.isnan(self.sigma_start) or math.isnan(self.sigma_end):
            raise LoomError("sigma_start and sigma_end must be numbers; a negative one means no limit.")

    @property
    def off(self) -> bool:
        """Whether no step can get a push."""
        return self.scale == 0 or (self.sigma_start >= 0 and self.sigma_end >= self.sigma_start)

    def at(self, sigma: float, t: float) -> float:
        """w at a step; 0: no evaluation is needed. t: place in the model's training schedule, 999 = noise, 0 = clean."""
        if (self.sigma_start >= 0 and sigma > self.sigma_start) or (self.sigma_end >= 0 and sigma <= self.sigma_end):
            return 0.0
        if self.adaptive == 0:
            return self.scale
        return max(0.0, self.scale - self.scale * self.adaptive**4 * (TIMESTEPS - t))

    def join(self, w: float, result: Tensor, cond: Tensor, uncond: Tensor | None, extra: Tensor) -> Tensor:
        """The guided prediction; all denoised latents [B, ...]. uncond: None where the sampler runs without CFG."""
        push = (cond - extra) * w
        if self.mode == "snf":
            return result + push if uncond is None else uncond + salient(result - uncond, push)
        if self.rescale == 0:
            return result + push
        factor = _spread(cond) / _spread((result if self.mode == "full" else cond) + push)
        return result + push * (self.rescale * factor + 1 - self.rescale)


def _spread(x: Tensor) -> Tensor:
    """Standard deviation of each sample over everything but the batch, never 0. Also right for video latents."""
    return x.std(dim=tuple(range(1, x.ndim)), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def salient(a: Tensor, b: Tensor) -> Tensor:
    """Place by place and channel by channel the one of ``a, b [B, C, (T,) H, W]`` whose smoothed size stands out more."""
    return torch.where(_saliency(a) >= _saliency(b), a, b)


def _saliency(x: Tensor) -> Tensor:
    """Softmax over places of the size of ``x``, blurred by a 3 x 3 binomial window with mirrored edges."""
    size = x.abs().float().flatten(0, -3)[:, None]
    row = torch.tensor([0.25, 0.5, 0.25], device=x.device)
    kernel = (row[:, None] * row[None, :])[None, None]
    padded = torch.nn.functional.pad(size, (1, 1, 1, 1), mode="replicate")
    smooth = torch.nn.functional.conv2d(padded, kernel).view(x.shape)
    return smooth.flatten(2).softmax(-1).view(x.shape)


EXTRA = "loom_extra_pass"
"""Key in transformer_options under which a running extra pass is published."""


@dataclass
class ExtraPass:
    """One extra pass under way, in the options of its model calls. calls: model calls made; touched: blocks it changed; reused: blocks it took
    over from the main pass, or through its relay from passes before it."""

    name: str
    calls: int = 0
    run: Run | None = field(default=None, repr=False)
    touched: set[Block] = field(default_factory=set)
    reused: set[Block] = field(default_factory=set)
    relay: Relay | None = field(default=None, repr=False)

    def begin(self, run: Run) -> None:
        """A model call of this pass begins."""
        self.calls += 1
        self.run = run

    def __deepcopy__(self, memo: dict[int, Any]) -> ExtraPass:
        return self
