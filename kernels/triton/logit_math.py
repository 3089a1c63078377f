"""Device helpers for what happens to a tile of logits between the product and the softmax."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def frame_classes(ids_i, ids_j, classes, frames_q, frames_k):
    """Class of each pair from the frame table [frames_q, frames_k]; 0 where a token is outside the grid (id -1)."""
    inside = (ids_i >= 0)[:, None] & (ids_j >= 0)[None, :]
    i = tl.minimum(tl.maximum(ids_i, 0), frames_q - 1)
    j = tl.minimum(tl.maximum(ids_j, 0), frames_k - 1)
    return tl.load(classes + i[:, None] * frames_k + j[None, :], mask=inside, other=0).to(tl.int32)


@triton.jit
def distance_classes(pos_i, pos_j, classes, length):
    """Class of each pair from the table over flat token distance; 0 where a token is outside the grid."""
    inside = (pos_i >= 0)[:, None] & (pos_j >= 0)[None, :]
    apart = tl.minimum(tl.abs(pos_i[:, None] - pos_j[None, :]), length - 1)
    return tl.load(classes + apart, mask=inside, other=0).to(tl.int32)


@triton.jit
def uniform_factor(
    at_i, at_j, frame_q, frame_k, frame_table, frame_factors, frames_q, frames_k,
    pos_q, pos_k, distance_table, distance_factors, distances,
    FRAMES: tl.constexpr, DISTANCE: tl.constexpr,
):  # fmt: skip
    """The one factor of a uniform tile, from its first query ``at_i`` and its first key ``at_j``."""
    factor = 1.0
    if FRAMES:
        i, j = tl.load(frame_q + at_i).to(tl.int32), tl.load(frame_k + at_j).to(tl.int32)
        inside = (i >= 0) & (j >= 0)
        i, j = tl.minimum(tl.maximum(i, 0), frames_q - 1), tl.minimum(tl.maximum(j, 0), frames_k - 1)
        factor *= tl.load(frame_factors + tl.load(frame_table + i * frames_k + j, mask=inside, other=0).to(tl.int32))
    if DISTANCE:
        i, j = tl.load(pos_q + at_i).to(tl.int32), tl.load(pos_k + at_j).to(tl.int32)
        apart = tl.minimum(tl.abs(i - j), distances - 1)
        factor *= tl.load(distance_factors + tl.load(distance_table + apart, mask=(i >= 0) & (j >= 0), other=0).to(tl.int32))
    return factor


@triton.jit
def scale_logits(s, factor, POSITIVE_ONLY: tl.constexpr):
    """factor * s, or only where s is positive: multiplying a negative logit by a factor below one would raise it."""
    changed = s * factor
    if POSITIVE_ONLY:
        changed = tl.where(s > 0, changed, s)
    return changed


@triton.jit
def online_softmax(s, m, total, acc):
    """One step of the running softmax (Milakov & Gimelshein 2018), base 2. Returns probabilities and the rescaled state.

    A row that has seen no key keeps m = -inf; its differences are taken against 0 so that no NaN arises.
    """
    m_new = tl.maximum(m, tl.max(s, 1))
    safe = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.math.exp2(s - safe[:, None])
    shrink = tl.math.exp2(m - safe)
    return p, m_new, total * shrink + tl.sum(p, 1), acc * shrink[:, None]


@triton.jit
def online_softmax_of_products(products, factor, m, total, acc):
    """The same for logits ``factor * products``, factor > 0: scaling is one step with the subtraction, not a pass before it."""
    m_new = tl.maximum(m, tl.max(products, 1) * factor)
    safe = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.math.exp2(products * factor - safe[:, None])
    shrink = tl.math.exp2(m - safe)
    return p, m_new, total * shrink + tl.sum(p, 1), acc * shrink[:, None]
