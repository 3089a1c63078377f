"""Gradients of keys, values and key bias: one program per (batch element, key head, tile of keys) over the transposed lists.

The query heads that share a key head are summed inside the program in their order, so nothing is added atomically and two
runs give the same bits. Products are formed transposed, [keys, queries]: what multiplies next is then already in place.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .backward_tile import gain_of, load_rows, row_norm
from .pair_rules import pair_rules, tokens_at

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def dkdv_kernel(
    q, k, v, do, lse, delta, dk, dv, dbias,
    kbar, head_scale, key_bias,
    frame_q, frame_k, frame_table, frame_factors,
    at_q, at_k, distance_table, distance_factors,
    label_k, allow_q,
    perm_q, perm_k, pos_q, pos_k, items, head_map, bounds, col, part_ptr, part_col, part_id, words,
    q_sb, q_sh, q_sn, k_sb, k_sh, k_sn, v_sb, v_sh, v_sn, do_sb, do_sh, do_sn, dk_sb, dk_sh, dk_sn, dv_sb, dv_sh, dv_sn,
    bias_sb, bias_sh, bias_sn, label_sb, allow_sb, head_scale_sh, map_sb, map_sh,
    heads, group, n_q, n_k, tiles, blocks_q, blocks_k, frames_q, frames_k, distances,
    grid_y, grid_x, radius2, frame_scale, lo, hi, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, GATHER_Q: tl.constexpr, GATHER_K: tl.constexpr,
    LISTED: tl.constexpr, KINDS: tl.constexpr, ELEMENT: tl.constexpr, INVERTED: tl.constexpr,
    FRAMES: tl.constexpr, DISTANCE: tl.constexpr, LABELS: tl.constexpr,
    POSITIVE_ONLY: tl.constexpr, CENTER: tl.constexpr, HEAD_SCALE: tl.constexpr, BIAS: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Tensors as in ``dq_kernel``; dk, dv like k, v; dbias fp32 [B,H,Nk] contiguous, one row per query head. The lists name
    the query blocks of each key block.
    """
    program = tl.program_id(0)
    if LISTED:
        program = tl.load(items + program)
    tile = program % tiles
    key_heads = heads // group
    b = (program // tiles // key_heads).to(tl.int64)
    key_head = (program // tiles % key_heads).to(tl.int64)
    block = tile * BLOCK_N // BLOCK_K
    dims = tl.arange(0, BLOCK_D)
    live_dim = dims < D
    place_j = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    col_in = place_j - block * BLOCK_K
    j, live_j = tokens_at(perm_k, place_j, n_k, GATHER_K)
    k_tile = load_rows(k + b * k_sb + key_head * k_sh, j, k_sn, dims, live_j, live_dim, UPCAST)
    v_tile = load_rows(v + b * v_sb + key_head * v_sh, j, v_sn, dims, live_j, live_dim, UPCAST)

    factor_all = scale * LOG2E
    if CENTER:
        mean = tl.load(kbar + (b * key_heads + key_head) * D + dims, mask=live_dim, other=0.0)
    frame_j, at_j, label_j, pos_j = place_j, place_j, j, place_j
    if FRAMES:
        frame_j = tl.load(frame_k + j, mask=live_j, other=-1).to(tl.int32)
    if DISTANCE:
        at_j = tl.load(at_k + j, mask=live_j, other=-1).to(tl.int32)
    if LABELS:
        label_j = tl.load(label_k + b * label_sb + j, mask=live_j, other=0).to(tl.int64)
    if ELEMENT > 0 and ELEMENT < 4:
        pos_j = tl.load(pos_k + place_j)

    dk_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    TABLES: tl.constexpr = FRAMES or DISTANCE or LABELS
    SUB: tl.constexpr = BLOCK_Q // BLOCK_M
    for member in tl.range(0, group):
        h = key_head * group + member
        q_base = q + b * q_sb + h * q_sh
        do_base = do + b * do_sb + h * do_sh
        row_base = (b * heads + h) * n_q
        per_head = 1.0
        if HEAD_SCALE:
            per_head = tl.load(head_scale + h * head_scale_sh)
        bias = tl.zeros([BLOCK_N], tl.float32)
        if BIAS:
            bias = tl.load(key_bias + b * bias_sb + h * bias_sh + j * bias_sn, mask=live_j, other=0.0) * LOG2E
        if LISTED:
            list_set = tl.load(head_map + b * map_sb + h * map_sh)
            row_bounds = bounds + (list_set * blocks_k + block) * (KINDS + 1)
            row_ptr = part_ptr
            if ELEMENT > 0:
                row_ptr += list_set * (blocks_k + 1) + block
        db = tl.zeros([BLOCK_N], tl.float32)
        # KIND is known at compile time: 0 plain, 1 under the rules of the tables, 2 partial: rules and element test.
        for KIND in tl.static_range(0, 3 if ELEMENT > 0 else 2 if TABLES else 1):
            first = 0
            last = blocks_q if KIND == 0 else 0
            if KIND == 2:
                first = tl.load(row_ptr)
                last = tl.load(row_ptr + 1)
            elif LISTED and (KIND == 0 or TABLES):
                first = tl.load(row_bounds + KIND)
                last = tl.load(row_bounds + (1 if KIND == 0 else KINDS))
            for step in tl.range(first * SUB, last * SUB):
                entry = step // SUB
                query_block = entry
                if KIND == 2:
                    query_block = tl.load(part_col + entry).to(tl.int32)
                elif LISTED:
                    query_block = tl.load(col + entry).to(tl.int32)
                row_in = step % SUB * BLOCK_M + tl.arange(0, BLOCK_M)
                place_i = query_block * BLOCK_Q + row_in
                i, live_i = tokens_at(perm_q, place_i, n_q, GATHER_Q)
                q_tile = load_rows(q_base, i, q_sn, dims, live_i, live_dim, UPCAST)
                do_tile = load_rows(do_base, i, do_sn, dims, live_i, live_dim, UPCAST)
                norm = row_norm(lse + row_base, i, live_i)
                delta_i = tl.load(delta + row_base + i, mask=live_i, other=0.0)

                s = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION) * factor_all
                if CENTER and (KIND > 0 or HEAD_SCALE):
                    center = tl.sum(q_tile.to(tl.float32) * mean[None, :], 1) * factor_all
                    s -= center[None, :]
                if HEAD_SCALE:
                    s *= per_head
                if KIND > 0:
                    frame_i, at_i, allow_i, pos_i, mask_id = place_i, place_i, i, place_i, 0
                    if FRAMES:
                        frame_i = tl.load(frame_q + i, mask=live_i, other=-1).to(tl.int32)
                    if DISTANCE:
                        at_i = tl.load(at_q + i, mask=live_i, other=-1).to(tl.int32)
                    if LABELS:
                        allow_i = tl.load(allow_q + b * allow_sb + i, mask=live_i, other=0)
                    if KIND == 2 and ELEMENT == 4:
                        mask_id = tl.load(part_id + entry)
                    elif KIND == 2:
                        pos_i = tl.load(pos_q + place_i)
                    factor, admitted = pair_rules(
                        frame_i, frame_j, at_i, at_j, allow_i, label_j, pos_i, pos_j, row_in, col_in, mask_id,
                        frame_table, frame_factors, frames_q, frames_k, distance_table, distance_factors, distances,
                        words, grid_y, grid_x, radius2, frame_scale, lo, hi,
                        FRAMES, DISTANCE, LABELS, ELEMENT if KIND == 2 else 0, INVERTED, BLOCK_Q, BLOCK_K,
                    )  # fmt: skip
                    if FRAMES or DISTANCE:
                        gain = gain_of(s, tl.trans(factor), POSITIVE_ONLY)
                        s *= gain
                    s = tl.where(tl.trans(admitted), s, float("-inf"))
                if BIAS:
                    s += bias[:, None]
                if CENTER and (KIND > 0 or HEAD_SCALE):
                    s += center[None, :]
                # Dead keys need no mask: what they collect is not stored.
                p = tl.math.exp2(s - norm[None, :])
                dv_acc += tl.dot(p.to(do_tile.dtype), do_tile, input_precision=PRECISION)
                dp = tl.dot(v_tile, tl.trans(do_tile), input_precision=PRECISION)
                ds = p * (dp - delta_i[None, :])
                if BIAS:
                    db += tl.sum(ds, 1)
                if KIND > 0 and (FRAMES or DISTANCE):
                    ds *= gain
                if HEAD_SCALE:
                    ds *= per_head
                dk_acc += tl.dot(ds.to(q_tile.dtype), q_tile, input_precision=PRECISION)
        if BIAS:
            tl.store(dbias + (b * heads + h) * n_k + j, db, mask=live_j)

    live = live_j[:, None] & live_dim[None, :]
    tl.store(dk + b * dk_sb + key_head * dk_sh + j[:, None] * dk_sn + dims[None, :], (dk_acc * scale).to(dk.dtype.element_ty), mask=live)
    tl.store(dv + b * dv_sb + key_head * dv_sh + j[:, None] * dv_sn + dims[None, :], dv_acc.to(dv.dtype.element_ty), mask=live)
