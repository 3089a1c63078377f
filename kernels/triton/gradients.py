"""Autograd around the Triton kernels: forward by ``op.run``, backward by the two passes of ``backward.py``.

Kept for the backward are q, k, v, the output, its log-sum-exp and the plan, which is shared; probabilities are recomputed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..blocks import BlockPlan
from ..lists import WorkLists, rule_parts, work_lists
from ..logits import mean_key
from ..plan import AttentionPlan
from ..transpose import longest_first, transpose_ids, transpose_work
from . import op
from .arguments import element_arguments, rule_tensors
from .backward import Given, Sizes, backward_settings, dkdv_op, dq_op
from .launch import architecture


def run_with_gradient(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float, *, tokens_first: bool, careful: bool = False
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(o, lse) as ``op.run`` gives them, differentiable in q, k, v and the plan's key_bias; once, not twice."""
    center = mean_key(k) if plan.modulation is not None and plan.modulation.center_keys else None
    return _Attention.apply(q, k, v, plan.key_bias, center, plan, scale, tokens_first, careful)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kbar: Tensor | None, plan: AttentionPlan, scale: float, tokens_first: bool, careful: bool):
        o, lse = op.run(q, k, v, plan, scale, tokens_first=tokens_first, careful=careful)
        # The bias is read from the plan: one made under inference mode, as the host's masks are, could not be saved.
        ctx.save_for_backward(q, k, v, o, lse, kbar)
        ctx.call = plan, scale, careful
        ctx.set_materialize_grads(False)
        return o, lse

    @staticmethod
    def backward(ctx: Any, do: Tensor | None, dlse: Tensor | None):
        q, k, v, o, lse, kbar = ctx.saved_tensors
        if do is None:
            do = torch.zeros_like(o)
        plan, scale, careful = ctx.call
        needed = ctx.needs_input_grad[:5]
        grads = _Gradient.apply(q, k, v, o, lse, kbar, do, dlse, plan, scale, needed, careful)
        return *grads, None, None, None, None


class _Gradient(torch.autograd.Function):
    """The gradient as a function of its own, so that asking for its gradient fails with a sentence and not with zeros."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any):
        *given, careful = inputs
        try:
            return gradients(*given, careful=careful)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a compiler or driver throws
            if careful:
                raise
            return gradients(*given, careful=True)

    @staticmethod
    def backward(ctx: Any, *_: Any):
        raise RuntimeError("the Triton attention kernels have no second derivative; use the backend 'chunked' or 'sdpa' where one is needed")


def gradients(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, kbar: Tensor | None, do: Tensor, dlse: Tensor | None,
    plan: AttentionPlan, scale: float, needed: tuple[bool, ...], *, careful: bool = False,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of q, k, v, key bias and mean key, those ``needed``; shapes of their tensors."""
    q, k, v, o, do = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v, o, do))
    queries, keys, sizes, scalars = arguments(q, k, plan, scale, kbar, careful)
    dlse = None if dlse is None else dlse.float().contiguous()
    dq, delta, dcenter = dq_op(q, k, v, o, do, lse, dlse, queries.pack(), sizes.pack(), scalars)
    dk = dv = dbias = dkbar = None
    if any(needed[1:4]):
        dk, dv, dbias = dkdv_op(q, k, v, do, lse, delta, keys.pack(), sizes.pack(), scalars)
    if dbias is not None and plan.key_bias is not None:
        dbias = dbias.sum_to_size(plan.key_bias.shape).to(plan.key_bias.dtype)
    if needed[4] and kbar is not None:
        dkbar = _center_gradient(q, dcenter, k.shape[1])
    return tuple(x if want else None for x, want in zip((dq, dk, dv, dbias, dkbar), needed, strict=True))


def _center_gradient(q: Tensor, dcenter: Tensor, key_heads: int) -> Tensor:
    """Gradient fp32 [B,Hk,D] of the mean key in ``c_i = scale <q_i, kbar>``, where dcenter [B,H,Nq] has the scale in it.

    One head at a time: small temporaries, and sums that cannot depend on what else is in the batch.
    """
    sums = [(dcenter[b, h, :, None] * q[b, h]).sum(0) for b in range(q.shape[0]) for h in range(q.shape[1])]
    return torch.stack(sums).view(q.shape[0], key_heads, -1, q.shape[-1]).sum(2)


def arguments(q: Tensor, k: Tensor, plan: AttentionPlan, scale: float, kbar: Tensor | None, careful: bool) -> tuple[Given, Given, Sizes, list[float]]:
    """(for the pass over queries, for the pass over keys, sizes, scalars)."""
    n_q, n_k, heads = q.shape[2], k.shape[2], q.shape[1]
    blocks = plan.blocks if isinstance(plan.blocks, BlockPlan) else None
    pairs = bool(rule_parts(plan)) or (blocks is not None and blocks.mask is not None)
    s = backward_settings(architecture(q.device), q.shape[-1], q.element_size(), pairs, careful)
    if blocks is None:
        block_q, block_k = s.block_m, s.block_n
        blocks_q, blocks_k = -(-n_q // block_q), -(-n_k // block_k)
    else:
        block_q, block_k, blocks_q, blocks_k = blocks.q.block, blocks.k.block, blocks.q.blocks, blocks.k.blocks
    tile_q, tile_k = min(s.block_m, block_q), min(s.block_n, block_k)

    shared, numbers, scalars = _shared(k, plan, blocks)
    if kbar is not None:
        shared["kbar"] = kbar.contiguous()
    lists = work_lists(plan, n_q, n_k, block_q, block_k)
    queries, keys = dict(shared), dict(shared)
    if lists is not None:
        turned = transpose_work(lists, blocks_k, blocks)
        queries |= _listed(lists, longest_first(lists, q.shape[0], heads, 1, block_q // tile_q))
        keys |= _listed(turned, longest_first(turned, q.shape[0], heads, heads // k.shape[1], block_k // tile_k))
        if blocks is not None and "part_id" in shared:
            assert blocks.partial is not None
            keys["part_id"] = transpose_ids(blocks.partial, shared["part_id"], blocks_k)  # type: ignore[arg-type]
    positive_only = bool(plan.modulation and plan.modulation.positive_only)
    sizes = Sizes(tile_q, tile_k, s.warps, s.stages, block_q, block_k, blocks_q, blocks_k, positive_only, **numbers)
    return Given(**queries), Given(**keys), sizes, [scale, scalars.get("radius2", 0.0), scalars.get("frame_scale", 0.0)]


_NAMES = {"pos_q": "at_q", "pos_k": "at_k", "place_q": "pos_q", "place_k": "pos_k", "bit_words": "words", "bit_ids": "part_id"}
"""Arguments of the forward that have another name here."""


def _shared(k: Tensor, plan: AttentionPlan, blocks: BlockPlan | None) -> tuple[dict[str, Tensor | None], dict[str, int], dict[str, float]]:
    """(tensors both passes read, all per-token ones in token order; integers and scalars of the element test)."""
    mod = None if plan.modulation is None else replace(plan.modulation, center_keys=False)  # the mean key is there already
    tensors = rule_tensors(replace(plan, blocks=None, modulation=mod), k, None)
    numbers: dict[str, int] = {}
    scalars: dict[str, float] = {}
    if blocks is not None and blocks.mask is not None:
        element_arguments(blocks, blocks.mask, tensors, numbers, scalars)
    shared = {_NAMES.get(name, name): x for name, x in tensors.items()}
    if blocks is not None:
        shared["perm_q"] = None if blocks.q.identity else blocks.q.perm
        shared["perm_k"] = None if blocks.k.identity else blocks.k.perm
    return shared, numbers, scalars


def _listed(lists: WorkLists, items: Tensor) -> dict[str, Tensor | None]:
    partial = lists.partial
    return {
        "items": items, "head_map": lists.head_map.int(), "bounds": lists.bounds, "col": lists.col,
        "part_ptr": None if partial is None else partial.ptr, "part_col": None if partial is None else partial.col,
    }  # fmt: skip
