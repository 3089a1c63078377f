"""The forward kernel as a PyTorch operator, ``torch.ops.attention_loom.forward``: traceable and checkable by opcheck."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..blocks import BlockPlan
from ..lists import rule_parts
from ..pairs import pair_rows, pairable
from ..plan import AttentionPlan
from .arguments import Numbers, Scalars, Tensors, gather
from .launch import architecture, choose, launch_forward, out_like
from .settings import FLAGS, Settings
from .specialised_launch import fits


@torch.library.custom_op("attention_loom::forward", mutates_args=())
def forward(q: Tensor, k: Tensor, v: Tensor, tensors: list[Tensor | None], numbers: list[int], scalars: list[float]) -> tuple[Tensor, Tensor]:
    """(o [B,H,Nq,D], lse fp32 [B,H,Nq]); the lists are packed :mod:`kernels.triton.arguments`. No gradient by itself."""
    return launch_forward(q, k, v, Tensors(*tensors), Numbers.unpack(numbers), Scalars(*scalars))


@forward.register_fake
def _forward_shapes(q, k, v, tensors, numbers, scalars):
    return out_like(q, bool(Numbers.unpack(numbers).tokens_first)), q.new_empty(q.shape[:3], dtype=torch.float32)


def flags_of(plan: AttentionPlan) -> list[str]:
    """The flags of ``plan`` that settings depend on."""
    blocks = plan.blocks if isinstance(plan.blocks, BlockPlan) else None
    present = {
        "bias": plan.key_bias is not None,
        "modulation": bool(rule_parts(plan)),
        "partial": blocks is not None and blocks.mask is not None,
        "segments": bool(plan.extra_kv),
        "tail": blocks is not None and blocks.tail == "row",
    }
    return [name for name in FLAGS if present[name]]


def run(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float, *, tokens_first: bool, careful: bool = False) -> tuple[Tensor, Tensor]:
    """Execute the parts of ``plan`` the kernel knows (see :func:`gather`). Copies an input only if its last stride is not 1."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    blocks = plan.blocks if isinstance(plan.blocks, BlockPlan) else None
    s = choose(q, flags_of(plan), careful, (128, 128) if blocks is None else (blocks.q.block, blocks.k.block))
    if blocks is not None and s.block_m > blocks.q.block:
        found = _in_pairs(q, k, v, plan, blocks, float(scale), s, tokens_first)
        if found is not None:
            return forward(q, k, v, *found)
        s = replace(s, block_m=blocks.q.block, warps=min(s.warps, 4))
    tensors, numbers, scalars = gather(q, k, v, plan, float(scale), s, tokens_first)
    return forward(q, k, v, tensors.pack(), numbers.pack(), scalars.pack())


def _in_pairs(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, blocks: BlockPlan, scale: float, s: Settings, tokens_first: bool
) -> tuple[list[Tensor | None], list[int], list[float]] | None:
    """Packed arguments with two rows of the plan in one tile; None where the one kernel that knows this cannot take the call."""
    if rule_parts(plan) or not pairable(blocks):
        return None
    pairs = pair_rows(blocks)
    tensors, numbers, scalars = gather(q, k, v, replace(plan, blocks=pairs.plan), scale, s, tokens_first)
    tensors = replace(tensors, takers=pairs.takers)
    return (tensors.pack(), numbers.pack(), scalars.pack()) if fits(architecture(q.device), q, k, v, tensors, numbers, scalars) else None
