"""The forward kernel as a PyTorch operator, ``torch.ops.attention_loom.forward``: traceable and checkable by opcheck."""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks import BlockPlan
from ..lists import rule_parts
from ..plan import AttentionPlan
from .arguments import Numbers, Scalars, Tensors, gather
from .launch import choose, launch_forward, out_like
from .settings import FLAGS


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
    tensors, numbers, scalars = gather(q, k, v, plan, float(scale), s, tokens_first)
    return forward(q, k, v, tensors.pack(), numbers.pack(), scalars.pack())
