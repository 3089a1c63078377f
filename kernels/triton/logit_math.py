"""Device helpers for what happens to a block of logits between the product and the softmax."""

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
def frame_class_of_tile(id_i, id_j, classes, frames_q, frames_k):
    """The one class of a uniform tile, from its first query and first key."""
    i = tl.minimum(tl.maximum(id_i, 0), frames_q - 1)
    j = tl.minimum(tl.maximum(id_j, 0), frames_k - 1)
    return tl.load(classes + i * frames_k + j, mask=(id_i >= 0) & (id_j >= 0), other=0).to(tl.int32)


@triton.jit
def distance_class_of_tile(pos_i, pos_j, classes, length):
    """The one class of a uniform tile, from its first query and first key."""
    apart = tl.minimum(tl.abs(pos_i - pos_j), length - 1)
    return tl.load(classes + apart, mask=(pos_i >= 0) & (pos_j >= 0), other=0).to(tl.int32)


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
