"""Head mix: pulling the output of chosen heads towards that of a simpler attention, without ever forming either as a matrix.

Source: head-level perturbation, arXiv 2506.10978 (identity, uniform, query mean, max); the form of perturbed-attention guidance
for joint attention, in which a picture token sees itself and the text, in closed form::

    g_i = sigmoid(s_ii - lse_i),   out_i = g_i v_i + (1 - g_i) o_i     with (o_i, lse_i) over the listed keys alone
"""

from __future__ import annotations

import torch
from torch import Tensor

from .chunked import BUDGET, BYTES_PER_PAIR, MOST_ROWS, chunked_attend
from .logits import LogitRule
from .plan import AttentionPlan, HeadMix, Modulation

FUSED_TARGETS = frozenset({"identity", "mean"})
"""Targets a kernel may take into its own pass; the others are made beside it."""


def mix_heads(o: Tensor, q: Tensor, k: Tensor, v: Tensor, mix: HeadMix, plan: AttentionPlan, scale: float) -> Tensor:
    """``(1 - u) o + u target`` on the rows of ``mix``. q [B,H,Nq,D], k, v [B,Hk,Nk,D] rotated; o [B,H,Nq,D], its dtype is kept."""
    group = o.shape[1] // v.shape[1]
    target = mix_target(q, k, v, mix, plan, scale)
    u = mix.amount.float().view(v.shape[1], group, 1, 1)
    grouped = o.unflatten(1, (v.shape[1], group))
    mixed = ((1 - u) * grouped + u * target).to(o.dtype)
    if mix.rows is not None:
        mixed = torch.where(mix.rows[:, None], mixed, grouped)
    return mixed.flatten(1, 2)


def mix_target(q: Tensor, k: Tensor, v: Tensor, mix: HeadMix, plan: AttentionPlan, scale: float) -> Tensor:
    """What the heads are pulled towards, broadcastable to [B, Hk, H/Hk, Nq, D]."""
    if mix.target == "identity":
        return v[:, :, None]
    if mix.target == "mean":
        return v.mean(2, keepdim=True, dtype=torch.float32)[:, :, None]
    made = {"query": _query_mean, "max": _strongest, "own": _own_and_listed}[mix.target](q, k, v, mix, plan, scale)
    return made.unflatten(1, (v.shape[1], q.shape[1] // v.shape[1]))


def _query_mean(q: Tensor, k: Tensor, v: Tensor, mix: HeadMix, plan: AttentionPlan, scale: float) -> Tensor:
    """[B,H,1,D]: one row of attention, that of the mean query, for all."""
    if mix.rows is None:
        one = q.mean(2, keepdim=True, dtype=torch.float32)
    else:
        share = mix.rows.float() / mix.rows.sum().clamp(min=1)
        one = torch.einsum("bhnd,n->bhd", q.float(), share)[:, :, None]
    one = one * _per_head(plan, q)
    # the scores are formed by the library in fp32; a bias of the keys is all that a row without a place can honour
    bias = None if plan.key_bias is None else plan.key_bias[:, :, None].to(q.dtype)
    return torch.nn.functional.scaled_dot_product_attention(one.to(q.dtype), k, v, attn_mask=bias, scale=scale, enable_gqa=k.shape[1] != q.shape[1])


def _strongest(q: Tensor, k: Tensor, v: Tensor, mix: HeadMix, plan: AttentionPlan, scale: float) -> Tensor:
    """[B,H,Nq,D]: the value of the key with the greatest logit; a row without keys yields 0. A block of rows at a time."""
    rule = LogitRule.of(_logit_parts(plan), k, scale)
    group, n_q = q.shape[1] // k.shape[1], q.shape[2]
    step = max(1, min(n_q, MOST_ROWS, BUDGET // (BYTES_PER_PAIR * k.shape[2])))
    out = torch.empty_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for r0 in range(0, n_q, step):
                rows = slice(r0, min(r0 + step, n_q))
                best, at = rule(q[b, h, rows], k[b, h // group], b, h, group, rows, slice(None)).max(-1)
                out[b, h, rows] = torch.where((best > -torch.inf)[:, None], v[b, h // group][at], 0.0)
    return out


def _own_and_listed(q: Tensor, k: Tensor, v: Tensor, mix: HeadMix, plan: AttentionPlan, scale: float) -> Tensor:
    """[B,H,Nq,D]: a softmax over the token's own key and the keys ``mix.keys``."""
    assert mix.keys is not None
    group, keys = q.shape[1] // k.shape[1], mix.keys.long()
    bias = None if plan.key_bias is None else plan.key_bias.float()
    listed = AttentionPlan(modulation=_scale_only(plan), key_bias=None if bias is None else bias[..., keys])
    o, lse = chunked_attend(q, k[:, :, keys], v[:, :, keys], listed, scale)
    own = torch.stack([(q[:, h].float() * k[:, h // group].float()).sum(-1) for h in range(q.shape[1])], 1) * scale * _per_head(plan, q)[..., 0]
    g = torch.sigmoid((own if bias is None else own + bias) - lse)[..., None]
    return (1 - g) * o + g * v.repeat_interleave(group, 1)


def _logit_parts(plan: AttentionPlan) -> AttentionPlan:
    """Rules for single pairs, without the choice of blocks: that is an approximation of the attention, not a part of it."""
    return AttentionPlan(modulation=plan.modulation, key_bias=plan.key_bias, labels=plan.labels)


def _scale_only(plan: AttentionPlan) -> Modulation | None:
    mod = plan.modulation
    return None if mod is None or mod.scale is None else Modulation(scale=mod.scale)


def _per_head(plan: AttentionPlan, q: Tensor) -> Tensor:
    """fp32 [H|1, 1, 1]: the plain factor of the modulation."""
    mod = _scale_only(plan)
    return q.new_ones(1, 1, 1, dtype=torch.float32) if mod is None or mod.scale is None else mod.scale.float()[:, None, None]
