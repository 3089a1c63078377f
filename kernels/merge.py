"""Putting together attention results that were computed over disjoint sets of keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def merge(o_a: Tensor, lse_a: Tensor, o_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over the union of two disjoint key sets, from the result over each.

    o_a, o_b [..., D] in one dtype; lse_a, lse_b [...] natural log-sum-exp. Returns (o in that dtype, lse in fp32, or fp64 if
    given fp64). Commutative bit for bit; a side with lse = -inf leaves the other exactly as it is; both -inf give 0 and -inf.

    Source: ``specs``: sparse backend §7 (the usual split-softmax identity).

    >>> o, lse = merge(*attend(q, k1, v1, plan, return_lse=True), *attend(q, k2, v2, plan, return_lse=True))
    """
    work = torch.float64 if torch.float64 in (o_a.dtype, lse_a.dtype) else torch.float32
    lse_a, lse_b = lse_a.to(work), lse_b.to(work)
    # The maximum only stabilises: its gradient cancels, so none is recorded.
    m = torch.maximum(lse_a, lse_b).detach()
    m = m.masked_fill(m == -math.inf, 0.0)
    w_a, w_b = torch.exp(lse_a - m), torch.exp(lse_b - m)
    total = w_a + w_b
    empty = total == 0
    safe = total.masked_fill(empty, 1.0)
    # Two products and one sum, never a fused multiply-add: that would make the result depend on the order of the sides.
    o = (o_a.to(work) * w_a[..., None] + o_b.to(work) * w_b[..., None]) / safe[..., None]
    return o.to(o_a.dtype), (m + safe.log()).masked_fill(empty, -math.inf)
