"""Block mass on the GPU: one pass over the logits, or two where each query is renormalised over the keys looked at."""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..blocks import TokenOrder
from ..mass import place, place_keys
from .launch import architecture, interpreted
from .settings import padded_width, precision

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _logits(q_tile, k_base, k_sn, bias_base, bias_sn, col0, live, dims, live_dim, factor, BIAS: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr):
    """Logits in base 2 of a tile of queries against BLOCK_N keys from place ``col0`` on, of which ``live`` count."""
    within = tl.arange(0, BLOCK_N)
    live_col = within < live
    k_ptrs = k_base + tl.cast(col0, tl.int64) * k_sn + within[None, :] * k_sn + dims[:, None]
    k_tile = tl.load(k_ptrs, mask=live_dim[:, None] & live_col[None, :], other=0.0)
    if UPCAST:
        k_tile = k_tile.to(tl.float32)
    s = tl.dot(q_tile, k_tile, input_precision=PRECISION) * factor
    if BIAS:
        s += tl.load(bias_base + (col0 + within) * bias_sn, mask=live_col, other=0.0)[None, :] * LOG2E
    return tl.where(live_col[None, :], s, float("-inf"))


@triton.jit
def mass_kernel(
    q, k, lse, key_bias, perm_q, valid_q, valid_k, out,
    q_sb, q_sh, q_sn, k_sb, k_sh, k_sn, bias_sb, bias_sh, bias_sn,
    heads, group, n_q, tiles_q, blocks_k, first, last, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    OWN_LSE: tl.constexpr, BIAS: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per (batch element, head, tile of BLOCK_M query places); writes its share of each key block's mass.

    q [B,H,Nq,D] in token order, k [B,Hk,places,D] in place order, lse fp32 [B,H,Nq]; out [B,H,tiles_q,nK]. A key block of
    BLOCK_K places is read in tiles of BLOCK_N. OWN_LSE: a first pass finds each query's log-sum-exp over the range.
    """
    program = tl.program_id(0)
    tile = program % tiles_q
    b = (program // tiles_q // heads).to(tl.int64)
    h = (program // tiles_q % heads).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)
    live_dim = dims < D
    rows = tl.load(perm_q + tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    live_row = rows >= 0
    q_tile = tl.load(q + b * q_sb + h * q_sh + rows[:, None] * q_sn + dims[None, :], mask=live_row[:, None] & live_dim[None, :], other=0.0)
    if UPCAST:
        q_tile = q_tile.to(tl.float32)
    k_base = k + b * k_sb + (h // group) * k_sh
    bias_base = key_bias
    if BIAS:
        bias_base += b * bias_sb + h * bias_sh
    factor = scale * LOG2E

    if OWN_LSE:
        m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        for block in tl.range(first, last):
            live = tl.load(valid_k + block)
            for sub in tl.static_range(0, BLOCK_K // BLOCK_N):
                s = _logits(
                    q_tile, k_base, k_sn, bias_base, bias_sn, block * BLOCK_K + sub * BLOCK_N, live - sub * BLOCK_N,
                    dims, live_dim, factor, BIAS, UPCAST, PRECISION, BLOCK_N,
                )  # fmt: skip
                m_new = tl.maximum(m, tl.max(s, 1))
                safe = tl.where(m_new == float("-inf"), 0.0, m_new)
                total = total * tl.math.exp2(m - safe) + tl.sum(tl.math.exp2(s - safe[:, None]), 1)
                m = m_new
        norm = tl.where(total > 0, m + tl.math.log2(tl.where(total > 0, total, 1.0)), 0.0)
    else:
        norm = tl.load(lse + (b * heads + h) * n_q + rows, mask=live_row, other=0.0)
        # A query without keys has lse = -inf and logits of -inf: their difference would be NaN.
        norm = tl.where(norm == float("-inf"), 0.0, norm * LOG2E)

    share = 1.0 / tl.maximum(tl.load(valid_q + tile * BLOCK_M // BLOCK_Q), 1).to(tl.float32)
    out_base = out + ((b * heads + h) * tiles_q + tile) * blocks_k
    for block in tl.range(first, last):
        live = tl.load(valid_k + block)
        per_row = tl.zeros([BLOCK_M], tl.float32)
        for sub in tl.static_range(0, BLOCK_K // BLOCK_N):
            s = _logits(
                q_tile, k_base, k_sn, bias_base, bias_sn, block * BLOCK_K + sub * BLOCK_N, live - sub * BLOCK_N,
                dims, live_dim, factor, BIAS, UPCAST, PRECISION, BLOCK_N,
            )  # fmt: skip
            per_row += tl.sum(tl.math.exp2(s - norm[:, None]), 1)
        # Two axes although one would do: a sum over a vector makes the compiler fail for sm_100 (Triton 3.6).
        mass = tl.sum(tl.where(live_row, per_row, 0.0)[:, None], 0) * share
        tl.store(out_base + block + tl.arange(0, 1), mass.to(out.dtype.element_ty))


# Padded head width -> (BLOCK_M, BLOCK_N, warps, stages): one table, as all of it fits the 64 KB of the smallest GPUs.
_HALF = {32: (128, 64, 4, 2), 64: (128, 64, 4, 2), 128: (128, 64, 8, 2), 256: (64, 64, 8, 1)}
_FULL = {32: (64, 32, 4, 1), 64: (64, 32, 4, 1), 128: (16, 32, 4, 1), 256: (16, 32, 4, 1)}


def mass_tile(block_q: int, block_k: int, width: int, item_size: int) -> tuple[int, int, int, int]:
    """(BLOCK_M, BLOCK_N, warps, stages); tiles divide the blocks."""
    block_m, block_n, warps, stages = (_FULL if item_size > 2 else _HALF)[padded_width(width)]
    return min(block_q, block_m), min(block_k, block_n), warps, stages


@torch.library.custom_op("attention_loom::block_mass", mutates_args=())
def mass_op(
    q: Tensor, k: Tensor, lse: Tensor | None, key_bias: Tensor | None, perm_q: Tensor, valid_q: Tensor, valid_k: Tensor,
    block_q: int, block_k: int, scale: float, first: int, last: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Mass [B,H,nQ,nK] of ``q`` in token order and ``k``, ``key_bias`` in place order; see :func:`kernels.mass.block_mass`."""
    batch, heads, n_q, width = q.shape
    blocks_q, blocks_k = valid_q.shape[0], valid_k.shape[0]
    block_m, block_n, warps, stages = mass_tile(block_q, block_k, width, q.element_size())
    split = block_q // block_m
    out = torch.zeros(batch, heads, blocks_q * split, blocks_k, dtype=dtype if split == 1 else torch.float32, device=q.device)
    strides = [0, 0, 0] if key_bias is None else [0 if key_bias.shape[i] == 1 else key_bias.stride(i) for i in range(3)]
    with torch.cuda.device(q.device) if q.device.type == "cuda" else contextlib.nullcontext():
        mass_kernel[(blocks_q * split * batch * heads,)](
            q, k, lse, key_bias, perm_q, valid_q, valid_k, out,
            *q.stride()[:3], *k.stride()[:3], *strides,
            heads, heads // k.shape[1], n_q, blocks_q * split, blocks_k, first, last, scale,
            D=width, BLOCK_D=padded_width(width), BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_Q=block_q, BLOCK_K=block_k,
            OWN_LSE=lse is None, BIAS=key_bias is not None,
            UPCAST=interpreted() and q.dtype == torch.bfloat16, PRECISION=precision(architecture(q.device)),
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return out if split == 1 else out.unflatten(2, (blocks_q, split)).sum(3).to(dtype)


@mass_op.register_fake
def _mass_shape(q, k, lse, key_bias, perm_q, valid_q, valid_k, block_q, block_k, scale, first, last, dtype):
    return q.new_empty(q.shape[0], q.shape[1], valid_q.shape[0], valid_k.shape[0], dtype=dtype)


def run_mass(
    q: Tensor, k: Tensor, lse: Tensor | None, q_order: TokenOrder, k_order: TokenOrder, scale: float,
    key_bias: Tensor | None, first: int, last: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Launch over tensors in token order. Keys are put in place order by one copy; an identity order needs none."""
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, place(k, k_order)))
    bias = None if key_bias is None else place_keys(key_bias, k_order).float()
    lse = None if lse is None else lse.float().contiguous()
    return mass_op(q, k, lse, bias, q_order.perm, q_order.valid, k_order.valid, q_order.block, k_order.block, scale, first, last, dtype)
