"""Device code of one round of the forward pass, between the product with a tile of keys and the softmax."""

from __future__ import annotations

import triton
import triton.language as tl

from .logit_math import changed_logits
from .pair_rules import pair_rules


@triton.jit
def ruled_logits(
    s, step, col0, within, live, b, factor_all, center, per_head_scale, uniform, gain,
    frame_i, at_i, allow_i, place_i, row_in,
    frame_k, frame_table, frame_factors, frames_q, frames_k,
    pos_k, distance_table, distance_factors, distances,
    label_k, label_sb, place_k, bit_words, bit_ids, grid_y, grid_x, radius2, frame_scale, lo, hi,
    KIND: tl.constexpr, KEYS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    FRAMES: tl.constexpr, DISTANCE: tl.constexpr, LABELS: tl.constexpr, ELEMENT: tl.constexpr, INVERTED: tl.constexpr,
    EVEN_N: tl.constexpr, POSITIVE_ONLY: tl.constexpr, CENTER: tl.constexpr, HEAD_SCALE: tl.constexpr, POSITIVE_SCALE: tl.constexpr,
):  # fmt: skip
    """Products s [M, KEYS] of queries with keys ``col0 + within``, of which ``live`` count, after scales, factors and tests.

    In units of ``factor_all`` if POSITIVE_SCALE, so that what has no rules is not even scaled before the softmax; center [M] in
    the same. KIND, known at compile time: 0 plain blocks and, where ``uniform`` holds, blocks with the one factor ``gain``; 1 mixed; 2
    partial. frame, at, allow, place of rows i, as :func:`kernels.triton.pair_rules.pair_rules` takes them; row_in: places of the rows
    inside their block. The others as in :func:`kernels.triton.forward.forward_kernel`.
    """
    BY_POSITION: tl.constexpr = ELEMENT > 0 and ELEMENT < 4
    cols = col0 + within
    live_col = within < live
    if not POSITIVE_SCALE:
        s *= factor_all
    if HEAD_SCALE:
        s = changed_logits(s, center, per_head_scale, CENTER, False)
    if KIND == 0 and (FRAMES or DISTANCE):  # noqa: SIM102 -- known at compile time
        if uniform:
            s = changed_logits(s, center, gain, CENTER, POSITIVE_ONLY)
    if KIND > 0:
        mask_id = tl.load(bit_ids + step // (BLOCK_K // KEYS)) if KIND == 2 and ELEMENT == 4 else None
        factors, inside = pair_rules(
            frame_i, tl.load(frame_k + cols, mask=live_col, other=-1).to(tl.int32) if FRAMES else None,
            at_i, tl.load(pos_k + cols, mask=live_col, other=-1).to(tl.int32) if DISTANCE else None,
            allow_i, tl.load(label_k + b * label_sb + cols, mask=live_col, other=0).to(tl.int64) if LABELS else None,
            place_i, tl.load(place_k + cols) if BY_POSITION else None,
            row_in, cols % BLOCK_K, mask_id,
            frame_table, frame_factors, frames_q, frames_k, distance_table, distance_factors, distances,
            bit_words, grid_y, grid_x, radius2, frame_scale, lo, hi,
            FRAMES, DISTANCE, LABELS, ELEMENT if KIND == 2 else 0, INVERTED, BLOCK_Q, BLOCK_K,
        )  # fmt: skip
        if FRAMES or DISTANCE:
            # The factors multiply first and the sign is tested once: order matters where a factor is negative.
            s = changed_logits(s, center, factors, CENTER, POSITIVE_ONLY)
        s = tl.where(inside, s, float("-inf"))
    if not EVEN_N and live < KEYS:
        # Dead keys would count with logit 0. Few tiles have any, and the others skip this.
        s = tl.where(live_col[None, :], s, float("-inf"))
    return s
