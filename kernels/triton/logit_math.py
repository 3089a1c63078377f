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
def changed_logits(s, center, factor, CENTER: tl.constexpr, POSITIVE_ONLY: tl.constexpr):
    """c + factor * (s - c) for logits s [M, N], or only where s lies above c; c is ``center`` [M] if CENTER, else 0.

    A logit below c keeps its value under POSITIVE_ONLY: multiplied by a factor below one it would rise. What lies above c is
    taken times (factor - 1) and added, so that nothing is compared and chosen pair by pair.
    """
    apart = s - center[:, None] if CENTER else s
    if POSITIVE_ONLY:
        out = s + tl.maximum(apart, 0.0) * (factor - 1.0)
    elif CENTER:
        out = apart * factor + center[:, None]
    else:
        out = s * factor
    return out


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
def softmax_of_products(products, factor, m):
    """(probabilities, new maximum, factor of what was before) for logits ``factor * products``, factor > 0.

    Scaling is one step with the subtraction, not a pass before it.
    """
    m_new = tl.maximum(m, tl.max(products, 1) * factor)
    safe = tl.where(m_new == float("-inf"), 0.0, m_new)
    return tl.math.exp2(products * factor - safe[:, None]), m_new, tl.math.exp2(m - safe)


@triton.jit
def online_softmax_of_products(products, factor, m, total, acc):
    """The same as :func:`online_softmax` for logits ``factor * products``."""
    p, m_new, shrink = softmax_of_products(products, factor, m)
    return p, m_new, total * shrink + tl.sum(p, 1), acc * shrink[:, None]
