"""What a sparse step missed, kept from a step at which the whole attention was known: ``R = O_full - ratio * O_sparse``.

Kept before the output projection, so it fits an attention call. Written and read a head at a time, so that temporaries stay
small beside the cache itself. Source: ``specs``: Re-ttention (c).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16", "fp16", "fp8"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}
ROWS = 128
"""Rows of a head that share one scale in fp8."""
LARGEST_FP8 = 448.0


@dataclass(frozen=True, eq=False)
class Residual:
    """values [b, H, N, D] in the kept precision; scales fp32 [b, H, ceil(N/128)] for fp8."""

    values: Tensor
    scales: Tensor | None = None

    @staticmethod
    @torch.no_grad()
    def of(o_full: Tensor, o_sparse: Tensor, ratio: Tensor, precision: Precision) -> Residual:
        """o_full, o_sparse [b, H, N, D]; ratio [b, H, N], already rounded to what will be kept of it."""
        values = torch.empty(o_full.shape, dtype=DTYPES[precision], device=o_full.device)
        scales: list[Tensor] | None = [] if precision == "fp8" else None
        for h in range(o_full.shape[1]):
            r = o_full[:, h].float() - ratio[:, h, :, None].float() * o_sparse[:, h].float()
            if scales is not None:
                scale = _scale(r)
                scales.append(scale)
                r = r / _per_row(scale, r.shape[1])
            values[:, h] = r.to(values.dtype)
        return Residual(values, None if scales is None else torch.stack(scales, 1))

    def repair(self, o: Tensor, ratio: Tensor) -> Tensor:
        """``ratio * o + R`` in o's dtype and layout; o [b, H, N, D], ratio fp32 [b, H, N]."""
        out = torch.empty_like(o)
        for h in range(o.shape[1]):
            r = self.values[:, h].float()
            if self.scales is not None:
                r = r * _per_row(self.scales[:, h], r.shape[1])
            out[:, h] = (ratio[:, h, :, None] * o[:, h].float() + r).to(o.dtype)
        return out


def size(shape: tuple[int, ...] | torch.Size, precision: Precision) -> int:
    """Bytes of the residual of an output of ``shape`` [b, H, N, D], scales included."""
    b, h, n, d = shape
    return b * h * (n * d * DTYPES[precision].itemsize + (4 * -(-n // ROWS) if precision == "fp8" else 0))


def _scale(r: Tensor) -> Tensor:
    """fp32 [b, ceil(N/128)]: takes the largest entry of 128 rows to the largest number of fp8. 1 where all are zero."""
    padded = torch.nn.functional.pad(r, (0, 0, 0, -r.shape[1] % ROWS))
    most = padded.abs().unflatten(1, (-1, ROWS)).amax((2, 3)) / LARGEST_FP8
    return torch.where(most > 0, most, 1.0)


def _per_row(scale: Tensor, rows: int) -> Tensor:
    return scale.repeat_interleave(ROWS, dim=1)[:, :rows, None]
