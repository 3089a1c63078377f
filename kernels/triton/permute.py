"""Device code of the pass before the attention: keys and values into place order, and the means of their blocks."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def permute_kernel(
    k, v, perm, k_out, v_out, k_mean, v_mean,
    k_sb, k_sh, k_sn, v_sb, v_sh, v_sn,
    heads, n, blocks,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
    ORDERED: tl.constexpr, POOL: tl.constexpr,
):  # fmt: skip
    """One program per (batch element, key head, block of BLOCK places), in steps of STEP places.

    ORDERED: gather k, v [B,Hk,N,D] through ``perm`` int32 [places] into k_out, v_out [B,Hk,places,D], dead places zero;
    otherwise place i is token i and nothing is written. POOL: k_mean, v_mean fp32 [B,Hk,blocks,D], means of the live places.
    """
    program = tl.program_id(0)
    block = program % blocks
    bh = (program // blocks).to(tl.int64)
    b, h = bh // heads, bh % heads
    dims = tl.arange(0, BLOCK_D)
    live_dim = dims < D
    k_sum = tl.zeros([BLOCK_D], tl.float32)
    v_sum = tl.zeros([BLOCK_D], tl.float32)
    count = 0.0
    for first in tl.static_range(0, BLOCK, STEP):
        place = block * BLOCK + first + tl.arange(0, STEP)
        if ORDERED:
            token = tl.load(perm + place)
            live = token >= 0
        else:
            token = place
            live = place < n
        token = token.to(tl.int64)[:, None]
        inside = live[:, None] & live_dim[None, :]
        k_rows = tl.load(k + b * k_sb + h * k_sh + token * k_sn + dims[None, :], mask=inside, other=0.0)
        v_rows = tl.load(v + b * v_sb + h * v_sh + token * v_sn + dims[None, :], mask=inside, other=0.0)
        if ORDERED:
            row = (bh * blocks * BLOCK + place)[:, None] * D + dims[None, :]
            tl.store(k_out + row, k_rows, mask=live_dim[None, :])
            tl.store(v_out + row, v_rows, mask=live_dim[None, :])
        if POOL:
            k_sum += tl.sum(k_rows.to(tl.float32), 0)
            v_sum += tl.sum(v_rows.to(tl.float32), 0)
            count += tl.sum(live.to(tl.float32), 0)
    if POOL:
        at = (bh * blocks + block) * D + dims
        tl.store(k_mean + at, k_sum / tl.maximum(count, 1.0), mask=live_dim)
        tl.store(v_mean + at, v_sum / tl.maximum(count, 1.0), mask=live_dim)
