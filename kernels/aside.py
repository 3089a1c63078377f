"""Asides: a second attention for some rows, blended into the first (regional text in cross-attention)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .plan import Aside, AttentionPlan

Core = Callable[[Tensor, Tensor, Tensor, AttentionPlan, bool], tuple[Tensor, Tensor | None]]


def add_asides(o: Tensor, q: Tensor, asides: tuple[Aside, ...], core: Core) -> Tensor:
    """``o [B,H,Nq,D]`` plus what each aside adds on its rows; the other rows keep their bits. q: after rotation.

    Cost: per aside one attention of its rows over its keys. Bases are read from ``o`` as it came, so the order of the asides
    plays no part.
    """
    out, wide = o.clone(), torch.promote_types(o.dtype, torch.float32)
    for aside in asides:
        rows, n = aside.rows.long(), len(aside.elements)
        k, v = (x.expand(n, -1, -1, -1) for x in (aside.k, aside.v))
        own, _ = core(_rows(q, aside.elements, rows), k, v, AttentionPlan(), False)
        change = aside.weight[:, None] * (own.to(wide) - _rows(o, aside.bases, rows).to(wide))
        for e, element in enumerate(aside.elements):
            out[element] = out[element].index_add(1, rows, change[e].to(o.dtype))
    return out


def _rows(x: Tensor, elements: tuple[int, ...], rows: Tensor) -> Tensor:
    return torch.stack([x[e].index_select(1, rows) for e in elements])
