"""Which blocks a selector keeps, from a map of scores over blocks: by count, by mass, by one threshold, by deviation.

Pure functions, scores [..., nQ, nK] in, bool [..., nQ, nK] out, any leading axes (groups, or batch and heads). Nothing waits
for the device and nothing depends on the other maps of the batch. Each map is treated alone, so they are worked through a
few at a time and temporaries stay bounded. Scores must not be NaN; -inf marks a block that may not be chosen for its score.

A setting (count, mass, share, deviation) is one number or one per head: a list or tensor that fits the leading axes from the
right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Setting = float | Sequence[float] | Tensor

AT_ONCE = 2**22
"""Scores worked on at a time: the widest temporary takes eight bytes for each."""

_HALF = 2**16


def topk_mask(scores: Tensor, count: Setting) -> Tensor:
    """The ``count`` highest scores of each row, exactly; of equal scores the lower column comes first.

    Counts beyond nK keep all, 0 keeps none.

    >>> topk_mask(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 2)
    tensor([[False,  True,  True, False]])
    """
    n_k = scores.shape[-1]
    most = n_k if isinstance(count, Tensor) else min(n_k, int(max(count)) if isinstance(count, Sequence) else int(count))

    def choose(x: Tensor, wanted: Tensor) -> Tensor:
        if most <= 0:
            return torch.zeros_like(x, dtype=torch.bool)
        wanted = wanted.long().clamp(0, n_k)[:, None, None]
        best = x.topk(most, dim=-1).values
        last = best.gather(-1, (wanted - 1).clamp(0, most - 1).expand(-1, x.shape[1], 1))
        above, tied = x > last, x == last
        room = wanted - above.sum(-1, keepdim=True)  # how many of those that equal the last one still fit
        return (above | (tied & (tied.cumsum(-1, dtype=torch.int32) <= room))) & (wanted > 0)

    return _each(scores, count, choose)


def topp_mask(scores: Tensor, p: Setting, min_k: int = 1) -> Tensor:
    """The fewest blocks of each row, best first, whose scores sum to ``p``; at least ``min_k``. p >= 1 keeps all.

    scores: probabilities, each row summing to 1. Of equal scores the lower column comes first.
    """

    def choose(x: Tensor, mass: Tensor) -> Tensor:
        ordered, column = x.float().sort(dim=-1, descending=True, stable=True)
        before = torch.nn.functional.pad(ordered.cumsum(-1)[..., :-1], (1, 0))
        mass = mass[:, None, None]
        wanted = (before < mass) | (mass >= 1)
        wanted[..., :min_k] = True
        return torch.zeros_like(x, dtype=torch.bool).scatter_(-1, column, wanted)

    return _each(scores, p, choose)


def global_mask(scores: Tensor, share: Setting) -> Tensor:
    """Keeps what is at least one threshold per map: the m-th smallest of its n scores, m = floor(share * n).

    share: part of the map that is dropped, in [0, 1]. Without ties n - m + 1 scores are kept; ties are kept; m = 0 keeps all.
    Source: ``specs``: draft attention, step 3.
    """
    n = scores.shape[-2] * scores.shape[-1]

    def choose(x: Tensor, part: Tensor) -> Tensor:
        rank = (part.double() * n + 1e-9 * n).floor().long().clamp(0, n)  # 0.29 * 100 is a hair below 29
        tau = kth_smallest(x.flatten(1), rank.clamp(min=1))
        tau = torch.where(rank == 0, -math.inf, tau)
        return x.float() >= tau[:, None, None]

    return _each(scores, share, choose, torch.float64)


def sigma_mask(scores: Tensor, tau: Setting) -> Tensor:
    """The blocks above their row's mean by more than ``tau`` standard deviations (of the finite scores of the row).

    Of normal scores 1.0 keeps 16 %, 1.5 keeps 7 %, 2.0 keeps 2.3 %. Rows in which nothing stands out keep nothing.
    """

    def choose(x: Tensor, deviations: Tensor) -> Tensor:
        x = x.float()
        finite = x.isfinite()
        count = finite.sum(-1, keepdim=True).clamp(min=1)
        mean = torch.where(finite, x, 0.0).sum(-1, keepdim=True) / count
        apart = torch.where(finite, x - mean, 0.0)
        std = (apart.square().sum(-1, keepdim=True) / count).sqrt()
        return finite & (apart > deviations[:, None, None] * std)

    return _each(scores, tau, choose)


def kth_smallest(x: Tensor, rank: Tensor) -> Tensor:
    """fp32 [G]: the ``rank``-th smallest (1 = least) of each row of ``x`` [G, n], n < 2^31; rank int64 [G]. Exact, unsorted.

    Two histograms over halves of the bit pattern: the upper 16 bits find the bin that holds the rank, the lower 16 bits the
    value in that bin. Floats compare like integers once negative ones are flipped. Halves and bf16 widen to fp32 exactly.
    """
    bits = (x.float() + 0.0).contiguous().view(torch.int32)  # + 0.0: one zero
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    upper = (key >> 16) + _HALF // 2
    high, rest = _find(upper, rank)
    lower = torch.where(upper == high[:, None], key & 0xFFFF, _HALF)
    low, _ = _find(lower, rest)
    found = ((high - _HALF // 2) << 16 | low).to(torch.int32)
    return (found ^ ((found >> 31) & 0x7FFFFFFF)).view(torch.float32)


def _find(value: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """(the value at ``rank`` in each row, rank among its equals); values in [0, 2^16], of which 2^16 is not counted."""
    counts = torch.zeros(value.shape[0], _HALF + 1, dtype=torch.int32, device=value.device)
    counts.scatter_add_(1, value.long(), torch.ones((), dtype=torch.int32, device=value.device).expand(value.shape))
    upto = counts[:, :_HALF].cumsum(1, dtype=torch.int32)
    found = (upto < rank[:, None]).sum(1)
    before = torch.where(found > 0, upto.gather(1, (found - 1).clamp(min=0)[:, None])[:, 0], 0)
    return found, rank - before


def _each(scores: Tensor, setting: Setting, choose: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """Runs ``choose(maps [g, nQ, nK], setting [g])`` over a few maps at a time."""
    lead, (n_q, n_k) = scores.shape[:-2], scores.shape[-2:]
    if isinstance(setting, (int, float)):
        given = torch.full((), setting, dtype=dtype, device=scores.device)
    else:
        given = torch.as_tensor(setting).to(scores.device, dtype, non_blocking=True)
    try:
        wanted = given.expand(lead).reshape(-1)
    except RuntimeError:
        raise ValueError(f"a setting of shape {list(given.shape)} does not fit scores of shape {list(scores.shape)}; expected one number or one per head") from None
    maps = scores.reshape(-1, n_q, n_k)
    step = max(1, AT_ONCE // max(1, n_q * n_k))
    parts = [choose(maps[g : g + step], wanted[g : g + step]) for g in range(0, maps.shape[0], step)]
    return torch.cat(parts).view(scores.shape)
