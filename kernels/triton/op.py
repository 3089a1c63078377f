"""The forward kernel as a PyTorch operator, ``torch.ops.attention_loom.forward``: traceable and checkable by opcheck."""

from __future__ import annotations

import torch
from torch import Tensor

from ..logits import mean_key
from ..plan import AttentionPlan
from .launch import choose, launch_forward, lists_for, out_like
from .settings import Settings


@torch.library.custom_op("attention_loom::forward", mutates_args=())
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    kbar: Tensor | None,
    head_scale: Tensor | None,
    key_bias: Tensor | None,
    frames: list[Tensor],
    distance: list[Tensor],
    labels: list[Tensor],
    lists: list[Tensor],
    positive_only: bool,
    tokens_first: bool,
    settings: list[int],
) -> tuple[Tensor, Tensor]:
    """(o [B,H,Nq,D], lse fp32 [B,H,Nq]); arguments as in :func:`launch_forward`. No gradient: callers choose another backend."""
    return launch_forward(
        q, k, v, scale, kbar, head_scale, key_bias, frames, distance, labels, lists, positive_only, tokens_first, Settings(*settings)
    )  # fmt: skip


@forward.register_fake
def _forward_shapes(q, k, v, scale, kbar, head_scale, key_bias, frames, distance, labels, lists, positive_only, tokens_first, settings):
    return out_like(q, tokens_first), q.new_empty(q.shape[:3], dtype=torch.float32)


def run(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float, *, tokens_first: bool, careful: bool = False) -> tuple[Tensor, Tensor]:
    """Execute the logit parts of ``plan`` (modulation, key_bias, labels). Copies an input only if its last stride is not 1."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    mod, labels = plan.modulation, plan.labels
    frames = mod.frames if mod else None
    distance = mod.distance if mod else None
    rules = frames is not None or distance is not None or labels is not None
    s = choose(q, rules, careful)
    lists = lists_for(q, k, frames, distance, labels, s)
    bias = plan.key_bias
    return forward(
        q,
        k,
        v,
        float(scale),
        mean_key(k) if mod and mod.center_keys else None,
        None if mod is None or mod.scale is None else mod.scale.float(),
        None if bias is None else bias.float(),
        [] if frames is None else [x.contiguous() for x in (frames.ids_q, frames.ids_k, frames.classes, frames.factors)],
        [] if distance is None else [x.contiguous() for x in (distance.pos_q, distance.pos_k, distance.classes, distance.factors)],
        [] if labels is None else [labels.label_k.contiguous(), labels.allow_q.contiguous()],
        [] if lists is None else [lists.columns, lists.ends],
        bool(mod and mod.positive_only),
        tokens_first,
        [s.block_m, s.block_n, s.warps, s.stages],
    )
