"""Entropy scaling: sizes a model was not trained on, by one factor on the logits of its self-attention.

Source: "Training-free Diffusion Model Adaptation for Variable-Sized Text-to-Image Synthesis", arXiv 2306.08645. Written from
the paper's rule. With T keys at the trained size and N keys now::

    softmax(f * Q K^T / sqrt(d)),    f = (ln N / ln T) ^ (p / 2),    p = 1 in the paper

A row's entropy is about ``ln N - s^2 / 2`` with s the spread of its logits; f lowers it where more keys raised it, and the other
way round. It reduces the shift and does not cancel it. ``measured`` cancels it for logits that are normally distributed::

    f = sqrt(1 + 2 ln(N / T) / s^2)     (ours, derived; s per head from the call's own q and k)

In joint attention both counts include the text. Text cross-attention keeps its keys and is not touched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from ...kernels.caching import remembered
from ...kernels.plan import Modulation
from ..errors import LoomError
from .base import Method

if TYPE_CHECKING:
    from ..call import AttentionCall, Geometry
    from ..families.base import Family
    from ..weave import Draft

Grid = tuple[int, int, int]
LOWEST, HIGHEST = 0.25, 4.0
"""Factors beyond these come from a wrong training size, not from a size anybody would ask for."""
MEASURED_RANGE = (0.5, 2.0)
UNET, PADS = "SD 1.5 / SDXL", "Lumina 2 / Z-Image"
FAR = 4.0
"""Pixels over trained pixels from which on others measured no gain (2x per side)."""


@dataclass(frozen=True)
class EntropyScale(Method):
    """Settings. trained: (T, Y, X) of the trained sizes in tokens (latent pixels for U-Nets); the nearest one counts.

    strength: the exponent p, 0 = off, 1 = the paper, 2 = the rule of long-text models. apply: at smaller or larger sizes only.
    tolerance: nothing is done while N / T is within 1 +- tolerance, for models that were trained on many sizes.
    """

    owner: ClassVar[str] = "Any Size (entropy scaling)"
    counts_tokens: ClassVar[bool] = True

    trained: tuple[Grid, ...]
    strength: float = 1.0
    mode: Literal["paper", "measured"] = "paper"
    apply: Literal["both", "smaller", "larger"] = "both"
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength <= 3.0:  # NaN fails too
            raise LoomError(f"strength {self.strength:g} was given; it lies between 0 (off) and 3 (the paper uses 1).")
        for grid in self.trained:
            if math.prod(grid) < 2:
                raise LoomError(f"the trained size makes {math.prod(grid)} token; give the size in pixels the model was trained on, for instance 512 x 512.")

    @property
    def off(self) -> bool:
        """Strength 0 is a factor of 1."""
        return super().off or self.strength == 0.0

    def check_run(self, family: Family, geometry: Geometry, warn: Any) -> None:
        """Refuse an absurd factor before the first step; warn where no gain is to be expected."""
        n, t = math.prod(geometry.grid), math.prod(nearest(self.trained, math.prod(geometry.grid)))
        self.factor(n, t)
        if n / t >= FAR:
            warn(f"{n / t:.1f} times the trained number of tokens: others found about no gain from this method alone at 2x per side and beyond; upscale in a second pass instead")

    def wants(self, call: AttentionCall) -> bool:
        """Self- and joint attention of the picture or video, wherever it is; text alone is not scaled."""
        return super().wants(call) and call.kind in ("self", "joint")

    def contribute(self, call: AttentionCall, draft: Draft) -> None:
        """Stage 3: one plain factor for all pairs."""
        n, others = count(call)
        t = self.trained_keys(call, n)
        if self._rests(n, t):
            draft.leave(self.owner, f"{n} keys where training had {t}")
            return
        draft.prefer(self.owner, self.backend)
        scale = self._measured(call, n + others, t + others) if self.mode == "measured" else plain(self.factor(n + others, t + others), str(call.device))
        draft.modulate(self.owner, Modulation(scale=scale))

    def trained_keys(self, call: AttentionCall, n: int) -> int:
        """T of this call: U-Nets halve the picture level by level, and their layers over time see the frames alone."""
        grids = [at_level(grid, call) for grid in self.trained]
        return math.prod(nearest(grids, n))

    def _rests(self, n: int, t: int) -> bool:
        wrong_side = n > t if self.apply == "smaller" else n < t if self.apply == "larger" else False
        return n == t or wrong_side or abs(n / t - 1) <= self.tolerance

    def factor(self, n: int, t: int) -> float:
        """f for n keys where training had t. Raises LoomError where it is beyond reason."""
        f = factor(n, t, self.strength)
        if not LOWEST <= f <= HIGHEST:
            raise LoomError(f"{n} keys against {t} in training make a factor of {f:.3g}, outside {LOWEST:g} to {HIGHEST:g}; check the trained size and lower strength.")
        return f

    def _measured(self, call: AttentionCall, n: int, t: int) -> Tensor:
        if call.seen is None:
            raise LoomError(f"{self.owner}, mode measured, needs the tensors of the call, which this host does not show; use mode paper.")
        seen = call.seen
        spread = logit_variance(seen.q, seen.k, seen.q.shape[-1] ** -0.5 if seen.scale is None else seen.scale)
        return measured_factor(spread, n, t, self.factor(n, t), self.strength)


def factor(n: int, t: int, p: float = 1.0) -> float:
    """``(ln n / ln t) ^ (p/2)``, exactly 1 for n = t; counts below 2 are taken as 2 (paper, eq. for lambda).

    >>> round(factor(9216, 4096), 4)
    1.0476
    """
    return 1.0 if n == t else (math.log(max(n, 2)) / math.log(max(t, 2))) ** (p / 2)


def measured_factor(variance: Tensor, n: int, t: int, otherwise: float, p: float = 1.0) -> Tensor:
    """fp32 [H]: ``sqrt(1 + 2 ln(n/t) / s^2) ^ p`` for logit variances s^2 [H], within :data:`MEASURED_RANGE`.

    Fewer keys can make the wanted entropy more than ln n allows; such heads take ``otherwise``, the paper's factor.
    """
    inside = 1 + 2 * math.log(max(n, 2) / max(t, 2)) / variance.float().clamp(min=1e-12)
    exact = inside.clamp(min=0).sqrt().clamp(*MEASURED_RANGE).pow(p)
    return torch.where(inside > 0, exact, otherwise)


def logit_variance(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """fp32 [H]: variance of each row's logits, mean over rows and batch, of q [B,H,Nq,D] and k [B,Hk,Nk,D].

    Exact without any logit: a row's variance is ``scale^2 q^T Cov(k) q``, and the mean over rows is the inner product of
    Cov(k) with the second moment of q, both [D, D].
    """
    q, k = q.float(), k.float()
    k = k - k.mean(2, keepdim=True)
    cov = (k.transpose(2, 3) @ k / k.shape[2]).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    moment = q.transpose(2, 3) @ q / q.shape[2]
    return scale**2 * (cov * moment).sum((2, 3)).mean(0)


def count(call: AttentionCall) -> tuple[int, int]:
    """(keys of the picture or video, other keys). Where no grid is known (tiles, merged tokens), all keys are the picture's.

    Lumina 2 and Z-Image pad text and picture to whole multiples; that padding is not counted.
    """
    found = call.k.grid_span
    if found is None:
        return call.k.length, 0
    rest = [s for s in call.k.spans if s is not found[1] and not (call.family == PADS and s.kind == "other")]
    return found[1].length, sum(s.length for s in rest)


def nearest(grids: tuple[Grid, ...] | list[Grid], n: int) -> Grid:
    """The grid whose number of tokens is nearest to n as a ratio."""
    return min(grids, key=lambda grid: abs(math.log(n / math.prod(grid))))


def at_level(grid: Grid, call: AttentionCall) -> Grid:
    """The trained grid as this call would have seen it."""
    if call.family != UNET:
        return grid
    frames, y, x = grid
    if (found := call.k.grid_span) is not None and found[1].kind == "video":
        return frames, 1, 1
    for _ in range(call.block.level):
        y, x = -(-y // 2), -(-x // 2)  # a convolution of stride 2 with padding
    return 1, y, x


@remembered(64)
def plain(f: float, device: str) -> Tensor:
    """fp32 [1]. The same tensor for the same factor."""
    return torch.tensor([f], device=device)
