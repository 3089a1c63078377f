"""Columns of the attention for all rows at once: the indicator trick.

``softmax(q k^T) V`` with a V of ones and zeros is the attention that falls on the marked keys. Any attention computes it, in
its own memory, so no map of pairs exists. Derived here; checked against an explicit softmax in the tests.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def read(dense: Callable[..., Tensor], q: Tensor, k: Tensor, columns: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """``A @ columns`` for every query: [B, H, Nq, n].

    dense(q, k, v, mask=None) -> [B, H, Nq, D]: an attention that scales by D^-0.5. q [B, H, Nq, D], k [B, Hk, Nk, D];
    columns [Nk, n]: one per quantity, for instance 1 on the tokens of a word. scale: what the call scales by; default D^-0.5.
    One pass of attention for every D columns.
    """
    width = q.shape[-1]
    if scale is not None:
        q = q * (scale * width**0.5)
    out = []
    for lo in range(0, columns.shape[1], width):
        some = columns[:, lo : lo + width].to(k)
        v = torch.nn.functional.pad(some, (0, width - some.shape[1])).expand(*k.shape[:2], -1, -1).contiguous()
        out.append(dense(q, k, v, mask)[..., : some.shape[1]])
    return torch.cat(out, -1)
