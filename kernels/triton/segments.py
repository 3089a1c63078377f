"""Device code of what joins the softmax beside the main keys: extra segments and the pooled tail."""

from __future__ import annotations

import triton
import triton.language as tl

from .logit_math import online_softmax

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def read_segment(
    q_tile, factor, m, total, acc,
    k, v, bias, rows, length, token, live_row,
    dims, live_dim,
    D: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All keys of one contiguous segment k, v [length, D]; bias fp32 [length]; rows uint8 [Nq]: the queries that read it.

    BLOCK: keys per step; 16 or 32 for short segments, which must not cost a tile made for long lists.
    """
    if ROWS:
        reads = tl.load(rows + token, mask=live_row, other=0) != 0
    for col0 in tl.range(0, length, BLOCK, num_stages=1):
        cols = col0 + tl.arange(0, BLOCK)
        live = cols < length
        k_tile = tl.load(k + cols[None, :] * D + dims[:, None], mask=live_dim[:, None] & live[None, :], other=0.0)
        v_tile = tl.load(v + cols[:, None] * D + dims[None, :], mask=live[:, None] & live_dim[None, :], other=0.0)
        if UPCAST:
            k_tile, v_tile = k_tile.to(tl.float32), v_tile.to(tl.float32)
        s = tl.dot(q_tile, k_tile, input_precision=PRECISION) * factor
        if BIAS:
            s += tl.load(bias + cols, mask=live, other=0.0)[None, :] * LOG2E
        s = tl.where(live[None, :], s, float("-inf"))
        if ROWS:
            s = tl.where(reads[:, None], s, float("-inf"))
        p, m, total, acc = online_softmax(s, m, total, acc)
        acc += tl.dot(p.to(v_tile.dtype), v_tile, input_precision=PRECISION)
    return m, total, acc


@triton.jit
def read_tail(
    q_tile, factor, m, total, acc,
    k_mean, v_mean, valid, unread, blocks,
    dims, live_dim,
    D: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One pseudo-key for each of ``blocks`` key blocks that the row of blocks does not read.

    k_mean, v_mean fp32 [blocks, D]; valid int32 [blocks]: live keys of each, whose logarithm is the bias; unread uint8
    [ceil(blocks / 8)]: packed bits.
    """
    for col0 in tl.range(0, blocks, BLOCK, num_stages=1):
        cols = col0 + tl.arange(0, BLOCK)
        live = cols < blocks
        k_tile = tl.load(k_mean + cols[None, :] * D + dims[:, None], mask=live_dim[:, None] & live[None, :], other=0.0).to(q_tile.dtype)
        v_tile = tl.load(v_mean + cols[:, None] * D + dims[None, :], mask=live[:, None] & live_dim[None, :], other=0.0).to(q_tile.dtype)
        count = tl.load(valid + cols, mask=live, other=1).to(tl.float32)
        byte = tl.load(unread + cols // 8, mask=live, other=0).to(tl.int32)
        enters = live & (((byte >> (cols % 8)) & 1) != 0) & (count > 0)
        s = tl.dot(q_tile, k_tile, input_precision=PRECISION) * factor + tl.math.log2(tl.maximum(count, 1.0))[None, :]
        s = tl.where(enters[None, :], s, float("-inf"))
        p, m, total, acc = online_softmax(s, m, total, acc)
        acc += tl.dot(p.to(v_tile.dtype), v_tile, input_precision=PRECISION)
    return m, total, acc
