"""Importance of all heads at once, to first order: one evaluation with gradients, where pruning takes one for each head.

With w = dy/dg_h the change of the prediction y per step g_h of a head towards what pruning makes of it (:mod:`..methods.prune_slope`), and D =
x - sigma y, importance is ``sigma ||w|| / ||D||`` to first order. For random z of unit variance ``E <z, w>^2 = ||w||^2``, and ``<z, w>`` of every head at
once is one backward pass of ``<z, y>``; the root of the mean over 16 z errs by about 18 %.

One backward pass of ``0.5 ||y||^2``, the usual Taylor criterion, sees of w only the part along y, which says little: its ranks agreed with those of
pruning by 0.12 (Spearman, median of nine; -0.6 to 0.83) where this one's did by 0.8 (0.2 to 0.94): three kinds of pruning on tiny random models of FLUX (6
heads) and Wan (4) and the toy world's SD3 (9).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..attach import OVERRIDE
from ..differentiable import explained, gradients, options_for_gradient, plain, positive_only, thawed
from ..errors import LoomError
from ..extra_pass import marked
from .importance import FAST, Pruned, ranked

if TYPE_CHECKING:
    from torch import Tensor

    from ..methods.prune_slope import SlopePass

DIRECTIONS = 16
ADVICE = "switch spare_memory on, inspect only blocks that lie later in the model, or sample a smaller picture"


def slopes(args: dict[str, Any], pass_: SlopePass, spare_memory: bool) -> Pruned:
    """The score of every head of the layers ``pass_`` reaches. args: as the host gives them to post-CFG functions.

    spare_memory: what the gradients need waits in system memory. Raises LoomError where no gradient can be had.
    """
    import comfy.samplers

    model, sigma = args["model"], float(args["sigma"].max())
    if any(entry.get("hooks") is not None for entry in args["cond"]):
        raise LoomError("importance 'fast' cannot take a gradient through a prompt that carries hooks (scheduled LoRA); choose screen or full.")
    with explained("importance 'fast'", ADVICE), gradients(model if spare_memory else None), thawed(model):
        x = args["input"].detach().clone()
        options = marked(pass_, options_for_gradient(args["model_options"], OVERRIDE))
        (denoised,) = comfy.samplers.calc_cond_batch(model, [[positive_only(entry) for entry in args["cond"]]], x, plain(args["sigma"]), options)
        squares = _squares((x - denoised) / sigma, pass_.gates)
    size = denoised.detach().flatten(1).norm(dim=1, keepdim=True)
    return _scores({layer: sigma * found.sqrt() / size.clamp(min=torch.finfo(size.dtype).tiny) for layer, found in squares.items()})


def _squares(y: Tensor, gates: dict[int, Tensor]) -> dict[int, Tensor]:
    """||w||^2 of every sample and head, layer -> [B, H]. Differentiates y, not D: its size is that of the latent at every noise level."""
    sums = {layer: torch.zeros_like(gate) for layer, gate in gates.items()}
    for i in range(DIRECTIONS if gates else 0):
        found = torch.autograd.grad((_direction(i, y) * y).sum(), list(gates.values()), retain_graph=i + 1 < DIRECTIONS)
        for total, slope in zip(sums.values(), found, strict=True):
            total += slope.detach().square() / DIRECTIONS
    return {layer: total.detach() for layer, total in sums.items()}


def _direction(i: int, y: Tensor) -> Tensor:
    """The random direction number i: the same in every run, drawn beside the sampler's own random numbers."""
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(i)).to(y)


def _scores(found: dict[int, Tensor]) -> Pruned:
    """found: layer -> scores [B, H]; means over the samples."""
    scores: Pruned = {}
    for layer, values in found.items():
        if not bool(values.isfinite().all()):
            raise LoomError(f"importance 'fast' found gradients in layer {layer} that are not finite; load the model in bf16 or fp32, or choose screen or full.")
        scores |= {(layer, h): {FAST: float(v)} for h, v in enumerate(values.mean(0))}
    return ranked(scores, FAST)
