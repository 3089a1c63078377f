"""Block mass: how much of each query block's attention falls on each key block, without the matrix in between.

``mass[a, b] = 1/n_a sum_{i in a} sum_{j in b} exp(s_ij - lse_i)`` with n_a live queries in block a, so a row sums to 1.
Searched patterns rank blocks by it. Source: ``specs``: sparse backend §19, AdaSpa (c), SparseD (c).
"""

from __future__ import annotations

import importlib.util
import math
from typing import Literal

import torch
from torch import Tensor

from .blocks import TokenOrder

BYTES = 128 * 2**20
"""Temporaries of one block of rows."""
BYTES_PER_PAIR = 12
"""fp32 temporaries alive at once for one pair: logit, probability and a copy."""


@torch.no_grad()
def block_mass(
    q: Tensor,
    k: Tensor,
    lse: Tensor | None,
    q_order: TokenOrder,
    k_order: TokenOrder,
    *,
    scale: float | None = None,
    key_bias: Tensor | None = None,
    keys: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    backend: Literal["auto", "triton", "torch"] = "auto",
) -> Tensor:
    """Mass ``[B, H, nQ, nK]`` in ``dtype`` of every pair of blocks, for ``q [B,H,Nq,D]`` and ``k [B,Hk,Nk,D]``, Hk dividing H.

    lse fp32 [B,H,Nq]: natural log-sum-exp of the call over all its keys, ``key_bias`` included; one kept from an earlier
    step gives rows that do not sum to 1. None: computed here. key_bias [B|1, H|1, Nk], -inf drops a key. keys (b0, b1): only
    key blocks b0 <= b < b1 count and every query is renormalised over their keys alone; other columns are 0 and ``lse`` is
    not read. scale: default ``D**-0.5``. Not differentiable. Memory beyond the result: O(tokens) and one block of rows.

    Raises ValueError where shapes do not fit or the Triton kernel asked for cannot run.

    >>> mass = block_mass(q, k, lse, plan.q, plan.k)
    >>> plan = from_bool(mass >= mass.topk(8, -1).values[..., -1:], plan.q, plan.k)
    """
    _check(q, k, lse, q_order, k_order, key_bias)
    first, last = (0, k_order.blocks) if keys is None else keys
    if not 0 <= first < last <= k_order.blocks:
        raise ValueError(f"keys {keys} is not a range of the {k_order.blocks} key blocks")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    lse = None if keys is not None else lse
    reason = _triton_refuses(q)
    if backend == "triton" and reason:
        raise ValueError(f"block_mass cannot run in triton: {reason}")
    if backend == "triton" or (backend == "auto" and not reason and q.device.type == "cuda"):
        from .triton.mass import run_mass

        return run_mass(q, k, lse, q_order, k_order, scale, key_bias, first, last, dtype)
    return _mass(q, k, lse, q_order, k_order, scale, key_bias, first, last).to(dtype)


def place(x: Tensor, order: TokenOrder) -> Tensor:
    """``x [B, H, N, D]`` in place order, [B, H, places, D] with zeros at dead places; as it is where places are tokens.

    An identity order is not padded: its last block is read up to its live tokens.
    """
    if order.identity:
        return x
    live = order.perm >= 0
    return torch.where(live[:, None], x.index_select(2, order.perm.clamp(min=0).long()), 0)


def place_keys(x: Tensor, order: TokenOrder) -> Tensor:
    """A per-key vector ``x [B|1, H|1, N]`` in place order, zeros at dead places."""
    if order.identity:
        return x
    return torch.where(order.perm >= 0, x.index_select(2, order.perm.clamp(min=0).long()), 0)


def _check(q: Tensor, k: Tensor, lse: Tensor | None, q_order: TokenOrder, k_order: TokenOrder, key_bias: Tensor | None) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape[0] != q.shape[0] or q.shape[1] % k.shape[1] or k.shape[3] != q.shape[3]:
        raise ValueError(f"k has shape {list(k.shape)}, q {list(q.shape)}; expected [B, Hk, Nk, D] and [B, H, Nq, D] with Hk dividing H")
    for name, order, x in (("q_order", q_order, q), ("k_order", k_order, k)):
        if order.tokens != x.shape[2]:
            raise ValueError(f"{name} orders {order.tokens} tokens; {name[0]} has {x.shape[2]}")
    if lse is not None and lse.shape != q.shape[:3]:
        raise ValueError(f"lse has shape {list(lse.shape)}; expected {list(q.shape[:3])}")
    if key_bias is not None and (
        key_bias.ndim != 3 or any(got not in (1, want) for got, want in zip(key_bias.shape, q.shape[:2], strict=False)) or key_bias.shape[2] != k.shape[2]
    ):
        raise ValueError(f"key_bias has shape {list(key_bias.shape)}; expected [1|{q.shape[0]}, 1|{q.shape[1]}, {k.shape[2]}]")


def _triton_refuses(q: Tensor) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"it does not take {q.dtype}"
    if not 16 <= q.shape[-1] <= 256:
        return f"head width {q.shape[-1]} is outside 16 to 256"
    if q.device.type == "cuda":
        too_old = torch.version.hip is None and torch.cuda.get_device_capability(q.device) < (8, 0)
        return "GPUs below compute capability 8.0 have no matrix units it can use" if too_old else None
    from .triton.launch import interpreted

    return None if q.device.type == "cpu" and interpreted() else "it needs a GPU"


def _mass(q: Tensor, k: Tensor, lse: Tensor | None, q_order: TokenOrder, k_order: TokenOrder, scale: float, key_bias: Tensor | None, first: int, last: int) -> Tensor:
    """The same in plain torch: whole query blocks at a time, one head at a time."""
    batch, heads = q.shape[:2]
    group, block = heads // k.shape[1], k_order.block
    perm_q = q_order.perm.clamp(min=0).long()
    perm_k = k_order.perm[first * block : last * block].clamp(min=0).long()
    live_q, live_k = q_order.perm >= 0, k_order.perm[first * block : last * block] >= 0
    step = max(1, BYTES // (BYTES_PER_PAIR * perm_k.shape[0] * q_order.block)) * q_order.block
    out = torch.zeros(batch, heads, q_order.blocks, k_order.blocks, dtype=torch.float32, device=q.device)
    for b in range(batch):
        for h in range(heads):
            keys = k[b, h // group].index_select(0, perm_k).float()
            bias = None if key_bias is None else key_bias[b % key_bias.shape[0], h % key_bias.shape[1]].index_select(0, perm_k).float()
            for r0 in range(0, q_order.padded, step):
                rows = perm_q[r0 : r0 + step]
                s = (q[b, h].index_select(0, rows).float() @ keys.transpose(0, 1)).mul_(scale)
                if bias is not None:
                    s += bias
                s.masked_fill_(~live_k, -math.inf)
                norm = torch.logsumexp(s, -1) if lse is None else lse[b, h].index_select(0, rows).float()
                p = s.sub_(norm.masked_fill(norm == -math.inf, 0.0)[:, None]).exp_()
                per_row = p.unflatten(1, (-1, block)).sum(2)
                per_row = torch.where(live_q[r0 : r0 + step, None], per_row, 0)
                out[b, h, r0 // q_order.block : (r0 + rows.shape[0]) // q_order.block, first:last] = per_row.unflatten(0, (-1, q_order.block)).sum(1)
    return out / q_order.valid[:, None].clamp(min=1)
