"""Device code of the forward pass: dense pairs with logit rules, one program per (batch element, head, tile of queries).

Online softmax after FlashAttention-2 (Dao 2023, algorithm 1), in base 2. Where tile lists are given, a program runs one loop
per kind of tile (plain, uniform factor, mixed), so plain tiles pay nothing for the rules; see ``kernels/tiles.py``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .logit_math import (
    distance_class_of_tile,
    distance_classes,
    frame_class_of_tile,
    frame_classes,
    online_softmax,
    scale_logits,
)

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def forward_kernel(
    q, k, v, o, lse,
    kbar, head_scale, key_bias,
    frame_q, frame_k, frame_table, frame_factors,
    pos_q, pos_k, distance_table, distance_factors,
    label_k, allow_q,
    columns, ends,
    q_sb, q_sh, q_sn,
    k_sb, k_sh, k_sn,
    v_sb, v_sh, v_sn,
    o_sb, o_sh, o_sn,
    bias_sb, bias_sh, bias_sn,
    label_sb, allow_sb, columns_sb, ends_sb, head_scale_sh,
    heads, group, n_q, n_k, tiles_q, tiles_k,
    frames_q, frames_k, distances,
    scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    LISTED: tl.constexpr, FRAMES: tl.constexpr, DISTANCE: tl.constexpr, LABELS: tl.constexpr,
    POSITIVE_ONLY: tl.constexpr, CENTER: tl.constexpr, HEAD_SCALE: tl.constexpr, BIAS: tl.constexpr,
    EVEN_N: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """q [B,H,Nq,D], k, v [B,Hk,Nk,D] by strides (last 1); o like q; lse fp32 [B,H,Nq] contiguous, natural logarithm.

    Pointers of absent parts are None and their flag is false. UPCAST: compute in fp32 (the interpreter's bf16 is wrong).
    """
    program = tl.program_id(0)
    tile = program % tiles_q
    # 64-bit from here on: batch and head offsets pass 2^31 elements at video length.
    b = (program // tiles_q // heads).to(tl.int64)
    h = (program // tiles_q % heads).to(tl.int64)
    row0 = tile * BLOCK_M
    rows = row0 + tl.arange(0, BLOCK_M)
    live_row = rows < n_q
    dims = tl.arange(0, BLOCK_D)
    live_dim = dims < D

    q_base = q + b * q_sb + h * q_sh + row0.to(tl.int64) * q_sn
    q_tile = tl.load(q_base + tl.arange(0, BLOCK_M)[:, None] * q_sn + dims[None, :], mask=live_row[:, None] & live_dim[None, :], other=0.0)
    if UPCAST:
        q_tile = q_tile.to(tl.float32)
    k_base = k + b * k_sb + (h // group) * k_sh
    v_base = v + b * v_sb + (h // group) * v_sh

    factor_all = scale * LOG2E
    center = tl.zeros([BLOCK_M], tl.float32)
    if CENTER:
        mean = tl.load(kbar + (b * (heads // group) + h // group) * D + dims, mask=live_dim, other=0.0)
        center = tl.sum(q_tile.to(tl.float32) * mean[None, :], 1) * factor_all
    per_head = 1.0
    if HEAD_SCALE:
        per_head = tl.load(head_scale + h * head_scale_sh)
    if FRAMES:
        id_i = tl.load(frame_q + rows, mask=live_row, other=-1).to(tl.int32)
    if DISTANCE:
        pos_i = tl.load(pos_q + rows, mask=live_row, other=-1).to(tl.int32)
    if LABELS:
        allow = tl.load(allow_q + b * allow_sb + rows, mask=live_row, other=0)

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    # KIND is known at compile time: 0 plain, 1 uniform, 2 mixed.
    for KIND in tl.static_range(0, 3 if LISTED else 1):
        first = 0
        last = tiles_k
        if LISTED:
            row_ends = ends + b * ends_sb + tile * 3
            if KIND > 0:
                first = tl.load(row_ends + KIND - 1)
            last = tl.load(row_ends + KIND)
            row_columns = columns + b * columns_sb + tile.to(tl.int64) * tiles_k
        # Gathers from a class table are not worth buffering ahead: pipelined, they fill the shared memory by themselves.
        for step in tl.range(first, last, num_stages=1 if KIND == 2 and (FRAMES or DISTANCE) else None):
            col0 = step * BLOCK_N
            if LISTED:
                col0 = tl.load(row_columns + step) * BLOCK_N
            within = tl.arange(0, BLOCK_N)
            cols = col0 + within
            live_col = cols < n_k
            k_ptrs = k_base + tl.cast(col0, tl.int64) * k_sn + within[None, :] * k_sn + dims[:, None]
            v_ptrs = v_base + tl.cast(col0, tl.int64) * v_sn + within[:, None] * v_sn + dims[None, :]
            if EVEN_N and D == BLOCK_D:
                k_tile = tl.load(k_ptrs)
                v_tile = tl.load(v_ptrs)
            else:
                k_tile = tl.load(k_ptrs, mask=live_dim[:, None] & live_col[None, :], other=0.0)
                v_tile = tl.load(v_ptrs, mask=live_col[:, None] & live_dim[None, :], other=0.0)
            if UPCAST:
                k_tile = k_tile.to(tl.float32)
                v_tile = v_tile.to(tl.float32)

            s = tl.dot(q_tile, k_tile, input_precision=PRECISION) * factor_all
            if CENTER:
                s -= center[:, None]
            if HEAD_SCALE:
                s *= per_head
            if KIND == 1:
                factor = 1.0
                if FRAMES:
                    at_i = tl.load(frame_q + row0).to(tl.int32)
                    at_j = tl.load(frame_k + col0).to(tl.int32)
                    factor *= tl.load(frame_factors + frame_class_of_tile(at_i, at_j, frame_table, frames_q, frames_k))
                if DISTANCE:
                    at_i = tl.load(pos_q + row0).to(tl.int32)
                    at_j = tl.load(pos_k + col0).to(tl.int32)
                    factor *= tl.load(distance_factors + distance_class_of_tile(at_i, at_j, distance_table, distances))
                s = scale_logits(s, factor, POSITIVE_ONLY)
            if KIND == 2:
                if FRAMES:
                    id_j = tl.load(frame_k + cols, mask=live_col, other=-1).to(tl.int32)
                    frame_class = frame_classes(id_i, id_j, frame_table, frames_q, frames_k)
                    factors = tl.load(frame_factors + frame_class, mask=frame_class != 255, other=1.0)
                if DISTANCE:
                    pos_j = tl.load(pos_k + cols, mask=live_col, other=-1).to(tl.int32)
                    distance_class = distance_classes(pos_i, pos_j, distance_table, distances)
                    by_distance = tl.load(distance_factors + distance_class, mask=distance_class != 255, other=1.0)
                    if FRAMES:
                        factors *= by_distance
                    else:
                        factors = by_distance
                if FRAMES or DISTANCE:
                    # The factors multiply first and the sign is tested once: order matters where a factor is negative.
                    s = scale_logits(s, factors, POSITIVE_ONLY)
                if FRAMES:
                    s = tl.where(frame_class != 255, s, float("-inf"))
                if DISTANCE:
                    s = tl.where(distance_class != 255, s, float("-inf"))
                if LABELS:
                    label = tl.load(label_k + b * label_sb + cols, mask=live_col, other=0).to(tl.int64)
                    s = tl.where(((allow[:, None] >> label[None, :]) & 1) != 0, s, float("-inf"))
            if BIAS:
                bias = tl.load(key_bias + b * bias_sb + h * bias_sh + cols.to(tl.int64) * bias_sn, mask=live_col, other=0.0)
                s += bias[None, :] * LOG2E
            if not EVEN_N:
                # Out-of-range keys would otherwise count with logit 0.
                s = tl.where(live_col[None, :], s, float("-inf"))

            p, m, total, acc = online_softmax(s, m, total, acc)
            acc += tl.dot(p.to(v_tile.dtype), v_tile, input_precision=PRECISION)

    seen = total > 0
    divisor = tl.where(seen, total, 1.0)
    out = acc / divisor[:, None]
    o_base = o + b * o_sb + h * o_sh + row0.to(tl.int64) * o_sn
    tl.store(
        o_base + tl.arange(0, BLOCK_M)[:, None] * o_sn + dims[None, :],
        out.to(o.dtype.element_ty),
        mask=live_row[:, None] & live_dim[None, :],
    )
    # The centre was taken out of every logit of the row: it goes back here, or merging with other keys would be wrong.
    row_lse = tl.where(seen, m * LN2 + tl.math.log2(divisor) * LN2 + center * LN2, float("-inf"))
    tl.store(lse + (b * heads + h) * n_q + rows, row_lse, mask=live_row)
