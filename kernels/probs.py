"""Exact attention probabilities of a few chosen keys, differentiable: for losses and maps on text tokens.

``P_ij = exp(scale <q_i, k_j> + bias_j - lse_i)`` with the log-sum-exp the call returned. Source: ``specs``: sparse backend §9, §19.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MOST_KEYS = 256
"""Beyond this the result is no longer small beside q, k and v."""


def probs(q: Tensor, k_subset: Tensor, lse: Tensor, *, scale: float | None = None, key_bias: Tensor | None = None) -> Tensor:
    """Probabilities fp32 [B,H,Nq,T] (fp64 for fp64 inputs) of ``q [B,H,Nq,D]`` for the T <= 256 keys ``k_subset [B|1,Hk,T,D]``.

    lse [B,H,Nq]: natural log-sum-exp of the call over *all* its keys; a row with -inf gets 0. scale: default ``D**-0.5``.
    key_bias [B|1, H|1, T]: the bias of these keys in the call. Gradients flow to q, k_subset, lse and key_bias; with the
    lse of ``attend(..., return_lse=True)`` they are those of the true softmax. Cost Nq*T*D, memory Nq*T.

    Raises ValueError for more than 256 keys and where shapes do not fit.

    >>> o, lse = attend(q, k, v, plan, return_lse=True)
    >>> loss = probs(q, k[:, :, 7:9], lse).mean()
    """
    _check(q, k_subset, lse, key_bias)
    work = torch.float64 if q.dtype == torch.float64 else torch.float32
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    key_heads = k_subset.shape[1]
    with torch.autocast(q.device.type, enabled=False):
        grouped = q.to(work).unflatten(1, (key_heads, -1))  # query heads that share a key head sit together
        s = (grouped @ k_subset.to(work)[:, :, None].transpose(-1, -2) * scale).flatten(1, 2)
        if key_bias is not None:
            s = s + key_bias.to(work)[:, :, None]
        # Nothing is probable in a row that reads nothing: exp(s - inf) = 0, with a gradient of 0.
        return torch.exp(s - lse.to(work).masked_fill(lse == -math.inf, math.inf)[..., None])


def _check(q: Tensor, k: Tensor, lse: Tensor, key_bias: Tensor | None) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape[0] not in (1, q.shape[0]) or q.shape[1] % k.shape[1] or k.shape[3] != q.shape[3]:
        raise ValueError(f"k_subset has shape {list(k.shape)}, q {list(q.shape)}; expected [B|1, Hk, T, D] and [B, H, Nq, D] with Hk dividing H")
    if k.shape[2] > MOST_KEYS:
        raise ValueError(f"probs gives the probabilities of at most {MOST_KEYS} keys, {k.shape[2]} were chosen; use block_mass for maps over all keys")
    if lse.shape != q.shape[:3]:
        raise ValueError(f"lse has shape {list(lse.shape)}; expected {list(q.shape[:3])}")
    if key_bias is not None and (key_bias.ndim != 3 or key_bias.shape[0] not in (1, q.shape[0]) or key_bias.shape[1] not in (1, q.shape[1]) or key_bias.shape[2] != k.shape[2]):
        raise ValueError(f"key_bias has shape {list(key_bias.shape)}; expected [1|{q.shape[0]}, 1|{q.shape[1]}, {k.shape[2]}]")
