"""The statistics of one attention call, from its queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor

from ..call import TokenLayout
from .rows import four_sided, probabilities, stratified
from .statistics import HeadStats, Sums

TEXT_ROWS = 64
"""Text queries sampled in a joint attention."""
MASKED_BELOW = -1e4
"""A bias below this makes a key unreadable: hosts mask with -inf or with the least number of the dtype."""


def measure(q: Tensor, k: Tensor, q_layout: TokenLayout, k_layout: TokenLayout, rows: int, mask: Tensor | None = None, scale: float | None = None) -> HeadStats:
    """Statistics of ``rows`` sampled image queries, and of up to 64 text queries where text asks too.

    q [B, H, Nq, D], k [B, Hk, Nk, D]: means run over B; layouts of their tokens, the queries with a grid; mask, scale as in
    :func:`rows.probabilities`.
    """
    found = q_layout.grid_span
    if found is None:
        raise ValueError("the queries hold no picture or video; only calls with a grid can be measured")
    offset, span = found
    own = q_layout == k_layout
    places = stratified(span.length, rows).to(q.device)
    sums = Sums(q.shape[1], k_layout, own, q.device, _work(q), _readable(mask, k_layout.length))
    for heads, part, a in probabilities(q, k, places + offset, mask, scale):
        sums.add(heads, places[part], a)
    return sums.finish(_text_rows(q, k, q_layout, mask, scale) if own else None)


def rows_of_points(q: Tensor, k: Tensor, layout: TokenLayout, points: tuple[tuple[float, float], ...], mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Where the places ``points`` (x, y in 0..1, of the middle frame) look: fp32 [P, T, Y, X], mean over batch and heads."""
    found = layout.grid_span
    if found is None or found[1].grid is None:
        raise ValueError("the queries hold no picture or video")
    offset, (t, y, x) = found[0], found[1].grid
    rows = torch.tensor([point_row(p, (t, y, x)) for p in points], device=q.device) + offset
    out = torch.zeros(len(points), t * y * x, dtype=_work(q), device=q.device)
    for _, part, a in probabilities(q, k, rows, mask, scale):
        out[part] += a[..., offset : offset + t * y * x].sum((0, 1))
    return (out / (q.shape[0] * q.shape[1])).unflatten(1, (t, y, x)).float().cpu()


def point_row(point: tuple[float, float], grid: tuple[int, int, int]) -> int:
    """Flat position of the token at (x, y) in 0..1 of the middle frame."""
    t, y, x = grid
    return (t // 2) * y * x + min(int(point[1] * y), y - 1) * x + min(int(point[0] * x), x - 1)


def _text_rows(q: Tensor, k: Tensor, layout: TokenLayout, mask: Tensor | None, scale: float | None) -> dict[str, Tensor] | None:
    """Masses of the text queries, kind -> [H]; None where no text asks."""
    text = layout.range("text")
    if text is None:
        return None
    rows = stratified(text[1] - text[0], TEXT_ROWS).to(q.device)
    sums = Sums(q.shape[1], layout, False, q.device, _work(q))
    for heads, part, a in probabilities(q, k, rows + text[0], mask, scale):
        sums.add(heads, rows[part], a)
    return {name.removesuffix(" mass"): value for name, value in sums.finish().scalars.items() if name.endswith(" mass")}


def _work(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _readable(mask: Tensor | None, keys: int) -> int:
    """How many keys a mask leaves readable, for the first row of the first batch item."""
    mask = four_sided(mask)
    if mask is None:
        return keys
    row = mask[0, 0, 0]
    return int((row if row.dtype == torch.bool else row > MASKED_BELOW).expand(keys).sum())
