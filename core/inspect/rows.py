"""A few rows of the attention, exactly: which queries are sampled, and their probabilities.

Source: Li et al., "How Does Attention Work in Vision Transformers?", arXiv 2303.13731, read every row of a small model. Here
rows are sampled, so that nothing grows with the square of the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

BUDGET = 2**27
"""Bytes of probabilities held at a time."""
GOLDEN = (math.sqrt(5) - 1) / 2


def stratified(tokens: int, count: int) -> Tensor:
    """int64 [min(count, tokens)] ascending: one position from each of ``count`` equal stretches of ``tokens``.

    The place inside a stretch follows the golden ratio: an even step would meet the same columns of a grid again and again.
    No randomness, so the same sizes always give the same rows.

    >>> stratified(6, 10).tolist()
    [0, 1, 2, 3, 4, 5]
    """
    count = min(count, tokens)
    if count < 1:
        return torch.zeros(0, dtype=torch.int64)
    edges = torch.arange(count + 1) * tokens // count
    inside = (torch.arange(count, dtype=torch.float64) * GOLDEN + 0.5) % 1.0
    return edges[:-1] + (inside * edges.diff()).long()


def probabilities(q: Tensor, k: Tensor, rows: Tensor, mask: Tensor | None = None, scale: float | None = None, budget: int = BUDGET) -> Iterator[tuple[slice, slice, Tensor]]:
    """``softmax(scale * q[rows] k^T + mask)`` in pieces ``(heads, slice of rows, A [B, h, m, Nk])`` of at most ``budget`` bytes.

    q [B, H, Nq, D], k [B, Hk, Nk, D] with Hk dividing H; rows int64 [M]. mask: additive or boolean (True = admitted), broadcast
    to [B, H, Nq, Nk] from the front as the host does. scale: default D^-0.5. fp32, or fp64 for fp64 input. A row that may read
    nothing is all 0; a row of NaN stays NaN.
    """
    work = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch, heads, _, width = q.shape
    group = heads // k.shape[1]
    scale = width**-0.5 if scale is None else scale
    mask = four_sided(mask)
    per_row = batch * k.shape[2] * work.itemsize
    m = max(1, min(len(rows), budget // per_row))
    h = max(1, min(heads, budget // (per_row * m)))
    for h0 in range(0, heads, h):
        some = slice(h0, min(h0 + h, heads))
        keys = k[:, torch.arange(some.start, some.stop, device=k.device) // group].to(work)
        for r0 in range(0, len(rows), m):
            part = slice(r0, min(r0 + m, len(rows)))
            s = q[:, some][:, :, rows[part]].to(work) @ keys.transpose(2, 3) * scale
            yield some, part, _softmax(s, _mask_rows(mask, some, rows[part]))


def four_sided(mask: Tensor | None) -> Tensor | None:
    """A host mask as [B|1, H|1, Nq|1, Nk]: [Nq, Nk] is shared by all, [B, Nq, Nk] by the heads."""
    while mask is not None and mask.ndim < 4:
        mask = mask.unsqueeze(0 if mask.ndim == 2 else 1)
    return mask


def _mask_rows(mask: Tensor | None, heads: slice, rows: Tensor) -> Tensor | None:
    if mask is None:
        return None
    mask = mask[:, heads] if mask.shape[1] > 1 else mask
    return mask[:, :, rows] if mask.shape[2] > 1 else mask


def _softmax(s: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        s = s.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else s + mask.to(s.dtype)
    empty = s.amax(-1, keepdim=True) == -math.inf
    return s.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
