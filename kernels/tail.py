"""The pooled tail: blocks a plan does not read enter the softmax as one pseudo-key each.

Block j of n_j live keys becomes the key ``mean k`` with the value ``mean v`` and the bias ``log n_j``. "row": every query
takes its own logits against the pooled keys; "centroid": the mean query of a block stands for all its rows. Cost: a share
of 1/Bk, or 1/(Bq Bk), of dense. Source: ``specs``: sparse backend §6.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .blocks import EMPTY, BlockPlan, TokenOrder

BYTES = 128 * 2**20
"""Temporaries of one block of rows."""


def pool(x: Tensor, order: TokenOrder) -> Tensor:
    """Means over the live tokens of each block: fp32 [B, H, blocks, D] of ``x [B, H, N, D]``. Differentiable."""
    if order.identity and order.tokens == order.padded:
        return x.unflatten(2, (order.blocks, order.block)).mean(3, dtype=torch.float32)
    live = (order.perm >= 0).view(order.blocks, order.block, 1)
    placed = x.index_select(2, order.perm.clamp(min=0).long()).unflatten(2, (order.blocks, order.block))
    # a dead place must not let a NaN of the token it repeats through: select, do not multiply
    return torch.where(live, placed, 0).sum(3, dtype=torch.float32) / order.valid[:, None]


def tail_attend(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, scale: float) -> tuple[Tensor, Tensor]:
    """(o [B,H,Nq,D] in q's dtype, lse fp32 [B,H,Nq]) of the queries over the pooled keys of the blocks they do not read."""
    batch, heads, _, _ = q.shape
    group = heads // k.shape[1]
    kbar, vbar = pool(k, plan.k), pool(v, plan.k)
    bias = plan.k.valid.float().log()
    unread = plan.kinds() == EMPTY
    qbar = pool(q, plan.q) if plan.tail == "centroid" else None
    home = plan.q.inverse.long() // plan.q.block  # block of each query
    step = max(1, BYTES // (4 * plan.k.blocks * 3))
    outs, lses = [], []
    for b in range(batch):
        for h in range(heads):
            g = plan.head_map[b % plan.head_map.shape[0], h % plan.head_map.shape[1]].long()
            mask = unread.index_select(0, g[None])[0]
            if qbar is not None:
                o, lse = _read(qbar[b, h], kbar[b, h // group], vbar[b, h // group], bias, mask, scale)
                o, lse = o.index_select(0, home), lse.index_select(0, home)
            else:
                parts = [
                    _read(q[b, h, r0 : r0 + step].float(), kbar[b, h // group], vbar[b, h // group], bias, mask.index_select(0, home[r0 : r0 + step]), scale)
                    for r0 in range(0, q.shape[2], step)
                ]
                o, lse = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
            outs.append(o.to(q.dtype))
            lses.append(lse)
    return torch.stack(outs).unflatten(0, (batch, heads)), torch.stack(lses).unflatten(0, (batch, heads))


def _read(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    s = (scale * q @ k.transpose(0, 1) + bias).masked_fill(~mask, -math.inf)
    m = s.detach().amax(-1, keepdim=True)
    m = m.masked_fill(m == -math.inf, 0.0)
    p = torch.exp(s - m)
    total = p.sum(-1)
    empty = total == 0
    safe = total.masked_fill(empty, 1.0)
    return (p @ v) / safe[:, None], (m[:, 0] + safe.log()).masked_fill(empty, -math.inf)
