"""Attention in plain torch, a block of rows at a time: runs everywhere, supports every logit rule, has gradients.

Online softmax over key chunks (Milakov & Gimelshein 2018). Under autograd each row chunk is recomputed in the backward
pass, so what is saved is q, k, v and the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .blocks import EMPTY, BlockPlan, TokenOrder
from .logits import KeySet, LogitRule
from .plan import AttentionPlan

BUDGET = 512 * 2**20
"""Bytes of temporaries one chunk may use."""
BYTES_PER_PAIR = 32
"""fp32 temporaries alive at once for one (row, key) pair: logit, factor, class index, probability and copies."""
MOST_ROWS = 2048
WHOLE = 2**20
"""Up to so many pairs a head is computed whole and the block plan only masks: launching block by block would take longer."""


def chunk_sizes(n_q: int, n_k: int, budget: int = BUDGET) -> tuple[int, int]:
    """Rows and keys of a chunk. Depends on the token counts only, so batch and head count cannot change a result."""
    pairs = max(1, budget // BYTES_PER_PAIR)
    rows = min(n_q, MOST_ROWS, pairs // n_k)
    if rows >= min(32, n_q):
        return rows, n_k
    rows = min(n_q, 32, pairs)
    return rows, max(1, pairs // rows)


def chunked_attend(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float, *, budget: int = BUDGET, tokens_first: bool = False) -> tuple[Tensor, Tensor]:
    """(o [B,H,Nq,D] in q's dtype, lse fp32 [B,H,Nq]) for the logit parts of ``plan`` (modulation, key_bias, labels, blocks).

    tokens_first: lay the output out in memory as [B,Nq,H,D] (what a [B,N,H*D] projection reads without a copy).
    """
    batch, heads, n_q, _ = q.shape
    group, n_k = heads // k.shape[1], k.shape[2]
    rows, keys = chunk_sizes(n_q, n_k, budget)
    rule, whole = LogitRule.of(plan, k, scale), min(WHOLE, budget // BYTES_PER_PAIR)
    biased = plan.key_bias is not None and plan.key_bias.requires_grad
    recorded = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad or biased)

    outs, lses = [], []
    for b in range(batch):
        o_heads, lse_heads = [], []
        for h in range(heads):
            parts = []
            for row_set, key_set in _work(plan, b, h, n_q, n_k, rows, whole):
                block = _row_block(rule, b, h, group, row_set, key_set, keys)
                args = (q[b, h], k[b, h // group], v[b, h // group])
                parts.append(checkpoint(block, *args, use_reentrant=False) if recorded else block(*args))
            o, lse = torch.cat([o for o, _ in parts]), torch.cat([lse for _, lse in parts])
            if isinstance(plan.blocks, BlockPlan) and n_q * n_k > whole:
                back = _from_places(plan.blocks.q)
                o, lse = o.index_select(0, back), lse.index_select(0, back)
            o_heads.append(o)
            lse_heads.append(lse)
        outs.append(torch.stack(o_heads, dim=1 if tokens_first else 0))
        lses.append(torch.stack(lse_heads))
    o = torch.stack(outs)
    return (o.transpose(1, 2) if tokens_first else o), torch.stack(lses)


def _work(plan: AttentionPlan, b: int, h: int, n_q: int, n_k: int, rows: int, whole: int) -> Iterator[tuple[KeySet, Tensor | None]]:
    """What is computed together: (rows, keys they read or None for all). With blocks: each block of queries by itself."""
    blocks = plan.blocks
    if not isinstance(blocks, BlockPlan) or n_q * n_k <= whole:
        for r0 in range(0, n_q, rows):
            yield slice(r0, min(r0 + rows, n_q)), None
        return
    group = int(blocks.head_map[b % blocks.head_map.shape[0], h % blocks.head_map.shape[1]])
    wanted = (blocks.kinds()[group] != EMPTY).cpu()
    perm_q, perm_k = blocks.q.perm.long().view(blocks.q.blocks, -1), blocks.k.perm.long().view(blocks.k.blocks, -1)
    for row, listed in zip(perm_q, wanted, strict=True):
        keys = perm_k[listed.to(perm_k.device)].flatten()
        yield row[row >= 0], keys[keys >= 0]


def _from_places(order: TokenOrder) -> Tensor:
    """Index of each token among the live places in order."""
    live = order.perm >= 0
    return (live.cumsum(0) - 1)[order.inverse.long()]


def _row_block(rule: LogitRule, b: int, h: int, group: int, rows: KeySet, chosen: Tensor | None, keys: int) -> Callable[..., tuple[Tensor, Tensor]]:
    def block(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        part = q[rows].float()
        n_k = k.shape[0] if chosen is None else chosen.shape[0]
        m = part.new_full((part.shape[0],), -math.inf)
        total = part.new_zeros(part.shape[0])
        acc = part.new_zeros(part.shape)
        for k0 in range(0, n_k, keys):
            cols: KeySet = slice(k0, min(k0 + keys, n_k))
            cols = cols if chosen is None else chosen[cols]
            s = rule(part, k[cols], b, h, group, rows, cols)
            # The maximum only stabilises: its gradient cancels, so none is recorded. Rows without a key keep m = -inf.
            m_new = torch.maximum(m, s.detach().amax(-1))
            safe = m_new.masked_fill(m_new == -math.inf, 0.0)
            p = torch.exp(s - safe[:, None])
            shrink = torch.exp(m - safe)
            total = total * shrink + p.sum(-1)
            acc = acc * shrink[:, None] + p @ v[cols].float()
            m = m_new
        empty = total == 0
        safe_total = total.masked_fill(empty, 1.0)
        lse = (m.masked_fill(empty, 0.0) + safe_total.log()).masked_fill(empty, -math.inf)
        return (acc / safe_total[:, None]).to(q.dtype), lse

    return block
