"""From how much each place of a prediction owes to a word, to a mask of the thing the word names. Pure tensor functions.

Source: Pathania, "Enhancing Conditional Image Generation with Explainable Latent Space Manipulation", arXiv 2408.16232, whose score follows
Barkan et al., "Grad-SAM", arXiv 2204.11073. With P the attention probabilities of head h and place n to a word, and y the prediction::

    score[e] = sum over h, n of  P[h, n] * phi(d y[e] / d P[h, n])

Scores are [B, S, C, h, w]: for S subjects, over the cells of the latent; C is 1 where output channels are not told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import LoomError
from .influence import Influence

TINY = 1e-20
REACH = 3
"""Side of the last convolution: an output cell depends on the attention of so many cells each way, together."""
SPECK = 0.01
"""Share of the picture below which a tidied mask's part is dropped."""


def phi(slope: Tensor, name: str) -> Tensor:
    """What counts of a derivative: "abs" its size, "relu" only where more attention gives more."""
    return slope.abs() if name == "abs" else slope.clamp_min(0)


# --- exact: one score per output element ----------------------------------------------------------------------------


def coloured_sums(y: Tensor) -> Tensor:
    """[9 C]: sums of the prediction [B, C, h, w] over all cells (i, j) with i = a, j = b (mod 3), for every channel and every (a, b).

    Cells of one such sum are so far apart that each place of the attention before a 3 x 3 convolution reaches one of them.
    """
    return torch.stack([y[:, c, a::REACH, b::REACH].sum() for c in range(y.shape[1]) for a in range(REACH) for b in range(REACH)])


def exact_score(found: Influence, subjects: Sequence[Sequence[int]], name: str) -> Tensor:
    """The score of every output element, from the derivatives of :func:`coloured_sums`. subjects: places of each one's tokens among the groups."""
    y, x = found.grid[1:]
    # [9 C, B, G, y, x]: what each place contributes to the one cell of the sum that it reaches
    parts = (found.share * phi(found.slope, name)).sum(2).unflatten(-1, (y, x))
    parts = torch.stack([parts[:, :, list(tokens)].sum(2) for tokens in subjects], 2)
    near = F.avg_pool2d(parts.flatten(0, 1), REACH, 1, REACH // 2) * REACH**2
    near = near.unflatten(0, parts.shape[:2]).unflatten(0, (-1, REACH, REACH))  # [C, 3, 3, B, S, y, x]
    score = torch.empty_like(near[:, 0, 0])
    for a in range(REACH):
        for b in range(REACH):
            score[..., a::REACH, b::REACH] = near[:, a, b][..., a::REACH, b::REACH]
    return score.movedim(0, 2)


# --- fast: one number, several blocks -------------------------------------------------------------------------------


def fast_score(found: Sequence[Influence], subjects: Sequence[Sequence[int]], name: str, size: tuple[int, int]) -> Tensor:
    """The score of one number of the whole prediction, over the places of the attention, C = 1.

    Each block's map is brought to ``size`` and to the sum 1; blocks weigh by the sizes of their derivatives.
    """
    maps, weights = [], []
    for block in found:
        slope = block.slope[0]
        parts = (block.share * phi(slope, name)).mean(1)
        merged = torch.stack([parts[:, list(tokens)].sum(1) for tokens in subjects], 1).unflatten(-1, block.grid[1:])
        merged = F.interpolate(merged, size, mode="bilinear", align_corners=False)
        maps.append(merged / merged.sum((2, 3), keepdim=True).clamp_min(TINY))
        weights.append(torch.stack([slope[:, :, list(tokens)].abs().sum((1, 2, 3)) for tokens in subjects], 1))
    weight = torch.stack(weights)
    weight = weight / weight.sum(0).clamp_min(TINY)
    return (torch.stack(maps) * weight[..., None, None]).sum(0)[:, :, None]


# --- masks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskRule:
    """How a score becomes a mask.

    threshold: k in mean + k std; blur: side of the Gaussian in cells, odd, 0 or 1 = none; sigma: its width; dilate: cells the mask grows
    by; per_channel: a mask for each latent channel; tidy: fill holes and drop specks; soft: fall off below the threshold instead of a step.
    """

    threshold: float = 0.5
    blur: int = 3
    sigma: float = 6.0
    dilate: int = 3
    per_channel: bool = False
    tidy: bool = False
    soft: bool = False

    def __post_init__(self) -> None:
        if self.blur < 0 or self.dilate < 0 or self.sigma <= 0:
            raise LoomError(f"blur {self.blur}, blur_sigma {self.sigma:g} and dilate {self.dilate} were given; none may be negative, and blur_sigma must be above 0.")
        if self.soft and self.tidy:
            raise LoomError("soft and tidy were both chosen; tidying needs a mask with a clear edge: switch one off.")

    def heat(self, score: Tensor) -> Tensor:
        """The smoothed score [B, S, C, h, w]; without ``per_channel`` C is 1: the mean of all channels, each scaled to 0..1."""
        if not self.per_channel:
            low, high = score.amin((-2, -1), keepdim=True), score.amax((-2, -1), keepdim=True)
            score = ((score - low) / (high - low).clamp_min(TINY)).mean(2, keepdim=True)
        return blurred(score, self.blur | 1, self.sigma) if self.blur > 1 else score

    def mask(self, heat: Tensor) -> Tensor:
        """[B, C, h, w] in [0, 1], 1 on any of the subjects, from :meth:`heat`."""
        flat = heat.flatten(-2)
        limit = (flat.mean(-1) + self.threshold * flat.std(-1, correction=0))[..., None, None]
        if self.soft:
            low = heat.amin((-2, -1), keepdim=True)
            mask = ((heat - low) / (limit - low).clamp_min(TINY)).clamp(0, 1)
        else:
            mask = (heat > limit).to(heat)
        mask = grown(mask, self.dilate).amax(1)
        return tidied(mask) if self.tidy else mask


def blurred(maps: Tensor, side: int, sigma: float) -> Tensor:
    """Gaussian over the last two axes; edges repeat."""
    at = torch.arange(side, dtype=maps.dtype, device=maps.device) - side // 2
    row = torch.softmax(-0.5 * (at / sigma) ** 2, 0)
    flat = F.pad(maps.flatten(0, -3)[:, None], (side // 2,) * 4, mode="replicate")
    out = F.conv2d(F.conv2d(flat, row.view(1, 1, 1, -1)), row.view(1, 1, -1, 1))
    return out[:, 0].view(maps.shape)


def grown(maps: Tensor, cells: int) -> Tensor:
    """The largest value within so many cells each way: as many passes of a 3 x 3 maximum."""
    return F.max_pool2d(maps.flatten(0, -3), 2 * cells + 1, 1, cells).view(maps.shape) if cells else maps


def tidied(mask: Tensor) -> Tensor:
    """[B, C, h, w] of 0 and 1 with its holes filled and without parts of less than 1 % of the picture."""
    outside = F.pad(torch.zeros_like(mask), (1, 1, 1, 1), value=1.0)
    open_ = F.pad(1 - mask, (1, 1, 1, 1), value=1.0)
    while True:
        reached = grown(outside, 1) * open_
        if bool((reached == outside).all()):
            break
        outside = reached
    filled = 1 - outside[..., 1:-1, 1:-1]
    labels = torch.arange(1, filled[0, 0].numel() + 1, dtype=filled.dtype, device=filled.device).view(filled.shape[-2:]) * filled
    while True:
        spread = grown(labels, 1) * filled
        if bool((spread == labels).all()):
            break
        labels = spread
    return filled * (_counts(labels.flatten(2)).view(filled.shape) >= SPECK * filled[0, 0].numel())


def _counts(labels: Tensor) -> Tensor:
    """How often each entry's value occurs in its own row of the last axis."""
    rows = labels.flatten(0, -2).long()
    counted = [row.bincount(minlength=rows.shape[-1] + 1)[row] for row in rows]
    return torch.stack(counted).view(labels.shape)
