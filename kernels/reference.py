"""The slow truth: every part of an AttentionPlan written out literally, with whole Nq x Nk matrices.

No formula here is shared with the fast paths on purpose: a mistake in one of them cannot hide in both. Only tests and
benchmarks call this; memory is O(B H Nq Nk).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .blocks import EMPTY, Band, Bits, BlockPlan, TokenOrder, Window
from .plan import MASKED, AttentionPlan, DistanceTable, FrameTable, HeadMix


def reference_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    *,
    scale: float | None = None,
    return_lse: bool = False,
    dtype: torch.dtype = torch.float64,
    trace: Any = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of ``q [B,H,Nq,D]`` over ``k, v [B,Hk,Nk,D]`` as ``plan`` asks, computed in ``dtype``.

    Returns o ``[B,H,Nq,D]`` in ``dtype`` and, with ``return_lse``, the natural log-sum-exp ``[B,H,Nq]`` of everything that
    took part. ``trace.probes`` receives the probes. Source: semantics stated in ``kernels/plan.py``.

    >>> reference_attend(q, k, v, AttentionPlan())          # softmax(q k^T / sqrt(D)) v
    """
    heads, width = q.shape[1], q.shape[-1]
    scale = width**-0.5 if scale is None else scale
    q, k, v = q.to(dtype), _per_head(k, heads).to(dtype), _per_head(v, heads).to(dtype)
    if plan.rotation is not None:
        r = plan.rotation
        q = _rotate(q, r.delta_q, r.freqs, r.pairing)
        k = _rotate(k, r.delta_k, r.freqs, r.pairing)

    logits = [_main_logits(q, k, plan, scale)]
    values = [v]
    if isinstance(plan.blocks, BlockPlan):
        read = _read_pairs(plan.blocks)
        logits[0] = logits[0].masked_fill(~read, -math.inf)
        if plan.blocks.tail != "off":
            s, pooled = _tail(q, k, v, plan.blocks, scale)
            logits.append(s)
            values.append(pooled)
    for segment in plan.extra_kv:
        s = scale * q @ _per_head(segment.k, heads).to(dtype).transpose(-1, -2)
        if segment.bias is not None:
            s = s + segment.bias.to(dtype)[:, :, None, :]
        if segment.rows is not None:
            s = s.masked_fill(~segment.rows[:, None], -math.inf)
        logits.append(s)
        values.append(_per_head(segment.v, heads).to(dtype).expand(q.shape[0], -1, -1, -1))

    s = torch.cat([x.expand(q.shape[0], heads, -1, -1) for x in logits], dim=-1)
    lse = torch.logsumexp(s, dim=-1)
    p = torch.exp(s - lse.masked_fill(lse == -math.inf, 0.0)[..., None])
    out = p @ torch.cat(values, dim=2)
    if trace is not None:
        trace.probes.update(_probes(p, k.shape[2], plan))

    if plan.row_affine is not None:
        out = plan.row_affine.scale.to(dtype)[..., None] * out + plan.row_affine.residual.to(dtype)
    for mix in plan.head_mix:
        target = _mix_map(q, k, mix, plan, scale) @ v
        u = mix.amount.to(dtype)[:, None, None]
        mixed = (1 - u) * out + u * target
        out = mixed if mix.rows is None else torch.where(mix.rows[:, None], mixed, out)

    before, out = out, out.clone()
    for a in plan.asides:
        for i, (e, base) in enumerate(zip(a.elements, a.bases, strict=True)):
            k_e, v_e = (_per_head(x[i % x.shape[0]][None], heads)[0].to(dtype) for x in (a.k, a.v))
            aside = torch.softmax(scale * q[e] @ k_e.transpose(-1, -2), dim=-1) @ v_e
            out[e][:, a.rows] += a.weight.to(dtype)[:, None] * (aside - before[base])[:, a.rows]

    before = out
    for edit in plan.row_edits:
        source = before[:, :, edit.copy_from] if edit.values is None else edit.values.to(dtype)
        out = out.clone()
        out[:, :, edit.rows] = (1 - edit.weight) * before[:, :, edit.rows] + edit.weight * source
    return (out, lse) if return_lse else out


def _mix_map(q: Tensor, k: Tensor, mix: HeadMix, plan: AttentionPlan, scale: float) -> Tensor:
    """The simpler attention [B|1,H|1,Nq,Nk] that heads are mixed with, as a matrix."""
    n_q, n_k = q.shape[2], k.shape[2]
    if mix.target == "identity":
        return torch.eye(n_q, dtype=q.dtype, device=q.device)
    if mix.target == "mean":
        return torch.full((n_q, n_k), 1 / n_k, dtype=q.dtype, device=q.device)
    if mix.target == "max":
        s = _main_logits(q, k, plan, scale)
        best = s == s.amax(-1, keepdim=True)
        return (best & (best.cumsum(-1) == 1) & (s > -math.inf)).to(q.dtype)
    factor = 1.0 if plan.modulation is None or plan.modulation.scale is None else plan.modulation.scale.to(q.dtype)[:, None, None]
    bias = 0.0 if plan.key_bias is None else plan.key_bias.to(q.dtype)[:, :, None, :]
    if mix.target == "query":
        taken = q if mix.rows is None else q[:, :, mix.rows]
        same = taken.mean(2, keepdim=True).expand(q.shape)
        return torch.softmax(factor * scale * same @ k.transpose(-1, -2) + bias, -1)
    seen = torch.eye(n_q, dtype=torch.bool, device=q.device)
    seen[:, mix.keys.long()] = True  # type: ignore[union-attr]
    s = (factor * scale * q @ k.transpose(-1, -2) + bias).masked_fill(~seen, -math.inf)
    return torch.softmax(s, -1)


def _per_head(x: Tensor, heads: int) -> Tensor:
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def _rotate(x: Tensor, delta: Tensor, freqs: Tensor, pairing: str) -> Tensor:
    angle = torch.einsum("na,ahc->hnc", delta.to(x.dtype), freqs.to(x.dtype))
    cos, sin = angle.cos(), angle.sin()
    half = x.shape[-1] // 2
    first, second = (x[..., 0::2], x[..., 1::2]) if pairing == "interleaved" else (x[..., :half], x[..., half:])
    a, b = first * cos - second * sin, first * sin + second * cos
    return torch.stack((a, b), -1).flatten(-2) if pairing == "interleaved" else torch.cat((a, b), -1)


def _main_logits(q: Tensor, k: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    s = scale * q @ k.transpose(-1, -2)
    mod = plan.modulation
    if mod is not None:
        factor = torch.ones(q.shape[2], k.shape[2], dtype=s.dtype, device=s.device)
        masked = torch.zeros_like(factor, dtype=torch.bool)
        for table in (mod.frames, mod.distance):
            if table is not None:
                classes = _frame_classes(table) if isinstance(table, FrameTable) else _distance_classes(table)
                masked |= classes == MASKED
                factor = factor * table.factors.to(s.dtype)[classes.masked_fill(classes == MASKED, 0)]
        c = scale * q @ k.mean(2, keepdim=True).transpose(-1, -2) if mod.center_keys else torch.zeros_like(s[..., :1])
        x = s - c
        if mod.scale is not None:
            factor = factor * mod.scale.to(s.dtype)[:, None, None]
        s = c + (torch.where(x > 0, factor * x, x) if mod.positive_only else factor * x)
        s = s.masked_fill(masked, -math.inf)
    if plan.key_bias is not None:
        s = s + plan.key_bias.to(s.dtype)[:, :, None, :]
    if plan.labels is not None:
        admitted = (plan.labels.allow_q[:, :, None] >> plan.labels.label_k.long()[:, None, :]) & 1
        s = s.masked_fill(admitted[:, None] == 0, -math.inf)
    return s


def _read_pairs(plan: BlockPlan) -> Tensor:
    """bool [B|1, H|1, Nq, Nk], block by block and token by token."""
    out = torch.zeros(plan.groups, plan.q.tokens, plan.k.tokens, dtype=torch.bool, device=plan.q.perm.device)
    for g in range(plan.groups):
        for kind, lists in (("full", plan.full), ("partial", plan.partial)):
            if lists is None:
                continue
            ptr, col = lists.ptr[g].tolist(), lists.col.tolist()
            for a in range(plan.q.blocks):
                rows = _tokens(plan.q, a)
                for at in range(ptr[a], ptr[a + 1]):
                    keys = _tokens(plan.k, col[at])
                    inner = torch.ones(len(rows), len(keys), dtype=torch.bool) if kind == "full" else _inner(plan, at, rows, keys)
                    out[g, torch.tensor(rows)[:, None], torch.tensor(keys)[None, :]] = inner.to(out.device)
    return out[plan.head_map.long()]


def _tokens(order: TokenOrder, block: int) -> list[int]:
    places = order.perm[block * order.block : (block + 1) * order.block].tolist()
    return [t for t in places if t >= 0]


def _inner(plan: BlockPlan, at: int, rows: list[int], keys: list[int]) -> Tensor:
    """The element test of one partial block, pair by pair."""
    out = torch.zeros(len(rows), len(keys), dtype=torch.bool)
    mask, (_, y, x) = plan.mask, plan.q.grid or (1, 1, 1)
    assert mask is not None
    for i, row in enumerate(rows):
        for j, key in enumerate(keys):
            if isinstance(mask, Bits):
                word = int(mask.words[int(mask.ids[at]), i, j // 32]) & 0xFFFFFFFF
                hit = bool(word >> (j % 32) & 1)
                out[i, j] = hit != mask.inverted
                continue
            p, r = int(plan.q.pos[int(plan.q.inverse[row])]), int(plan.k.pos[int(plan.k.inverse[key])])
            if p < 0 or r < 0:
                out[i, j] = not mask.inverted
                continue
            (fp, ip), (fr, ir) = divmod(p, y * x), divmod(r, y * x)
            if isinstance(mask, Window):
                hit = (ip // x - ir // x) ** 2 + (ip % x - ir % x) ** 2 + (mask.frame_scale * (fp - fr)) ** 2 < mask.radius**2
            elif isinstance(mask, Band):
                hit = abs(ip - ir) <= mask.half_width
            else:
                hit = mask.lo <= fr - fp <= mask.hi
            out[i, j] = hit != mask.inverted
    return out


def _tail(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, scale: float) -> tuple[Tensor, Tensor]:
    """(logits [B,H,Nq,nK], values [B,H,nK,D]) of one pseudo-key per block that is not read."""

    def means(x: Tensor, order: TokenOrder) -> Tensor:
        return torch.stack([x[:, :, _tokens(order, b)].mean(2) for b in range(order.blocks)], 2)

    reader = q
    if plan.tail == "centroid":
        reader = torch.empty_like(q)
        for b in range(plan.q.blocks):
            reader[:, :, _tokens(plan.q, b)] = q[:, :, _tokens(plan.q, b)].mean(2, keepdim=True)
    count = torch.tensor([float(len(_tokens(plan.k, b))) for b in range(plan.k.blocks)], dtype=q.dtype, device=q.device)
    s = scale * reader @ means(k, plan.k).transpose(-1, -2) + count.log()
    home = plan.q.inverse.long() // plan.q.block
    unread = (plan.kinds() == EMPTY)[plan.head_map.long()][:, :, home]
    return s.masked_fill(~unread, -math.inf), means(v, plan.k)


def _frame_classes(table: FrameTable) -> Tensor:
    fi, fj = table.ids_q.long()[:, None], table.ids_k.long()[None, :]
    classes = table.classes.long()[fi.clamp(min=0), fj.clamp(min=0)]
    return classes.masked_fill((fi < 0) | (fj < 0), 0)


def _distance_classes(table: DistanceTable) -> Tensor:
    pi, pj = table.pos_q.long()[:, None], table.pos_k.long()[None, :]
    outside = (pi < 0) | (pj < 0)
    classes = table.classes.long()[(pi - pj).abs().masked_fill(outside, 0)]
    return classes.masked_fill(outside, 0)


def _probes(p: Tensor, n_keys: int, plan: AttentionPlan) -> dict[str, Tensor]:
    out = {}
    for probe in plan.probes:
        if probe.kind == "columns":
            out[probe.name] = p[..., :n_keys][..., probe.keys]
        elif probe.kind == "entropy":
            out[probe.name] = -(p * p.masked_fill(p == 0, 1.0).log()).sum(-1)
        else:
            out[probe.name] = p[..., :n_keys].mean(2)
    return out
