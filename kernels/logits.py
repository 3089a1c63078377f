"""The modified logits of a few rows against a few keys, in plain torch.

Shared by the chunked backend and by the probes. One batch element and one head at a time: the numbers of an element then
cannot depend on what else is in the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .block_mask import admitted
from .blocks import BlockPlan
from .plan import MASKED, AttentionPlan

KeySet = slice | Tensor
DROPPED = math.inf  # marks a masked pair inside a table of factors


@dataclass(frozen=True)
class LogitRule:
    """Plan parts that act on logits, prepared once per call: tables of factors with a row and column 0 for exempt tokens.

    frame_table fp32 [Fq+1, Fk+1], ids shifted by one; distance_table fp32 [longest+2], last entry for exempt pairs.
    kbar fp32 [B, Hk, D]: mean key, for the centred sign test.
    """

    plan: AttentionPlan
    scale: float
    frame_table: Tensor | None
    ids_q: Tensor | None
    ids_k: Tensor | None
    distance_table: Tensor | None
    kbar: Tensor | None

    @classmethod
    def of(cls, plan: AttentionPlan, k: Tensor, scale: float) -> LogitRule:
        """Prepare ``plan`` for keys ``k [B,Hk,Nk,D]`` (already rotated)."""
        mod = plan.modulation
        frames = mod.frames if mod else None
        distance = mod.distance if mod else None
        frame_table = ids_q = ids_k = distance_table = None
        if frames is not None:
            inner = _factors(frames.classes, frames.factors)
            frame_table = torch.nn.functional.pad(inner, (1, 0, 1, 0), value=1.0)
            ids_q, ids_k = frames.ids_q.int() + 1, frames.ids_k.int() + 1
        if distance is not None:
            distance_table = torch.nn.functional.pad(_factors(distance.classes, distance.factors), (0, 1), value=1.0)
        return cls(plan, scale, frame_table, ids_q, ids_k, distance_table, mean_key(k) if mod and mod.center_keys else None)

    def __call__(self, q: Tensor, k: Tensor, b: int, h: int, group: int, rows: KeySet, keys: KeySet) -> Tensor:
        """Logits fp32 [c, n] of ``q [c,D]`` (rows ``rows`` of head h, element b) against ``k [n,D]`` (keys ``keys``); a pair the plan drops is -inf."""
        s = (q.float() @ k.float().transpose(0, 1)) * self.scale
        plan, mod = self.plan, self.plan.modulation
        if mod is not None:
            s = self._modulate(s, q, b, h, group, rows, keys)
        if plan.key_bias is not None:
            s = s + _pick(_pick(plan.key_bias, b), h)[keys].float()
        if plan.labels is not None:
            label, allow = _pick(plan.labels.label_k, b)[keys], _pick(plan.labels.allow_q, b)[rows]
            s = s.masked_fill((allow[:, None] >> label.long()[None, :]) & 1 == 0, -math.inf)
        if isinstance(plan.blocks, BlockPlan):
            blocks = plan.blocks
            s = s.masked_fill(~admitted(blocks, _pick(_pick(blocks.head_map, b), h), _listed(rows, blocks.q.inverse), _listed(keys, blocks.k.inverse)), -math.inf)
        return s

    def _modulate(self, s: Tensor, q: Tensor, b: int, h: int, group: int, rows: KeySet, keys: KeySet) -> Tensor:
        mod = self.plan.modulation
        assert mod is not None
        factor = self._factor(rows, keys)
        if mod.scale is not None:
            per_head = _pick(mod.scale, h).float()
            factor = per_head if factor is None else factor * per_head
        if factor is None:
            return s
        center = None
        if self.kbar is not None:
            center = (q.float() @ self.kbar[b, h // group].float())[:, None] * self.scale
            s = s - center
        dropped = factor == DROPPED
        changed = s * factor.masked_fill(dropped, 0.0)
        if mod.positive_only:
            changed = torch.where(s > 0, changed, s)
        if center is not None:
            changed = changed + center
        return changed.masked_fill(dropped, -math.inf)

    def _factor(self, rows: KeySet, keys: KeySet) -> Tensor | None:
        factor = None
        if self.frame_table is not None:
            assert self.ids_q is not None
            assert self.ids_k is not None
            factor = self.frame_table.index_select(0, self.ids_q[rows]).index_select(1, self.ids_k[keys])
        if self.distance_table is not None:
            table = self.plan.modulation.distance  # type: ignore[union-attr]
            pi, pj = table.pos_q[rows].int()[:, None], table.pos_k[keys].int()[None, :]  # type: ignore[union-attr]
            index = (pi - pj).abs().masked_fill((pi < 0) | (pj < 0), self.distance_table.shape[0] - 1)
            other = self.distance_table.index_select(0, index.flatten()).view(index.shape)
            # A product with a negative or zero factor must not unmask a dropped pair.
            factor = other if factor is None else torch.where((factor == DROPPED) | (other == DROPPED), DROPPED, factor * other)
        return factor


def mean_key(k: Tensor) -> Tensor:
    """Mean over all keys, fp32 [B,Hk,D], of ``k [B,Hk,Nk,D]``."""
    return k.mean(dim=2, dtype=torch.float64 if k.dtype == torch.float64 else torch.float32)


def _factors(classes: Tensor, factors: Tensor) -> Tensor:
    masked = classes == MASKED
    return factors.float()[classes.masked_fill(masked, 0).long()].masked_fill(masked, DROPPED)


def _listed(chosen: KeySet, tokens: Tensor) -> Tensor:
    """Token numbers of a slice or a list; ``tokens`` has one entry per token."""
    return torch.arange(tokens.shape[0], device=tokens.device)[chosen] if isinstance(chosen, slice) else chosen


def _pick(x: Tensor, i: int) -> Tensor:
    """Entry i along a first axis that may be broadcast."""
    return x[0 if x.shape[0] == 1 else i]
