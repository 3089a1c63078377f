"""Device code for the end of a tile of queries: row affine, head mix, then the store in source order; and the merge of split rows."""

from __future__ import annotations

import triton
import triton.language as tl

from .pair_rules import tokens_at

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def finish_rows(
    out, row_lse, token, live_row, b, h, heads, group, n_q, dims, live_dim,
    o, lse, o_sb, o_sh, o_sn,
    row_scale, row_scale_sb, row_scale_sh, residual, residual_sb, residual_sh, residual_sn,
    v, v_sb, v_sh, v_sn, v_mean, mix_amount, mix_rows,
    D: tl.constexpr, AFFINE: tl.constexpr, MIX: tl.constexpr, MIX_ROWS: tl.constexpr,
):  # fmt: skip
    """Store ``out`` fp32 [M, D] and ``row_lse`` fp32 [M] at tokens ``token``, dead rows left out.

    AFFINE: times row_scale fp32 [.., Nq], plus residual [.., Nq, D], by strides (last 1).
    MIX: 0 none, 1 towards the token's own value in ``v``, 2 towards ``v_mean`` fp32 [B, Hk, D]; mix_amount fp32 [heads];
    MIX_ROWS: only where mix_rows uint8 [Nq] is set.
    """
    inside = live_row[:, None] & live_dim[None, :]
    if AFFINE:
        row_factor = tl.load(row_scale + b * row_scale_sb + h * row_scale_sh + token, mask=live_row, other=0.0)
        missed = tl.load(residual + b * residual_sb + h * residual_sh + token[:, None] * residual_sn + dims[None, :], mask=inside, other=0.0)
        out = row_factor[:, None] * out + missed.to(tl.float32)
    if MIX > 0:
        u = tl.load(mix_amount + h)
        if MIX == 1:
            target = tl.load(v + b * v_sb + (h // group) * v_sh + token[:, None] * v_sn + dims[None, :], mask=inside, other=0.0).to(tl.float32)
        else:
            target = tl.load(v_mean + (b * (heads // group) + h // group) * D + dims, mask=live_dim, other=0.0)[None, :]
        mixed = (1 - u) * out + u * target
        out = tl.where((tl.load(mix_rows + token, mask=live_row, other=0) != 0)[:, None], mixed, out) if MIX_ROWS else mixed
    tl.store(o + b * o_sb + h * o_sh + token[:, None] * o_sn + dims[None, :], out.to(o.dtype.element_ty), mask=inside)
    tl.store(lse + (b * heads + h) * n_q + token, row_lse, mask=live_row)


@triton.jit
def store_part(
    out, row_lse, within, b, h, tile, part, heads, tiles_q, split_from, splits, dims, live_dim, part_o, part_lse,
    D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Keep what one part of the keys of a cut row gave, for :func:`merge_kernel`. within: rows of the tile of BLOCK_M."""
    row = (b * heads + h) * splits + part
    row = row * ((tiles_q - split_from) * BLOCK_M) + (tile - split_from) * BLOCK_M + within
    tl.store(part_o + row[:, None] * D + dims[None, :], out, mask=live_dim[None, :])
    tl.store(part_lse + row, row_lse)


@triton.jit
def merge_kernel(
    part_o, part_lse, perm_q, o, lse, row_scale, residual, v, v_mean, mix_amount, mix_rows,
    o_sb, o_sh, o_sn, row_scale_sb, row_scale_sh, residual_sb, residual_sh, residual_sn, v_sb, v_sh, v_sn,
    heads, group, n_q, tiles, splits, place0,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    Q_ORDERED: tl.constexpr, AFFINE: tl.constexpr, MIX: tl.constexpr, MIX_ROWS: tl.constexpr,
):  # fmt: skip
    """One program per (batch element, head, tile of split rows): the parts are added in the order of their keys.

    part_o fp32 [B*H, splits, tiles*BLOCK_M, D], part_lse fp32 [B*H, splits, tiles*BLOCK_M]; place0: place of the first row.
    """
    program = tl.program_id(0)
    tile = program % tiles
    bh = (program // tiles).to(tl.int64)
    b, h = bh // heads, bh % heads
    within = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    live_dim = dims < D
    token, live_row = tokens_at(perm_q, place0 + within, n_q, Q_ORDERED)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for part in range(0, splits):
        row = (bh * splits + part) * tiles * BLOCK_M + within
        own = tl.load(part_lse + row) / LN2
        new = tl.load(part_o + row[:, None] * D + dims[None, :], mask=live_dim[None, :], other=0.0)
        m_new = tl.maximum(m, own)
        safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        shrink, weight = tl.math.exp2(m - safe), tl.math.exp2(own - safe)
        acc = acc * shrink[:, None] + new * weight[:, None]
        total = total * shrink + weight
        m = m_new
    seen = total > 0
    divisor = tl.where(seen, total, 1.0)
    row_lse = tl.where(seen, (m + tl.math.log2(divisor)) * LN2, float("-inf"))
    finish_rows(
        acc / divisor[:, None], row_lse, token, live_row, b, h, heads, group, n_q, dims, live_dim,
        o, lse, o_sb, o_sh, o_sn, row_scale, row_scale_sb, row_scale_sh, residual, residual_sb, residual_sh, residual_sn,
        v, v_sb, v_sh, v_sn, v_mean, mix_amount, mix_rows, D, AFFINE, MIX, MIX_ROWS,
    )  # fmt: skip
