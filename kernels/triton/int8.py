"""Device code of the eight-bit paths: quantise a side into place order, then attend with int8 products of q and k.

With ``int8_qk_fp8_pv`` weights and values are eight-bit floats as well. Sources: SageAttention (arXiv 2410.02367), algorithm 1, and
SageAttention2 (arXiv 2411.10958), sections 3.3 and 3.4, for the values; the online softmax is FlashAttention-2's (Dao 2023). The
arithmetic is written out in plain torch in ``kernels/quant.py``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .element_masks import admitted_by_bits, admitted_by_position
from .logit_math import online_softmax

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
MOST_E4M3 = tl.constexpr(448.0)


@triton.jit
def program_of_tiles(tiles, heads):
    """(batch element and head int64, tile) of this program, one for each of them all."""
    program = tl.program_id(0)
    return (program // tiles // heads).to(tl.int64), (program // tiles % heads).to(tl.int64), program % tiles


@triton.jit
def quantise_kernel(
    x, mean, perm, values, scales, norms, shifts,
    x_sb, x_sh, x_sn,
    heads, group, places, tiles,
    factor,
    D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program per (batch element, head, tile of ROWS places): gather, quantise, measure.

    KEYS: subtract ``mean fp32 [B,H,D]``. Otherwise write ``shifts fp32 [B,H,places] = factor * <x, mean>``, which is what the
    subtraction took from every logit of that query; its mean is that of head ``h // group``.
    """
    b, h, tile = program_of_tiles(tiles, heads)
    place = tile * ROWS + tl.arange(0, ROWS)
    token = tl.load(perm + place)
    live = token >= 0
    dims = tl.arange(0, D)
    row = x + b * x_sb + h * x_sh + token.to(tl.int64)[:, None] * x_sn
    center = tl.load(mean + (b * (heads // group) + h // group) * D + dims)
    v = tl.load(row + dims[None, :], mask=live[:, None], other=0.0).to(tl.float32)
    base = (b * heads + h) * places + place
    if KEYS:
        v = tl.where(live[:, None], v - center[None, :], 0.0)
    else:
        tl.store(shifts + base, tl.sum(v * center[None, :], 1) * factor)
    scale = tl.max(tl.max(tl.abs(v), 1), 0) / 127 + 1e-7
    tl.store(values + base.to(tl.int64)[:, None] * D + dims[None, :], tl.floor(v / scale + 0.5).to(tl.int8))
    tl.store(scales + (b * heads + h) * tiles + tile, scale)
    tl.store(norms + base, tl.sqrt(tl.sum(v * v, 1)))


@triton.jit
def rounded_to_e4m3(x):
    """fp32 x of at most 448 as the nearest number of the type e4m3, halves to even: for the interpreter, whose casts are wrong."""
    exponent = tl.floor(tl.math.log2(tl.maximum(tl.abs(x), 0.015625)))  # 2^-6: below it numbers are equally spaced
    step = tl.math.exp2(exponent - 3)
    return (x / step + 12582912.0 - 12582912.0) * step


@triton.jit
def quantise_values_kernel(
    x, perm, scales, values,
    x_sb, x_sh, x_sn,
    heads, places, tiles,
    D: tl.constexpr, ROWS: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """One program per (batch element, head, tile of ROWS places): x over ``scales fp32 [B,H,D]`` as e4m3, ``values [B,H,D,places]``.

    Places come last: matrix units take eight-bit values along the keys. EMULATED: the same numbers in fp32.
    """
    b, h, tile = program_of_tiles(tiles, heads)
    place = tile * ROWS + tl.arange(0, ROWS)
    token = tl.load(perm + place)
    dims = tl.arange(0, D)
    row = x + b * x_sb + h * x_sh + token.to(tl.int64)[:, None] * x_sn
    v = tl.load(row + dims[None, :], mask=(token >= 0)[:, None], other=0.0).to(tl.float32)
    v = v / tl.load(scales + (b * heads + h) * D + dims)[None, :]
    if EMULATED:
        v = rounded_to_e4m3(v)
    to = values + ((b * heads + h) * D + dims)[None, :] * places + place[:, None]
    tl.store(to, v.to(values.dtype.element_ty))


@triton.jit
def int8_forward_kernel(
    q, k, v, o, lse,
    q8, k8, q_scale, k_scale, shift, hot, v8, v_scale,
    key_bias, perm_q, perm_k, valid_k,
    ptr, col, partial_ptr, partial_col, head_map, pos_q, pos_k, bit_words, bit_ids,
    q_sb, q_sh, q_sn,
    k_sb, k_sh, k_sn,
    v_sb, v_sh, v_sn,
    o_sb, o_sh, o_sn,
    bias_sb, bias_sh, map_sb, map_sh,
    heads, group, n_q, blocks_q, blocks_k, rows_q, rows_k,
    grid_y, grid_x, lo, hi, radius2, frame_scale,
    scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SUB_M: tl.constexpr, SUB_N: tl.constexpr,
    LISTED: tl.constexpr, ELEMENT: tl.constexpr, INVERTED: tl.constexpr, BIAS: tl.constexpr, UPCAST: tl.constexpr,
    FP8: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """One program per (batch element, head, BLOCK_M query places): reads the key blocks its row of the lists names.

    q, k, v, o in token order by strides; q8 [B,H,rows_q,D] and k8 [B,Hk,rows_k,D] in place order, with one scale per BLOCK_M
    and per BLOCK_N places. key_bias fp32 [.., rows_k] in place order. A block holds SUB_M or SUB_N tiles. ELEMENT: test of
    the partial list's pairs (``element_masks.py``), 0 without one. Heads marked in ``hot [B,H]`` are computed from q and k
    themselves; the passes of the loop below share all but the product and the test, and those not meant have no steps. FP8: weights
    times 448 as e4m3 with ``v8 [B,Hk,D,rows_k]`` and its ``v_scale fp32 [B,Hk,D]``, added up in fp32 tile by tile. EMULATED: the same
    numbers in fp32.
    """
    tiles_q = blocks_q * SUB_M
    b, h, tile = program_of_tiles(tiles_q, heads)
    hk = h // group
    kv_heads = heads // group
    block_row = tile // SUB_M
    place_q = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, D)
    token_q = tl.load(perm_q + place_q)
    live_row = token_q >= 0

    entry = 0
    count = blocks_k
    if LISTED:
        row = tl.load(head_map + b * map_sb + h * map_sh) * (blocks_q + 1) + block_row
    if ELEMENT > 0 and ELEMENT < 4:
        at_q = tl.load(pos_q + place_q)
    is_hot = tl.load(hot + b * heads + h)
    tiles_k = blocks_k * SUB_N
    within = tl.arange(0, BLOCK_N)

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    # PASS 0 and 1 read the full list, 2 and 3 the partial one; odd ones compute from the values themselves.
    for PASS in tl.static_range(0, 4 if ELEMENT > 0 else 2):
        if LISTED:
            row_ptr = (partial_ptr if PASS >= 2 else ptr) + row
            entry = tl.load(row_ptr)
            count = tl.load(row_ptr + 1) - entry
        steps = tl.where(is_hot == PASS % 2, count * SUB_N, 0)
        if PASS % 2 == 1:
            q_rows = q + b * q_sb + h * q_sh + token_q.to(tl.int64)[:, None] * q_sn
            q_tile = tl.load(q_rows + dims[None, :], mask=live_row[:, None], other=0.0)
            if UPCAST:
                q_tile = q_tile.to(tl.float32)
            factor = scale * LOG2E
        else:
            q_tile = tl.load(q8 + ((b * heads + h) * rows_q + place_q)[:, None] * D + dims[None, :])
            factor = tl.load(q_scale + (b * heads + h) * tiles_q + tile) * scale * LOG2E
        # Words of bits, gathered per pair, are not worth buffering ahead: beside wide keys they overfill the shared memory of small GPUs.
        for step in tl.range(0, steps, num_stages=1 if PASS >= 2 and ELEMENT == 4 else None):
            block = step // SUB_N
            if LISTED:
                block = tl.load((partial_col if PASS >= 2 else col) + entry + block).to(tl.int32)
            sub = step % SUB_N
            live = sub * BLOCK_N + within < tl.load(valid_k + block)
            tile_k = block * SUB_N + sub
            place_k = tile_k * BLOCK_N + within
            # A dead place has no token: it reads the first one and its logit is dropped.
            token_k = tl.where(live, tl.load(perm_k + place_k), 0).to(tl.int64)
            if PASS % 2 == 1:
                k_rows = k + b * k_sb + hk * k_sh + token_k[None, :] * k_sn
                k_tile = tl.load(k_rows + dims[:, None], mask=live[None, :], other=0.0)
                if UPCAST:
                    k_tile = k_tile.to(tl.float32)
                s = tl.dot(q_tile, k_tile) * factor
            else:
                k_tile = tl.load(k8 + ((b * kv_heads + hk) * rows_k + place_k)[None, :] * D + dims[:, None])
                k_factor = tl.load(k_scale + (b * kv_heads + hk) * tiles_k + tile_k)
                s = tl.dot(q_tile, k_tile, out_dtype=tl.int32).to(tl.float32) * (factor * k_factor)
            if BIAS:
                s += tl.load(key_bias + b * bias_sb + h * bias_sh + place_k)[None, :] * LOG2E
            if PASS >= 2 and ELEMENT == 4:
                mask_id = tl.load(bit_ids + entry + step // SUB_N)
                inside = tile % SUB_M * BLOCK_M + tl.arange(0, BLOCK_M)
                hit = admitted_by_bits(bit_words, mask_id, inside, sub * BLOCK_N + within, SUB_M * BLOCK_M, SUB_N * BLOCK_N, INVERTED)
                s = tl.where(hit, s, float("-inf"))
            elif PASS >= 2:
                at_k = tl.load(pos_k + place_k)
                hit = admitted_by_position(at_q, at_k, grid_y, grid_x, radius2, frame_scale, lo, hi, ELEMENT, INVERTED)
                s = tl.where(hit, s, float("-inf"))
            s = tl.where(live[None, :], s, float("-inf"))
            if FP8 and PASS % 2 == 0:
                v_tile = tl.load(v8 + ((b * kv_heads + hk) * D + dims)[None, :] * rows_k + place_k[:, None])
                p, m, total, acc = online_softmax(s, m, total, acc)
                if EMULATED:
                    acc += tl.dot(rounded_to_e4m3(p * MOST_E4M3), v_tile)
                else:
                    # Matrix units add eight-bit products with few bits: their sums go to fp32 after each tile.
                    acc = tl.dot((p * MOST_E4M3).to(tl.float8e4nv), v_tile, acc, max_num_imprecise_acc=BLOCK_N)
            else:
                v_tile = tl.load(v + b * v_sb + hk * v_sh + token_k[:, None] * v_sn + dims[None, :], mask=live[:, None], other=0.0)
                if UPCAST:
                    v_tile = v_tile.to(tl.float32)
                p, m, total, acc = online_softmax(s, m, total, acc)
                acc += tl.dot(p.to(v_tile.dtype), v_tile)

    seen = total > 0
    divisor = tl.where(seen, total, 1.0)
    if FP8:
        unit = tl.load(v_scale + (b * kv_heads + hk) * D + dims) / MOST_E4M3
        acc *= tl.where(is_hot != 0, 1.0, unit)[None, :]
    o_rows = o + b * o_sb + h * o_sh + token_q.to(tl.int64)[:, None] * o_sn
    tl.store(o_rows + dims[None, :], (acc / divisor[:, None]).to(o.dtype.element_ty), mask=live_row[:, None])
    # What the mean key adds to every logit of the row was left out of the int8 products: merging with other keys needs it.
    taken = tl.where(is_hot != 0, 0.0, tl.load(shift + (b * heads + h) * rows_q + place_q))
    row_lse = tl.where(seen, (m + tl.math.log2(divisor)) * LN2 + taken, float("-inf"))
    tl.store(lse + (b * heads + h) * n_q + token_q, row_lse, mask=live_row)
