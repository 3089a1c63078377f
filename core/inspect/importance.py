"""How much a head matters: what pruning it does to the model's prediction.

After the pruning-based importance of Li et al., arXiv 2303.13731. With D the denoised latent and D' that of the model with one
head pruned, at the same latent x and noise level, for the positive prompt::

    importance        ||D' - D|| / ||D||
    importance angle  1 - cos(x - D', x - D): of the predicted noise or velocity
    importance low    the first, in the lower half of the radii of the 2-D spectrum (structure); high: in the upper half (texture)
    importance rank   place among the heads pruned at that step, 1 the most important, 0 the least

With the head pruned for the negative prompt as well (index u; c: positive)::

    importance guidance   ||(D_c' - D_u') - (D_c - D_u)|| / ||D_c - D_u||: of the direction of CFG, how much the head carries the prompt

To first order, from one evaluation with gradients (:mod:`slope`), with O_h the output of head h and P_h what pruning puts in its place::

    importance fast   ||dD/dO_h (P_h - O_h)|| / ||D||, the norm estimated from 16 random directions

Means over samples and the chosen steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

PRUNED = ("importance", "importance angle", "importance low", "importance high", "importance rank")
"""Of heads pruned one by one."""
FAST = "importance fast"
GUIDANCE = "importance guidance"
METRICS = (*PRUNED, GUIDANCE, FAST)
HALF = 0.25
"""Cycles per latent pixel that divide low from high: half of the Nyquist limit."""
Pruned = dict[tuple[int, int], dict[str, float]]
"""(layer, head) -> metric -> value, of one step."""


def changes(plain: Tensor, pruned: Tensor, x: Tensor) -> dict[str, float]:
    """All but the rank. plain, pruned: D and D' [B, C, (T,) H, W]; x: the noisy latent."""
    d, p, noisy = (v.detach().float() for v in (plain, pruned, x))
    low, high = _bands(p - d), _bands(d)
    return {
        "importance": float(_ratio(_norm(p - d), _norm(d))),
        "importance angle": float(1 - torch.nn.functional.cosine_similarity((noisy - p).flatten(1), (noisy - d).flatten(1)).mean()),
        "importance low": float(_ratio(low[0], high[0])),
        "importance high": float(_ratio(low[1], high[1])),
    }


def guidance_change(plain: tuple[Tensor, Tensor], pruned: tuple[Tensor, Tensor]) -> float:
    """Of D_c - D_u, relative. Each (D_c, D_u)."""
    was, now = (c.detach().float() - u.detach().float() for c, u in (plain, pruned))
    return float(_ratio(_norm(now - was), _norm(was)))


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def _ratio(change: Tensor, whole: Tensor) -> Tensor:
    return (change / whole.clamp(min=torch.finfo(torch.float32).tiny)).mean()


def _bands(x: Tensor) -> tuple[Tensor, Tensor]:
    """Norms of the low and the high half of the spectrum over the last two axes: two of [B]."""
    spectrum = torch.fft.fft2(x).abs()
    fy, fx = (torch.fft.fftfreq(n, device=x.device) for n in x.shape[-2:])
    low = torch.hypot(fy[:, None], fx[None]) <= HALF
    return _norm(spectrum * low), _norm(spectrum * ~low)


def ranked(heads: Pruned, by: str = "importance") -> Pruned:
    """With the rank by one metric filled in; equal changes share a rank."""
    values = sorted(v[by] for v in heads.values())
    last = max(1, len(values) - 1)
    places = {v: (values.index(v) + len(values) - 1 - values[::-1].index(v)) / 2 / last for v in set(values)}
    return {at: v | {"importance rank": places[v[by]]} for at, v in heads.items()}


def by_head(steps: dict[int, Pruned], layer: int, heads: int) -> dict[str, Tensor]:
    """metric -> fp32 [heads], mean over the steps; NaN where a head was not pruned. Nothing where none of the layer was."""
    out: dict[str, Tensor] = {}
    for head in range(heads):
        found = [pruned[layer, head] for pruned in steps.values() if (layer, head) in pruned]
        for metric in found[0] if found else ():
            out.setdefault(metric, torch.full((heads,), torch.nan))[head] = sum(f[metric] for f in found) / len(found)
    return out
