"""Errors of a prediction in the space the model was trained in, and the losses made of them.

Source: AttenCraft, arXiv 2405.17965, and its released code: the masked loss is a sum over channels, divided by the cells of the whole frame.
The host hands out clean latents, whatever the model predicts; errors of those are brought back to noise, velocity or flow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import LoomError

LEAST = 1e-3
"""Noise level below which an error of noise is not told from rounding."""


def error_scale(sampling: Any) -> Callable[[float], float]:
    """sigma -> what an error of the clean latent is multiplied with to be one of the model's own output. Raises LoomError for kinds not known."""
    from comfy import model_sampling as kinds

    if isinstance(sampling, kinds.CONST):
        return lambda sigma: 1.0 / max(sigma, LEAST)
    if isinstance(sampling, kinds.EDM) or not isinstance(sampling, kinds.EPS):
        raise LoomError(f"models that predict as {type(sampling).__mro__[1].__name__} does cannot be trained here; connect SD 1.5, SD 2 or SDXL.")
    if isinstance(sampling, kinds.X0):
        return lambda sigma: 1.0
    if isinstance(sampling, kinds.V_PREDICTION):
        return lambda sigma: (1.0 + sigma**2) ** 0.5 / max(sigma, LEAST)
    return lambda sigma: 1.0 / max(sigma, LEAST)


def masked(error: Tensor, mask: Tensor) -> Tensor:
    """``sum over channels and places of (mask error)^2 / (h w)`` for error [1, C, h, w] and mask [h, w]."""
    return (mask * error).square().sum() / error[0, 0].numel()


def prior(error: Tensor) -> Tensor:
    """Mean square."""
    return error.square().mean()


def union(masks: Tensor, which: tuple[int, ...], size: tuple[int, int], clamp: bool = False) -> Tensor:
    """The union of some masks [n, Y, X] on (h, w) latent cells, bicubic as in the source, whose overshoot of a few percent ``clamp`` cuts off: [h, w]."""
    whole = masks[list(which)].float().amax(0)
    if tuple(whole.shape) != size:
        whole = torch.nn.functional.interpolate(whole[None, None], size, mode="bicubic", align_corners=False)[0, 0]
    return whole.clamp(0, 1) if clamp else whole
