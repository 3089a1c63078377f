"""Device code of the forward pass: one program per (batch element, head, tile of queries, part of its keys).

Online softmax after FlashAttention-2 (Dao 2023, algorithm 1), in base 2. Where there are lists, a program runs one loop per
kind of block (plain, uniform factor, mixed, partial: ``kernels/lists.py``), so plain blocks pay nothing for the rules. Then
come the extra segments and the pooled tail, in the same softmax.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .epilogue import finish_rows, store_part
from .items import item_at, range_of
from .key_tiles import key_tile, products_at
from .logit_math import online_softmax, online_softmax_of_products
from .pair_rules import tokens_at
from .rounds import ruled_logits
from .segments import read_segment, read_tail

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


# Sizes that take any value: a kernel of its own for each that is 1 or a multiple of 16 would be compiled for nothing.
SIZES = (
    "n_q", "n_k", "tiles_q", "rows_q", "blocks_k", "unread_bytes", "frames_q", "frames_k", "distances", "split_from", "splits",
    "grid_y", "grid_x", "lo", "hi", "seg0_n", "seg1_n",
)  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q, k, v, o, lse,
    kbar, head_scale, key_bias,
    frame_q, frame_k, frame_table, frame_factors,
    pos_q, pos_k, distance_table, distance_factors,
    label_k, allow_q,
    items, head_map, bounds, col, gains, partial_ptr, partial_col, chunk,
    perm_q, k_valid, place_q, place_k, bit_words, bit_ids,
    seg0_k, seg0_v, seg0_bias, seg0_rows, seg1_k, seg1_v, seg1_bias, seg1_rows,
    k_mean, v_mean, unread, row_scale, residual,
    mix_v, mix_mean, mix_amount, mix_rows,
    part_o, part_lse,
    q_sb, q_sh, q_sn,
    k_sb, k_sh, k_sn,
    v_sb, v_sh, v_sn,
    o_sb, o_sh, o_sn,
    mix_sb, mix_sh, mix_sn,
    bias_sb, bias_sh, bias_sn, row_scale_sb, row_scale_sh, residual_sb, residual_sh, residual_sn,
    label_sb, allow_sb, map_sb, map_sh, head_scale_sh,
    seg0_sb, seg0_group, seg0_n, seg0_bias_sb, seg0_bias_sh,
    seg1_sb, seg1_group, seg1_n, seg1_bias_sb, seg1_bias_sh,
    heads, group, n_q, n_k, tiles_q, rows_q, blocks_k, unread_bytes,
    frames_q, frames_k, distances,
    split_from, splits,
    grid_y, grid_x, lo, hi, radius2, frame_scale,
    scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    LISTED: tl.constexpr, FRAMES: tl.constexpr, DISTANCE: tl.constexpr, LABELS: tl.constexpr,
    ELEMENT: tl.constexpr, INVERTED: tl.constexpr, SPLIT: tl.constexpr,
    Q_ORDERED: tl.constexpr, K_ORDERED: tl.constexpr, EVEN_N: tl.constexpr,
    POSITIVE_ONLY: tl.constexpr, CENTER: tl.constexpr, HEAD_SCALE: tl.constexpr, BIAS: tl.constexpr,
    SEG0: tl.constexpr, SEG0_BIAS: tl.constexpr, SEG0_ROWS: tl.constexpr,
    SEG1: tl.constexpr, SEG1_BIAS: tl.constexpr, SEG1_ROWS: tl.constexpr,
    TAIL: tl.constexpr, AFFINE: tl.constexpr, MIX: tl.constexpr, MIX_ROWS: tl.constexpr,
    POSITIVE_SCALE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_PAIR: tl.constexpr, AHEAD: tl.constexpr, ENGINE: tl.constexpr,
):  # fmt: skip
    """q [B,H,Nq,D], k, v [B,Hk,Nk,D] by strides (last 1); o like q; lse fp32 [B,H,Nq] contiguous, natural logarithm.

    Pointers of absent parts are None and their flag is false. Q_ORDERED: rows are gathered and stored through ``perm_q``.
    K_ORDERED: k, v and all vectors over keys are in place order already, n_k counts places, and ``k_valid`` says how many of
    a block are live; otherwise the first n_k places are. A list entry of BLOCK_Q x BLOCK_K is read in tiles of BLOCK_M x
    BLOCK_N. SEG0, SEG1: keys per step of an extra segment, 0 = absent. UPCAST: compute in fp32 (the interpreter's bf16 is
    wrong). POSITIVE_SCALE: the scale is known to be above zero. BLOCK_PAIR: keys per step of the loops that look at single
    pairs, a divisor of BLOCK_N. AHEAD, ENGINE: see :data:`kernels.triton.settings.VARIANTS`.
    """
    RULES: tl.constexpr = FRAMES or DISTANCE or LABELS
    KINDS: tl.constexpr = 3 if RULES else 1
    BY_POSITION: tl.constexpr = ELEMENT > 0 and ELEMENT < 4
    PER_ROW: tl.constexpr = BLOCK_Q // BLOCK_M
    # Keys per step by kind: factors and masks of single pairs live in registers, so those loops take fewer at a time.
    KEYS: tl.constexpr = (BLOCK_N, BLOCK_PAIR, BLOCK_PAIR)
    # Keys in place order are padded with zeros to whole blocks.
    WHOLE: tl.constexpr = (EVEN_N or K_ORDERED) and D == BLOCK_D

    b, h, tile, part = item_at(tl.program_id(0), items, heads, tiles_q, split_from, splits, LISTED)

    place0 = tile * BLOCK_M
    place = place0 + tl.arange(0, BLOCK_M)
    token, live_row = tokens_at(perm_q, place, n_q, Q_ORDERED)
    dims = tl.arange(0, BLOCK_D)
    live_dim = dims < D

    q_tile = tl.load(q + b * q_sb + h * q_sh + token[:, None] * q_sn + dims[None, :], mask=live_row[:, None] & live_dim[None, :], other=0.0)
    if UPCAST:
        q_tile = q_tile.to(tl.float32)
    k_base = k + b * k_sb + (h // group) * k_sh
    v_base = v + b * v_sb + (h // group) * v_sh
    k_engine = tl.make_tensor_descriptor(k_base, [n_k, D], [k_sn, 1], [BLOCK_N, BLOCK_D]) if ENGINE else None
    v_engine = tl.make_tensor_descriptor(v_base, [n_k, D], [v_sn, 1], [BLOCK_N, BLOCK_D]) if ENGINE else None

    factor_all = scale * LOG2E
    unit = factor_all if POSITIVE_SCALE else 1.0
    center = tl.zeros([BLOCK_M], tl.float32)
    if CENTER:
        mean = tl.load(kbar + (b * (heads // group) + h // group) * D + dims, mask=live_dim, other=0.0)
        center = tl.sum(q_tile.to(tl.float32) * mean[None, :], 1)
        if not POSITIVE_SCALE:
            center *= factor_all
    per_head_scale = 1.0
    if HEAD_SCALE:
        per_head_scale = tl.load(head_scale + h * head_scale_sh)
    frame_i = tl.load(frame_q + token, mask=live_row, other=-1).to(tl.int32) if FRAMES else None
    at_i = tl.load(pos_q + token, mask=live_row, other=-1).to(tl.int32) if DISTANCE else None
    allow_i = tl.load(allow_q + b * allow_sb + token, mask=live_row, other=0) if LABELS else None
    place_i = tl.load(place_q + place) if BY_POSITION else None

    list_set = tl.load(head_map + b * map_sb + h * map_sh).to(tl.int64) if LISTED else 0

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    # KIND is known at compile time: 0 plain and uniform blocks, 1 mixed, 2 partial. More than one loop that is pipelined, or
    # dependent loads in one, and the matrix instructions of sm_90 are run one by one (docs/performance.md).
    for KIND in tl.static_range(0, 3):
        if KIND == 0 or (KIND == 1 and RULES) or (KIND == 2 and ELEMENT != 0):
            first, last, uniform_from = range_of(
                tile, part, list_set, bounds, partial_ptr, chunk, rows_q, blocks_k, split_from, KIND, KINDS, PER_ROW, LISTED, SPLIT
            )  # fmt: skip
            if AHEAD and KIND == 0:
                next_s, next_col0, next_live = products_at(
                    first * (BLOCK_K // BLOCK_N), first < last, col, q_tile, k_engine, k_base, k_sn, k_valid, n_k, dims, live_dim,
                    BLOCK_K, BLOCK_N, LISTED, K_ORDERED, ENGINE, WHOLE, UPCAST, PRECISION,
                )  # fmt: skip
            # Gathers per pair are not worth buffering ahead: pipelined, they fill the shared memory by themselves.
            for step in tl.range(first * (BLOCK_K // KEYS[KIND]), last * (BLOCK_K // KEYS[KIND]), num_stages=1 if KIND > 0 else None):
                uniform, gain = False, 1.0
                if KIND == 0 and (FRAMES or DISTANCE):
                    # Asked for before the products, which take longer than the answer.
                    uniform = step >= uniform_from * (BLOCK_K // BLOCK_N)
                    gain = tl.load(gains + step // (BLOCK_K // BLOCK_N))
                if AHEAD and KIND == 0:
                    # The product of the next tile runs on the matrix unit while this one is exponentiated.
                    s, col0, live = next_s, next_col0, next_live
                    next_s, next_col0, next_live = products_at(
                        tl.minimum(step + 1, last * (BLOCK_K // BLOCK_N) - 1), True, col, q_tile, k_engine, k_base, k_sn, k_valid, n_k, dims, live_dim,
                        BLOCK_K, BLOCK_N, LISTED, K_ORDERED, ENGINE, WHOLE, UPCAST, PRECISION,
                    )  # fmt: skip
                else:
                    s, col0, live = products_at(
                        step, True, partial_col if KIND == 2 else col, q_tile, k_engine, k_base, k_sn, k_valid, n_k, dims, live_dim,
                        BLOCK_K, KEYS[KIND], LISTED, K_ORDERED, ENGINE and KIND == 0, WHOLE, UPCAST, PRECISION,
                    )  # fmt: skip
                v_tile = key_tile(v_engine, v_base, v_sn, col0, live, dims, live_dim, KEYS[KIND], False, ENGINE and KIND == 0, WHOLE, UPCAST)
                within = tl.arange(0, KEYS[KIND])
                s = ruled_logits(
                    s, step, col0, within, live, b, factor_all, center, per_head_scale, uniform, gain,
                    frame_i, at_i, allow_i, place_i, place % BLOCK_Q,
                    frame_k, frame_table, frame_factors, frames_q, frames_k, pos_k, distance_table, distance_factors, distances,
                    label_k, label_sb, place_k, bit_words, bit_ids, grid_y, grid_x, radius2, frame_scale, lo, hi,
                    KIND, KEYS[KIND], BLOCK_Q, BLOCK_K, FRAMES, DISTANCE, LABELS, ELEMENT, INVERTED,
                    EVEN_N, POSITIVE_ONLY, CENTER, HEAD_SCALE, POSITIVE_SCALE,
                )  # fmt: skip
                if BIAS:
                    bias = tl.load(key_bias + b * bias_sb + h * bias_sh + (col0 + within).to(tl.int64) * bias_sn, mask=within < live, other=0.0)
                    p, m, total, acc = online_softmax(s * unit + bias[None, :] * LOG2E, m, total, acc)
                else:
                    p, m, total, acc = online_softmax_of_products(s, unit, m, total, acc)
                acc += tl.dot(p.to(v_tile.dtype), v_tile, input_precision=PRECISION)

    # What stands beside the main keys is read once, by the first part of a row.
    alone = part == 0
    if SEG0 > 0:
        base = b * seg0_sb + (h // seg0_group) * seg0_n * D
        m, total, acc = read_segment(
            q_tile, factor_all, m, total, acc,
            seg0_k + base, seg0_v + base, seg0_bias + b * seg0_bias_sb + h * seg0_bias_sh if SEG0_BIAS else None, seg0_rows,
            seg0_n * alone, token, live_row, dims, live_dim, D, SEG0, SEG0_BIAS, SEG0_ROWS, UPCAST, PRECISION,
        )  # fmt: skip
    if SEG1 > 0:
        base = b * seg1_sb + (h // seg1_group) * seg1_n * D
        m, total, acc = read_segment(
            q_tile, factor_all, m, total, acc,
            seg1_k + base, seg1_v + base, seg1_bias + b * seg1_bias_sb + h * seg1_bias_sh if SEG1_BIAS else None, seg1_rows,
            seg1_n * alone, token, live_row, dims, live_dim, D, SEG1, SEG1_BIAS, SEG1_ROWS, UPCAST, PRECISION,
        )  # fmt: skip
    if TAIL:
        base = (b * (heads // group) + h // group) * blocks_k * D
        m, total, acc = read_tail(
            q_tile, factor_all, m, total, acc, k_mean + base, v_mean + base, k_valid, unread + (list_set * rows_q + tile // PER_ROW) * unread_bytes,
            blocks_k * alone, dims, live_dim, D, BLOCK_N, PRECISION,
        )  # fmt: skip

    seen = total > 0
    divisor = tl.where(seen, total, 1.0)
    out = acc / divisor[:, None]
    row_lse = tl.where(seen, (m + tl.math.log2(divisor)) * LN2, float("-inf"))
    if SPLIT:
        if tile >= split_from:
            store_part(out, row_lse, tl.arange(0, BLOCK_M), b, h, tile, part, heads, tiles_q, split_from, splits, dims, live_dim, part_o, part_lse, D, BLOCK_M)
        live_row = live_row & (tile < split_from)
    finish_rows(
        out, row_lse, token, live_row, b, h, heads, group, n_q, dims, live_dim,
        o, lse, o_sb, o_sh, o_sn, row_scale, row_scale_sb, row_scale_sh, residual, residual_sb, residual_sh, residual_sn,
        mix_v, mix_sb, mix_sh, mix_sn, mix_mean, mix_amount, mix_rows, D, AFFINE, MIX, MIX_ROWS,
    )  # fmt: skip
