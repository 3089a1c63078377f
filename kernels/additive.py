"""Key bias, labels and blocks as one additive mask: for attention functions that know no other rule. One number per pair."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .block_mask import admitted
from .blocks import BlockPlan
from .caching import with_part
from .plan import AttentionPlan, Labels

if TYPE_CHECKING:
    from .backends import Call

KEPT_BYTES = 16 * 2**20
"""Largest map of pairs that is kept with its plan."""


def mask_size(call: Call) -> int:
    """Bytes of the additive mask that expresses key_bias, labels and blocks of the call's main segment."""
    bias, labels, blocks = call.plan.key_bias, call.plan.labels, call.plan.blocks
    if labels is None and blocks is None:
        return 0 if bias is None else bias.numel() * call.q.element_size()
    batch, heads = (1, 1) if bias is None else bias.shape[:2]
    if labels is not None:
        batch = max(batch, labels.allow_q.shape[0], labels.label_k.shape[0])
    if blocks is not None:
        # a pattern not yet chosen may choose for each head
        own = blocks.head_map.shape if isinstance(blocks, BlockPlan) else call.q.shape
        batch, heads = max(batch, own[0]), max(heads, own[1])
    return batch * heads * call.q.shape[2] * call.k.shape[2] * call.q.element_size()


def additive_mask(plan: AttentionPlan, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """(mask [B|1,H|1,Nq|1,Nk], live [B|1,H|1,Nq|1,1]) of key_bias, labels and blocks; (None, None) if there is neither.

    A row without any key gets an all-zero mask, which no softmax turns into NaN, and live = False: its output is dropped.
    """
    mask = None if plan.key_bias is None else plan.key_bias.to(dtype)[:, :, None, :]
    if plan.labels is not None:
        admitted = _admitted(plan.labels)
        mask = torch.zeros((), dtype=dtype, device=admitted.device) if mask is None else mask
        mask = mask.masked_fill(~admitted[:, None], -math.inf)
    if isinstance(plan.blocks, BlockPlan):
        read = _read_pairs(plan.blocks)
        mask = torch.zeros((), dtype=dtype, device=read.device) if mask is None else mask
        mask = mask.masked_fill(~read, -math.inf)
    if mask is None:
        return None, None
    live = mask.detach().amax(-1, keepdim=True) > -math.inf
    return mask.masked_fill(~live, 0.0), live


def _admitted(labels: Labels) -> Tensor:
    """bool [B|1, Nq, Nk], one byte per pair at the peak: allow bits are spread per label, then looked up per key."""
    bits = torch.arange(labels.count, device=labels.allow_q.device)
    allowed = ((labels.allow_q[..., None] >> bits) & 1).bool()
    batch = max(allowed.shape[0], labels.label_k.shape[0])
    allowed, label_k = allowed.expand(batch, -1, -1), labels.label_k.long().expand(batch, -1)
    return torch.stack([a.index_select(1, label) for a, label in zip(allowed, label_k, strict=True)])


def _read_pairs(blocks: BlockPlan) -> Tensor:
    """bool [B|1, H|1, Nq, Nk]: pairs in listed blocks that pass the element test. Kept with the plan: steps share it.

    A large one is made anew for each call: plans of geometry outlive the run, and nobody could free it then.
    """

    def make() -> Tensor:
        rows, keys = (torch.arange(side.tokens, device=side.perm.device) for side in (blocks.q, blocks.k))
        per_group = torch.stack([admitted(blocks, g, rows, keys) for g in range(blocks.groups)])
        return per_group[blocks.head_map.long()]

    batch, heads = blocks.head_map.shape
    return with_part(blocks, "pairs", make) if batch * heads * blocks.q.tokens * blocks.k.tokens <= KEPT_BYTES else make()
