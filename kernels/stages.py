"""The stages of a plan that no kernel needs to know: they run before and after the core of a call.

A backend only has to give ``(o, lse)`` for the logit parts (modulation, key_bias, labels, blocks); rotation, extra segments,
probes, row affine, head mix and row edits are the same code for all of them. A backend that can do some of it in the same
pass names these stages (:data:`FUSABLE`) and finds them in the plan it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .aside import add_asides
from .blocks import BlockPlan
from .caching import with_part
from .chunked import BUDGET, BYTES_PER_PAIR, MOST_ROWS
from .logits import KeySet, LogitRule
from .merge import merge
from .mix import FUSED_TARGETS, mix_heads
from .plan import AttentionPlan, ExtraKV, Probe, RowAffine, RowEdit
from .tail import tail_attend

Core = Callable[[Tensor, Tensor, Tensor, AttentionPlan, bool], tuple[Tensor, Tensor | None]]
"""(q, k, v, plan of logit parts, lse wanted) -> (o, lse or None)."""

CORE_PARTS = frozenset({"modulation", "key_bias", "labels", "blocks"})
AROUND = frozenset({"rotation", "row_affine", "head_mix", "row_edits"})
"""Parts that run around any core, even one that is a foreign dense call."""
WITH_LSE = frozenset({"extra_kv", "probes"})
"""Parts that run around a core that returns its log-sum-exp."""
BESIDE = frozenset({"asides"})
"""Parts that call the core once more, on other keys and without blocks."""
FUSABLE = frozenset({"extra_kv", "tail", "row_affine", "head_mix"})
"""Stages a backend may take over: up to :data:`FUSED_SEGMENTS` segments, a tail read by rows, a row affine, one head mix
towards a target of :data:`kernels.mix.FUSED_TARGETS`."""
FUSED_SEGMENTS = 2
OUTSIDE = AROUND | WITH_LSE | BESIDE
"""All that a core is not given."""


def run_stages(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float, core: Core, return_lse: bool, backend: str = "auto",
    fused: frozenset[str] = frozenset(),
) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:  # fmt: skip
    """All stages in their documented order. Returns (o, lse if wanted, probes). Never writes to q, k or v.

    fused: stages of :data:`FUSABLE` that ``core`` executes itself where it finds them in its plan.
    """
    if plan.rotation is not None:
        q, k, v = _rotated(q, k, v, plan)
    need_lse = return_lse or bool(plan.features & WITH_LSE)
    inner, left = _fuse(plan, fused)

    def with_tail(q: Tensor, k: Tensor, v: Tensor, part: AttentionPlan, lse_wanted: bool) -> tuple[Tensor, Tensor | None]:
        blocks = part.blocks
        if not _tail_left(blocks, fused):
            return core(q, k, v, part, lse_wanted)
        assert isinstance(blocks, BlockPlan)
        # kept with the plan: lists are cached by identity
        read = with_part(blocks, "without tail", lambda: replace(blocks, tail="off"))
        o, lse = core(q, k, v, replace(part, blocks=read), True)
        assert lse is not None
        return merge(o, lse, *tail_attend(q, k, v, blocks, scale))

    def with_affine(q: Tensor, k: Tensor, v: Tensor, part: AttentionPlan, lse_wanted: bool) -> tuple[Tensor, Tensor | None]:
        affine = part.row_affine
        if affine is None or ("row_affine" in fused and not _tail_left(part.blocks, fused)):
            return with_tail(q, k, v, part, lse_wanted)
        o, lse = with_tail(q, k, v, part.without("row_affine"), lse_wanted)
        return _apply_row_affine(o, affine), lse

    if plan.blocks is None or isinstance(plan.blocks, BlockPlan):
        o, lse = with_tail(q, k, v, inner, need_lse)
    else:
        o, lse = plan.blocks.run(q, k, v, inner.without("blocks"), scale, with_affine, need_lse, backend)
    for segment in left.extra_kv:
        assert lse is not None
        o, lse = merge(o, lse, *_segment(q, segment, core))
    probes = read_probes(q, k, lse, plan, scale) if plan.probes and lse is not None else {}
    if left.row_affine is not None:
        o = _apply_row_affine(o, left.row_affine)
    for mix in left.head_mix:
        o = mix_heads(o, q, k, v, mix, plan, scale)
    if plan.asides:
        o = add_asides(o, q, plan.asides, core)
    if plan.row_edits:
        o = _edit_rows(o, plan.row_edits)
    return o, (lse if return_lse else None), probes


def _fuse(plan: AttentionPlan, fused: frozenset[str]) -> tuple[AttentionPlan, AttentionPlan]:
    """(plan for the core, the whole plan less the stages the core takes over)."""
    inner, left = plan.without(*OUTSIDE), plan
    if not isinstance(plan.blocks, BlockPlan | None):
        # A pattern may call the core several times for one result: what is not part of each of them stays outside.
        return inner, left
    if "extra_kv" in fused:
        inner, left = replace(inner, extra_kv=plan.extra_kv[:FUSED_SEGMENTS]), replace(left, extra_kv=plan.extra_kv[FUSED_SEGMENTS:])
    if left.extra_kv or _tail_left(plan.blocks, fused):
        return inner, left
    # The softmax is whole: what follows it may be taken over, in its order.
    if "row_affine" in fused:
        inner, left = replace(inner, row_affine=plan.row_affine), replace(left, row_affine=None)
    if "head_mix" in fused and left.row_affine is None and len(plan.head_mix) == 1 and plan.head_mix[0].target in FUSED_TARGETS:
        inner, left = replace(inner, head_mix=plan.head_mix), replace(left, head_mix=())
    return inner, left


def _tail_left(blocks: object, fused: frozenset[str]) -> bool:
    """Whether ``blocks`` have a tail that the core does not read."""
    return isinstance(blocks, BlockPlan) and blocks.tail != "off" and not ("tail" in fused and blocks.tail == "row")


def rotate(x: Tensor, delta: Tensor, freqs: Tensor, pairing: str) -> Tensor:
    """A rotated copy of ``x [B,H,N,D]``: channel pair c of token n turns by ``sum_a delta[n,a] freqs[a,h,c]`` radians.

    Computed in fp32, returned in x's dtype. A token with zero change comes back bit for bit. Source: RoFormer, eq. 15.
    """
    angle = torch.einsum("na,ahc->hnc", delta.float(), freqs.float())
    cos, sin = angle.cos(), angle.sin()
    first, second = (x[..., 0::2], x[..., 1::2]) if pairing == "interleaved" else x.chunk(2, dim=-1)
    first, second = first.float(), second.float()
    a, b = (first * cos - second * sin).to(x.dtype), (first * sin + second * cos).to(x.dtype)
    return torch.stack((a, b), -1).flatten(-2) if pairing == "interleaved" else torch.cat((a, b), -1)


def _rotated(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> tuple[Tensor, Tensor, Tensor]:
    r = plan.rotation
    assert r is not None
    heads = q.shape[1]
    if r.freqs.shape[1] != 1 and k.shape[1] != heads:
        # Query heads of one group turn the shared key differently, so it is no longer shared.
        k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
    return rotate(q, r.delta_q, r.freqs, r.pairing), rotate(k, r.delta_k, r.freqs, r.pairing), v


def _segment(q: Tensor, e: ExtraKV, core: Core) -> tuple[Tensor, Tensor]:
    batch = q.shape[0]
    k, v = e.k.expand(batch, -1, -1, -1), e.v.expand(batch, -1, -1, -1)
    o, lse = core(q, k, v, AttentionPlan(key_bias=e.bias), True)
    assert lse is not None
    if e.rows is not None:
        # Selecting rows by a mask would wait for the device; a segment is small, so all rows read it and some forget it.
        lse = lse.masked_fill(~e.rows, -math.inf)
    return o, lse


def _apply_row_affine(o: Tensor, affine: RowAffine) -> Tensor:
    """``scale * o + residual`` in fp32, in o's dtype and layout; a head at a time, so that the fp32 stays small beside o."""
    out = torch.empty_like(o)
    for h in range(o.shape[1]):
        scale, residual = (x[:, h if x.shape[1] > 1 else 0] for x in (affine.scale, affine.residual))
        out[:, h] = (scale[..., None] * o[:, h] + residual).to(o.dtype)
    return out


def _edit_rows(o: Tensor, edits: tuple[RowEdit, ...]) -> Tensor:
    before, out = o, o
    for edit in edits:
        old = before.index_select(2, edit.rows.long()).float()
        source = before.index_select(2, edit.copy_from.long()) if edit.values is None else edit.values  # type: ignore[union-attr]
        new = (1 - edit.weight) * old + edit.weight * source.float()
        out = out.index_copy(2, edit.rows.long(), new.to(o.dtype))
    return out


def read_probes(q: Tensor, k: Tensor, lse: Tensor, plan: AttentionPlan, scale: float) -> dict[str, Tensor]:
    """Second pass over the logits for the probes of ``plan``, with the final ``lse [B,H,Nq]``; q, k already rotated.

    Exact: P_ij = exp(s_ij - lse_i). Works in blocks of rows, one head at a time; peak memory is a block of rows x keys.
    """
    rule = LogitRule.of(plan.without(*OUTSIDE), k, scale)
    found = {probe.name: [_read_one(rule, probe, q, k, lse, plan, b, scale) for b in range(q.shape[0])] for probe in plan.probes}
    return {name: torch.stack(per_element) for name, per_element in found.items()}


def _read_one(rule: LogitRule, probe: Probe, q: Tensor, k: Tensor, lse: Tensor, plan: AttentionPlan, b: int, scale: float) -> Tensor:
    heads, n_q = q.shape[1], q.shape[2]
    group = heads // k.shape[1]
    keys: KeySet = slice(None) if probe.keys is None else probe.keys.long()
    step = max(1, min(n_q, MOST_ROWS, BUDGET // (BYTES_PER_PAIR * k.shape[2])))
    per_head = []
    for h in range(heads):
        k_h = k[b, h // group][keys]
        blocks: list[Tensor] = []
        for r0 in range(0, n_q, step):
            rows = slice(r0, min(r0 + step, n_q))
            s = rule(q[b, h, rows], k_h, b, h, group, rows, keys)
            p = _probabilities(s, lse[b, h, rows])
            if probe.kind == "columns":
                blocks.append(p)
            elif probe.kind == "popularity":
                # A running sum: one entry per block of rows would grow with rows x keys.
                blocks = [blocks[0] + p.sum(0)] if blocks else [p.sum(0)]
            else:
                entropy = -_p_log_p(p, s, lse[b, h, rows])
                for e in plan.extra_kv:
                    entropy = entropy - _segment_p_log_p(e, q[b, h, rows], lse[b, h, rows], b, h, heads, rows, scale)
                blocks.append(entropy)
        per_head.append(blocks[0] / n_q if probe.kind == "popularity" else torch.cat(blocks))
    return torch.stack(per_head)


def _probabilities(s: Tensor, lse: Tensor) -> Tensor:
    return torch.exp(s - lse.masked_fill(lse == -math.inf, 0.0)[:, None])


def _p_log_p(p: Tensor, s: Tensor, lse: Tensor) -> Tensor:
    # log p = s - lse is exact even where p is tiny; a dropped pair counts 0, not 0 * -inf.
    log_p = (s - lse[:, None]).masked_fill(p == 0, 0.0)
    return (p * log_p).sum(-1)


def _segment_p_log_p(e: ExtraKV, q: Tensor, lse: Tensor, b: int, h: int, heads: int, rows: slice, scale: float) -> Tensor:
    rule = LogitRule.of(AttentionPlan(key_bias=e.bias), e.k, scale)
    group = heads // e.k.shape[1]
    s = rule(q, e.k[0 if e.k.shape[0] == 1 else b, h // group], b, h, group, rows, slice(None))
    if e.rows is not None:
        s = s.masked_fill(~e.rows[rows][:, None], -math.inf)
    return _p_log_p(_probabilities(s, lse), s, lse)
