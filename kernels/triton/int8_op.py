"""The eight-bit paths as a PyTorch operator: their passes, settings and launches."""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks import BlockPlan, TokenOrder
from ..logits import mean_key
from ..order import raster
from ..plan import AttentionPlan
from ..quant import KEY_ROWS, MOST_LOGIT, QUERY_ROWS, Quantised, largest_logit, value_scale
from .arguments import element_arguments
from .launch import architecture, interpreted, on_device, out_like
from .settings import Settings

# (warps, stages) per head width. The tile is the plan's: a scale belongs to it, so it is no launch setting.
_TABLE = {
    "sm_80": {64: (4, 3), 128: (8, 3)},
    "sm_86": {64: (4, 2), 128: (8, 2)},
    "sm_90": {64: (8, 3), 128: (8, 3)},
    "sm_100": {64: (8, 3), 128: (8, 3)},
    "gfx942": {64: (4, 1), 128: (4, 1)},
}
_ALIASES = {"sm_89": "sm_86", "sm_120": "sm_86", "sm_121": "sm_86", "sm_103": "sm_100", "sm_87": "sm_86"}
BITS = 4
"""Kind of the test that reads packed bits, as in ``element_masks.py``."""
DENSE_BLOCK = 128
"""Block of the order used where the plan has none."""


def int8_settings(arch: str, width: int, block_q: int, block_k: int, careful: bool = False) -> Settings:
    """Settings for an architecture, head width 64 or 128 and the plan's blocks. An unknown one takes the smallest row."""
    row = _TABLE.get(_ALIASES.get(arch, arch), _TABLE["gfx942" if arch.startswith("gfx") else "sm_86"])
    warps, stages = row[width]
    block_m = min(block_q, QUERY_ROWS)
    # 64 rows are one warp group's share of a Hopper matrix unit: more warps would cut its tile in two.
    return Settings(block_m, min(block_k, KEY_ROWS), warps if block_m > 64 else 4, 1 if careful else stages)


@torch.library.custom_op("attention_loom::int8_forward", mutates_args=())
def int8_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    key_bias: Tensor | None,
    order_q: list[Tensor],
    order_k: list[Tensor],
    lists: list[Tensor],
    partial: list[Tensor],
    test: list[float],
    tokens_first: bool,
    settings: list[int],
    values8: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(o [B,H,Nq,D], lse fp32 [B,H,Nq], hot bool [B,H]) of q, k, v with D 64 or 128.

    order_q, order_k: [perm, valid] of the token orders; lists: [ptr, col, head_map] or none for dense. partial: [ptr, col] and
    [words, ids] or the [positions] of both sides, as ``test`` asks: (kind, inverted, grid_y, grid_x, lo, hi, radius squared,
    frame scale), or none. key_bias fp32 [B|1,H|1,Nk]. hot: heads whose logits are too large for int8, computed from the values themselves. values8: ``int8_qk_fp8_pv``.
    """
    from .int8 import int8_forward_kernel

    block_m, block_n, warps, stages = settings
    s = Settings(block_m, block_n, warps, stages)
    batch, heads, n_q, width = q.shape
    group = heads // k.shape[1]
    (perm_q, valid_q), (perm_k, valid_k) = order_q, order_k
    mean = mean_key(k).contiguous()
    with on_device(q):
        q_int, shift = _quantise(q, perm_q, s.block_m, mean, scale, keys=False)
        k_int, _ = _quantise(k, perm_k, s.block_n, mean, scale, keys=True)
        v_e4m3, v_scale = _quantise_values(v, perm_k, s.block_n) if values8 else (None, None)
        hot = largest_logit(q_int, k_int, scale) > MOST_LOGIT
        if key_bias is not None:
            # One more axis of places: dead ones repeat token 0 and are dropped by their count.
            key_bias = key_bias.index_select(-1, perm_k.clamp(min=0).long()).contiguous()
        o = out_like(q, tokens_first)
        lse = torch.empty(batch, heads, n_q, dtype=torch.float32, device=q.device)
        blocks_q, blocks_k = valid_q.shape[0], valid_k.shape[0]
        tiles = perm_q.shape[0] // s.block_m
        ptr, col, head_map = lists or (None, None, None)
        partial_ptr, partial_col, *of_test = partial or (None, None, None, None)
        element, inverted, grid_y, grid_x, lo, hi = (int(x) for x in test[:6]) if test else (0,) * 6
        radius2, frame_scale = test[6:] or (0.0, 0.0)
        words, ids = of_test if element == BITS else (None, None)
        pos_q, pos_k = (None, None) if element == BITS else of_test
        int8_forward_kernel[(tiles * batch * heads,)](
            q, k, v, o, lse,
            q_int.values, k_int.values, q_int.scale, k_int.scale, shift, hot.to(torch.int32), v_e4m3, v_scale,
            key_bias, perm_q, perm_k, valid_k,
            ptr, col, partial_ptr, partial_col, head_map, pos_q, pos_k, words, ids,
            q.stride(0), q.stride(1), q.stride(2),
            k.stride(0), k.stride(1), k.stride(2),
            v.stride(0), v.stride(1), v.stride(2),
            o.stride(0), o.stride(1), o.stride(2),
            *_leading(key_bias), *_leading(head_map),
            heads, group, n_q, blocks_q, blocks_k, perm_q.shape[0], perm_k.shape[0],
            grid_y, grid_x, lo, hi, radius2, frame_scale,
            scale,
            D=width, BLOCK_M=s.block_m, BLOCK_N=s.block_n, SUB_M=tiles // blocks_q, SUB_N=perm_k.shape[0] // s.block_n // blocks_k,
            LISTED=bool(lists), ELEMENT=element, INVERTED=bool(inverted), BIAS=key_bias is not None, UPCAST=interpreted() and q.dtype == torch.bfloat16,
            FP8=values8, EMULATED=interpreted(),
            num_warps=s.warps, num_stages=s.stages,
        )  # fmt: skip
    return o, lse, hot


@int8_forward.register_fake
def _shapes(q, k, v, scale, key_bias, order_q, order_k, lists, partial, test, tokens_first, settings, values8):
    return out_like(q, tokens_first), q.new_empty(q.shape[:3], dtype=torch.float32), q.new_empty(q.shape[:2], dtype=torch.bool)


def _no_backward(ctx, *grads):
    raise NotImplementedError("eight-bit attention has no backward: call attend without quant where a gradient is needed")


int8_forward.register_autograd(_no_backward)


def _quantise(x: Tensor, perm: Tensor, rows: int, mean: Tensor, scale: float, *, keys: bool) -> tuple[Quantised, Tensor]:
    from .int8 import quantise_kernel

    batch, heads, _, width = x.shape
    places = perm.shape[0]
    values = torch.empty(batch, heads, places, width, dtype=torch.int8, device=x.device)
    scales = torch.empty(batch, heads, places // rows, dtype=torch.float32, device=x.device)
    norm = torch.empty(batch, heads, places, dtype=torch.float32, device=x.device)
    shift = torch.empty_like(norm[:, :, :0] if keys else norm)
    quantise_kernel[(places // rows * batch * heads,)](
        x, mean, perm, values, scales, norm, shift,
        x.stride(0), x.stride(1), x.stride(2),
        heads, heads // mean.shape[1], places, places // rows,
        scale,
        D=width, ROWS=rows, KEYS=keys,
        num_warps=4, num_stages=1,
    )  # fmt: skip
    return Quantised(values, scales, norm, rows), shift


def _quantise_values(v: Tensor, perm: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """(e4m3 [B,Hk,D,places], fp32 in the interpreter; scale fp32 [B,Hk,D]), see :func:`kernels.quant.quantise_values`."""
    from .int8 import quantise_values_kernel

    batch, heads, _, width = v.shape
    places = perm.shape[0]
    scale = value_scale(v).contiguous()
    values = torch.empty(batch, heads, width, places, dtype=torch.float32 if interpreted() else torch.float8_e4m3fn, device=v.device)
    quantise_values_kernel[(places // rows * batch * heads,)](
        v, perm, scale, values, v.stride(0), v.stride(1), v.stride(2), heads, places, places // rows, D=width, ROWS=rows, EMULATED=interpreted(),
        num_warps=4, num_stages=1,
    )  # fmt: skip
    return values, scale


def _leading(x: Tensor | None) -> tuple[int, int]:
    """Strides of the first two axes, 0 where they are broadcast or absent."""
    if x is None:
        return 0, 0
    return tuple(0 if x.shape[i] == 1 else x.stride(i) for i in (0, 1))  # type: ignore[return-value]


def _order(order: TokenOrder) -> list[Tensor]:
    return [order.perm, order.valid]


def run(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float, *, tokens_first: bool, careful: bool = False, values8: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(o, lse, hot) of the logit parts ``blocks`` and ``key_bias`` of ``plan``. values8: with eight-bit weights and values."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    blocks = plan.blocks
    if blocks is None:
        sides = [raster(x.shape[2], DENSE_BLOCK, str(x.device)) for x in (q, k)]
        lists: list[Tensor] = []
    else:
        assert isinstance(blocks, BlockPlan)
        sides = [blocks.q, blocks.k]
        lists = [blocks.full.ptr, blocks.full.col, blocks.head_map]
    s = int8_settings(architecture(q.device), q.shape[-1], sides[0].block, sides[1].block, careful)
    bias = None if plan.key_bias is None else plan.key_bias.float()
    partial, test = ([], []) if blocks is None else _element_test(blocks)
    return int8_forward(
        q, k, v, float(scale), bias, _order(sides[0]), _order(sides[1]), lists, partial, test, tokens_first, [s.block_m, s.block_n, s.warps, s.stages], values8
    )  # fmt: skip


def _element_test(blocks: BlockPlan) -> tuple[list[Tensor], list[float]]:
    """The partial list, what its test reads, and the numbers of the test; empty without one."""
    if blocks.partial is None or blocks.mask is None:
        return [], []
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, int] = {}
    scalars: dict[str, float] = {}
    element_arguments(blocks, blocks.mask, tensors, numbers, scalars)
    named = [numbers.get(name, 0) for name in ("element", "inverted", "grid_y", "grid_x", "lo", "hi")]
    of_test = [tensors[name] for name in (("bit_words", "bit_ids") if named[0] == BITS else ("place_q", "place_k"))]
    return [blocks.partial.ptr, blocks.partial.col, *of_test], [float(x) for x in (*named, scalars.get("radius2", 0.0), scalars.get("frame_scale", 0.0))]
