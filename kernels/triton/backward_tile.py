"""Device helpers shared by the two passes of the backward: which tokens a tile holds and what their logits weigh."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(base, tokens, stride, dims, live, live_dim, UPCAST: tl.constexpr):
    """[tokens, BLOCK_D] with zeros at dead places and padded channels."""
    tile = tl.load(base + tokens[:, None] * stride + dims[None, :], mask=live[:, None] & live_dim[None, :], other=0.0)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def row_norm(lse, tokens, live):
    """What is taken from a row's logits, base 2: its log-sum-exp. +inf for dead and empty rows makes all their exp2 zero."""
    value = tl.load(lse + tokens, mask=live, other=float("-inf"))
    return tl.where(value == float("-inf"), float("inf"), value * 1.4426950408889634)


@triton.jit
def gain_of(s, factor, POSITIVE_ONLY: tl.constexpr):
    """d(modified logit)/d(logit): the factor, or 1 where the sign test spares the logit."""
    if POSITIVE_ONLY:
        factor = tl.where(s > 0, factor, 1.0)
    return factor
