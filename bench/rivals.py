"""Other people's sparse kernels on the same cases, each behind one small adapter.

An adapter uses a package only if it is there already, gives it the same pairs to compute where it can express them, and
says why where it cannot. Where a package wants tokens in the order of the blocks, bringing them there and back is part of
the call, as it is of ours. Written from the packages' public documentation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from torch import Tensor

from ..kernels import flex
from ..kernels.blocks import TokenOrder
from ..kernels.flex_mods import placed
from ..kernels.plan import AttentionPlan
from .impls import Call, Case, Impl, Unfit, importable
from .masks import Mask


def rivals() -> list[Impl]:
    """All adapters, present or not."""
    return [
        Impl("flex", _flex, _flex_missing, backward=True),
        Impl("flashinfer bsr", _flashinfer, importable(_flashinfer_wrapper)),
        Impl("spargeattn", _sparge, importable(_sparge_function)),
        Impl("natten", _natten, importable(_natten_function), own_density=_window_share, same_mask=False),
        Impl("comfy-kitchen na3d", _kitchen_na3d, importable(lambda: _kitchen().na3d), own_density=_window_share, same_mask=False),
        Impl("comfy-kitchen sol_attn", _kitchen_sol, importable(lambda: _kitchen().sol_attn), same_mask=False),
    ]


# --- token order ----------------------------------------------------------------------------------------------------------


def in_block_order(order: TokenOrder) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """(there, back) for [B,H,N,D]: live tokens in the order of the blocks, none padded."""
    if order.identity:
        return (lambda x: x), (lambda x: x)
    take = order.perm[order.perm >= 0].long()
    back = torch.empty_like(take)
    back[take] = torch.arange(take.shape[0], device=take.device)
    return (lambda x: x.index_select(2, take)), (lambda x: x.index_select(2, back))


def _mask(case: Case) -> Mask:
    if case.mask is None:
        raise Unfit("it is measured on sparse cases only")
    return case.mask


def _per_head(case: Case) -> Tensor:
    """bool [H, nQ, nK]: the kept blocks of each head of the first batch element."""
    mask = _mask(case)
    if mask.plan.partial is not None:
        raise Unfit("it reads whole blocks only")
    return mask.kept[mask.plan.head_map[0].long()].expand(case.shape.heads, -1, -1)


def _no_text(case: Case) -> None:
    if case.shape.text:
        raise Unfit("it has no place for text tokens")


# --- FlexAttention --------------------------------------------------------------------------------------------------------


def _flex_function() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


def _flex_missing() -> str | None:
    return None if flex.present() else "not importable: this PyTorch has no FlexAttention"


def _flex(case: Case) -> Call:
    """Compiled, with its own choice of tiles: our fallback backend asks for small ones that fit every GPU."""
    plan = _mask(case).plan
    rule = flex.block_mask(AttentionPlan(blocks=plan), 1, case.shape.heads)
    attention = _flex_function()
    if case.q.device.type == "cuda":
        # One compilation for each mask; past the limit it would silently run uncompiled.
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1024
        attention = torch.compile(attention, dynamic=False)
    back = (lambda x: x) if plan.q.identity else (lambda x: x.index_select(2, plan.q.inverse.long()))
    return lambda: back(attention(placed(case.q, plan.q, 2), placed(case.k, plan.k, 2), placed(case.v, plan.k, 2), block_mask=rule))


# --- FlashInfer -----------------------------------------------------------------------------------------------------------


def _flashinfer_wrapper() -> Any:
    import flashinfer

    return flashinfer.VariableBlockSparseAttentionWrapper


def _flashinfer(case: Case) -> Call:
    mask, kept = _mask(case), _per_head(case)
    there, back = in_block_order(mask.plan.q)
    workspace = torch.empty(128 * 2**20, dtype=torch.uint8, device=case.q.device)
    wrapper = _flashinfer_wrapper()(workspace)
    heads = case.shape.heads
    sizes = [side.valid.int().expand(heads, -1).contiguous() for side in (mask.plan.q, mask.plan.k)]
    wrapper.plan(kept.contiguous(), *sizes, heads, heads, case.shape.width, q_data_type=case.q.dtype)
    return lambda: back(wrapper.run(there(case.q)[0], there(case.k)[0], there(case.v)[0])[None])


# --- SpargeAttn -----------------------------------------------------------------------------------------------------------


def _sparge_function() -> Any:
    from spas_sage_attn import block_sparse_sage2_attn_cuda

    return block_sparse_sage2_attn_cuda


def _sparge(case: Case) -> Call:
    mask, kept = _mask(case), _per_head(case)
    order = mask.plan.q
    if case.shape.width not in (64, 128):
        raise Unfit("it takes head width 64 or 128")
    if order.block != 128 or bool((order.valid[:-1] < order.block).any()):
        raise Unfit("it needs blocks of 128 tokens without padding between them")
    rows, columns = (2, 1) if torch.cuda.get_device_capability() == (9, 0) else (1, 2)
    side_q, side_k = (-(-case.shape.count // (128 // n)) for n in (rows, columns))
    ids = kept.repeat_interleave(rows, 1).repeat_interleave(columns, 2)[None, :, :side_q, :side_k].to(torch.int8).contiguous()
    there, back = in_block_order(order)
    attention = _sparge_function()
    # The threshold on P V is put out of reach, so that it computes the blocks given and no fewer.
    return lambda: back(attention(there(case.q), there(case.k), there(case.v), mask_id=ids, pvthreshd=1e6, output_dtype=case.q.dtype))


# --- neighbourhood attention ----------------------------------------------------------------------------------------------


def _window_share(case: Case) -> float:
    """Share of pairs of a window that moves with each token, not with each tile."""
    assert case.mask is not None
    assert case.mask.window is not None
    return math.prod(case.mask.window) / case.shape.count


def _grid_call(case: Case, attention: Callable[..., Tensor]) -> Call:
    window = _mask(case).window
    if window is None:
        raise Unfit("it computes windows only")
    _no_text(case)
    q, k, v = (x.transpose(1, 2).unflatten(1, case.shape.grid) for x in (case.q, case.k, case.v))
    return lambda: attention(q, k, v, window).flatten(1, 3).transpose(1, 2)


def _natten_function() -> Any:
    from natten import na3d

    return na3d


def _natten(case: Case) -> Call:
    attention = _natten_function()
    return _grid_call(case, lambda q, k, v, window: attention(q, k, v, kernel_size=window))


def _kitchen() -> Any:
    import comfy_kitchen

    return comfy_kitchen


def _kitchen_na3d(case: Case) -> Call:
    attention = _kitchen().na3d
    return _grid_call(case, lambda q, k, v, window: attention(q, k, v, list(window)))


def _kitchen_sol(case: Case) -> Call:
    if case.pattern != "topk":
        raise Unfit("it selects blocks by itself: measured beside our top-k at the same share")
    if case.shape.width != 128:
        raise Unfit("it takes head width 128")
    attention = _kitchen().sol_attn
    q, k, v = (x.transpose(1, 2).contiguous() for x in (case.q, case.k, case.v))
    return lambda: attention(q, k, v, topk_ratio=case.density, tail=False).transpose(1, 2)
