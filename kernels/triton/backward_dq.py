"""Gradient of the queries: one program per (batch element, head, tile of queries) over the query-to-key lists.

Probabilities are recomputed from q, k and the saved log-sum-exp (FlashAttention-2, Dao 2023, algorithm 2). The pass also
writes ``delta_i = <do_i, o_i> - dlse_i``, which the pass over the keys reads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .backward_tile import gain_of, load_rows, row_norm
from .pair_rules import pair_rules, tokens_at

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def dq_kernel(
    q, k, v, o, do, lse, dlse, dq, delta, dcenter,
    kbar, head_scale, key_bias,
    frame_q, frame_k, frame_table, frame_factors,
    at_q, at_k, distance_table, distance_factors,
    label_k, allow_q,
    perm_q, perm_k, pos_q, pos_k, items, head_map, bounds, col, part_ptr, part_col, part_id, words,
    q_sb, q_sh, q_sn, k_sb, k_sh, k_sn, v_sb, v_sh, v_sn, o_sb, o_sh, o_sn, do_sb, do_sh, do_sn, dq_sb, dq_sh, dq_sn,
    bias_sb, bias_sh, bias_sn, label_sb, allow_sb, head_scale_sh, map_sb, map_sh,
    heads, group, n_q, n_k, tiles, blocks_q, blocks_k, frames_q, frames_k, distances,
    grid_y, grid_x, radius2, frame_scale, lo, hi, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, GATHER_Q: tl.constexpr, GATHER_K: tl.constexpr,
    LISTED: tl.constexpr, KINDS: tl.constexpr, ELEMENT: tl.constexpr, INVERTED: tl.constexpr,
    FRAMES: tl.constexpr, DISTANCE: tl.constexpr, LABELS: tl.constexpr,
    POSITIVE_ONLY: tl.constexpr, CENTER: tl.constexpr, HEAD_SCALE: tl.constexpr, BIAS: tl.constexpr, DLSE: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """q, o, do, dq [B,H,Nq,D], k, v [B,Hk,Nk,D] by strides (last 1), all in token order; lse, dlse, delta, dcenter fp32
    [B,H,Nq] contiguous. LISTED: visit the blocks in ``bounds``, ``col`` and, with an ELEMENT test,
    the partial ones (:class:`kernels.lists.WorkLists` of KINDS kinds); else all. A block of BLOCK_K places is read in tiles.
    """
    program = tl.program_id(0)
    if LISTED:
        program = tl.load(items + program)
    tile = program % tiles
    b = (program // tiles // heads).to(tl.int64)
    h = (program // tiles % heads).to(tl.int64)
    block = tile * BLOCK_M // BLOCK_Q
    dims = tl.arange(0, BLOCK_D)
    live_dim = dims < D
    place_i = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = place_i - block * BLOCK_Q
    i, live_i = tokens_at(perm_q, place_i, n_q, GATHER_Q)

    q_tile = load_rows(q + b * q_sb + h * q_sh, i, q_sn, dims, live_i, live_dim, UPCAST)
    do_tile = load_rows(do + b * do_sb + h * do_sh, i, do_sn, dims, live_i, live_dim, UPCAST)
    o_tile = load_rows(o + b * o_sb + h * o_sh, i, o_sn, dims, live_i, live_dim, UPCAST)
    row_base = (b * heads + h) * n_q
    norm = row_norm(lse + row_base, i, live_i)
    delta_i = tl.sum(do_tile.to(tl.float32) * o_tile.to(tl.float32), 1)
    if DLSE:
        delta_i -= tl.load(dlse + row_base + i, mask=live_i, other=0.0)
    # An empty row has no gradient, whatever arrives for its log-sum-exp of -inf.
    delta_i = tl.where(norm == float("inf"), 0.0, delta_i)
    tl.store(delta + row_base + i, delta_i, mask=live_i)

    k_base = k + b * k_sb + (h // group) * k_sh
    v_base = v + b * v_sb + (h // group) * v_sh
    factor_all = scale * LOG2E
    center = tl.zeros([BLOCK_M], tl.float32)
    dc = tl.zeros([BLOCK_M], tl.float32)
    if CENTER:
        mean = tl.load(kbar + (b * (heads // group) + h // group) * D + dims, mask=live_dim, other=0.0)
        center = tl.sum(q_tile.to(tl.float32) * mean[None, :], 1) * factor_all
    per_head = 1.0
    if HEAD_SCALE:
        per_head = tl.load(head_scale + h * head_scale_sh)
    frame_i, at_i, allow_i, pos_i = place_i, place_i, i, place_i
    if FRAMES:
        frame_i = tl.load(frame_q + i, mask=live_i, other=-1).to(tl.int32)
    if DISTANCE:
        at_i = tl.load(at_q + i, mask=live_i, other=-1).to(tl.int32)
    if LABELS:
        allow_i = tl.load(allow_q + b * allow_sb + i, mask=live_i, other=0)
    if ELEMENT > 0 and ELEMENT < 4:
        pos_i = tl.load(pos_q + place_i)
    if LISTED:
        list_set = tl.load(head_map + b * map_sb + h * map_sh)
        row_bounds = bounds + (list_set * blocks_q + block) * (KINDS + 1)
        row_ptr = part_ptr
        if ELEMENT > 0:
            row_ptr += list_set * (blocks_q + 1) + block

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    TABLES: tl.constexpr = FRAMES or DISTANCE or LABELS
    SUB: tl.constexpr = BLOCK_K // BLOCK_N
    # KIND is known at compile time: 0 plain, 1 under the rules of the tables, 2 partial: rules and element test.
    for KIND in tl.static_range(0, 3 if ELEMENT > 0 else 2 if TABLES else 1):
        first = 0
        last = blocks_k if KIND == 0 else 0
        if KIND == 2:
            first = tl.load(row_ptr)
            last = tl.load(row_ptr + 1)
        elif LISTED and (KIND == 0 or TABLES):
            first = tl.load(row_bounds + KIND)
            last = tl.load(row_bounds + (1 if KIND == 0 else KINDS))
        for step in tl.range(first * SUB, last * SUB):
            entry = step // SUB
            key_block = entry
            if KIND == 2:
                key_block = tl.load(part_col + entry).to(tl.int32)
            elif LISTED:
                key_block = tl.load(col + entry).to(tl.int32)
            col_in = step % SUB * BLOCK_N + tl.arange(0, BLOCK_N)
            place_j = key_block * BLOCK_K + col_in
            j, live_j = tokens_at(perm_k, place_j, n_k, GATHER_K)
            k_tile = load_rows(k_base, j, k_sn, dims, live_j, live_dim, UPCAST)
            v_tile = load_rows(v_base, j, v_sn, dims, live_j, live_dim, UPCAST)

            s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * factor_all
            if CENTER and (KIND > 0 or HEAD_SCALE):
                s -= center[:, None]
            if HEAD_SCALE:
                s *= per_head
            admitted = live_j[None, :]
            if KIND > 0:
                frame_j, at_j, label_j, pos_j, mask_id = place_j, place_j, j, place_j, 0
                if FRAMES:
                    frame_j = tl.load(frame_k + j, mask=live_j, other=-1).to(tl.int32)
                if DISTANCE:
                    at_j = tl.load(at_k + j, mask=live_j, other=-1).to(tl.int32)
                if LABELS:
                    label_j = tl.load(label_k + b * label_sb + j, mask=live_j, other=0).to(tl.int64)
                if KIND == 2 and ELEMENT == 4:
                    mask_id = tl.load(part_id + entry)
                elif KIND == 2:
                    pos_j = tl.load(pos_k + place_j)
                factor, allowed = pair_rules(
                    frame_i, frame_j, at_i, at_j, allow_i, label_j, pos_i, pos_j, row_in, col_in, mask_id,
                    frame_table, frame_factors, frames_q, frames_k, distance_table, distance_factors, distances,
                    words, grid_y, grid_x, radius2, frame_scale, lo, hi,
                    FRAMES, DISTANCE, LABELS, ELEMENT if KIND == 2 else 0, INVERTED, BLOCK_Q, BLOCK_K,
                )  # fmt: skip
                admitted &= allowed
                if FRAMES or DISTANCE:
                    gain = gain_of(s, factor, POSITIVE_ONLY)
                    s *= gain
            if BIAS:
                bias = tl.load(key_bias + b * bias_sb + h * bias_sh + j * bias_sn, mask=live_j, other=0.0)
                s += bias[None, :] * LOG2E
            if CENTER and (KIND > 0 or HEAD_SCALE):
                s += center[:, None]
            p = tl.math.exp2(tl.where(admitted, s, float("-inf")) - norm[:, None])

            dp = tl.dot(do_tile, tl.trans(v_tile), input_precision=PRECISION)
            ds = p * (dp - delta_i[:, None])
            if CENTER and (KIND > 0 or HEAD_SCALE):
                dc += tl.sum(ds, 1)
            if KIND > 0 and (FRAMES or DISTANCE):
                ds *= gain
            if HEAD_SCALE:
                ds *= per_head
            if CENTER and (KIND > 0 or HEAD_SCALE):
                dc -= tl.sum(ds, 1)
            acc += tl.dot(ds.to(k_tile.dtype), k_tile, input_precision=PRECISION)

    if CENTER:
        acc += dc[:, None] * mean[None, :]
        tl.store(dcenter + row_base + i, dc * scale, mask=live_i)
    out = dq + b * dq_sb + h * dq_sh + i[:, None] * dq_sn + dims[None, :]
    tl.store(out, (acc * scale).to(dq.dtype.element_ty), mask=live_i[:, None] & live_dim[None, :])
