"""Device code shared by the forward and the backward: which tokens a tile holds and what rules its pairs obey."""

from __future__ import annotations

import triton
import triton.language as tl

from .element_masks import admitted_by_bits, admitted_by_position
from .logit_math import distance_classes, frame_classes


@triton.jit
def tokens_at(perm, places, n, GATHER: tl.constexpr):
    """(token int64 at each place, is there one). GATHER: by the permutation; else places are tokens, of which there are n."""
    if GATHER:
        tokens = tl.load(perm + places)
        live = tokens >= 0
    else:
        tokens = places
        live = places < n
    return tokens.to(tl.int64), live


@triton.jit
def pair_rules(
    frame_i, frame_j, at_i, at_j, allow_i, label_j, pos_i, pos_j, row_in, col_in, mask_id,
    frame_table, frame_factors, frames_q, frames_k, distance_table, distance_factors, distances,
    words, grid_y, grid_x, radius2, frame_scale, lo, hi,
    FRAMES: tl.constexpr, DISTANCE: tl.constexpr, LABELS: tl.constexpr, ELEMENT: tl.constexpr, INVERTED: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(logit factor fp32 [M,N], is the pair admitted) from what is known of M queries and N keys.

    frame, at: ids for the two tables; allow, label: bits and label; pos: grid positions of the element test; row_in, col_in:
    places inside their blocks; mask_id: of this block's bits. Vectors of absent rules are not looked at.
    """
    admitted = (row_in[:, None] >= 0) & (col_in[None, :] >= 0)
    factor = tl.where(admitted, 1.0, 1.0)
    if FRAMES:
        classes = frame_classes(frame_i, frame_j, frame_table, frames_q, frames_k)
        factor *= tl.load(frame_factors + classes, mask=classes != 255, other=1.0)
        admitted &= classes != 255
    if DISTANCE:
        classes = distance_classes(at_i, at_j, distance_table, distances)
        factor *= tl.load(distance_factors + classes, mask=classes != 255, other=1.0)
        admitted &= classes != 255
    if LABELS:
        admitted &= ((allow_i[:, None] >> label_j[None, :]) & 1) != 0
    if ELEMENT == 4:
        admitted &= admitted_by_bits(words, mask_id, row_in, col_in, BLOCK_Q, BLOCK_K, INVERTED)
    elif ELEMENT > 0:
        admitted &= admitted_by_position(pos_i, pos_j, grid_y, grid_x, radius2, frame_scale, lo, hi, ELEMENT, INVERTED)
    return factor, admitted
