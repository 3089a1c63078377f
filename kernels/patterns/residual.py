"""What a sparse step missed, kept from a step at which the whole attention was known: ``R = O_full - ratio * O_sparse``.

Kept before the output projection, so it fits an attention call. Written and read a head at a time, so that temporaries stay
small beside the cache itself. Source: ``specs``: Re-ttention (c).

Half the memory of bf16 is had in two ways. fp8 (e4m3) with one scale for 128 rows of a head keeps three bits of each number:
R comes back with a relative error of about 2.6 %. int8 with one scale a row: about 0.5 %, for 4/D more memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..plan import RowAffine

Precision = Literal["fp32", "bf16", "fp16", "fp8", "int8"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn, "int8": torch.int8}


@dataclass(frozen=True)
class Scaled:
    """How a small type is scaled: its largest number, and how many rows of a head share a scale."""

    largest: float
    rows: int


SCALED = {torch.float8_e4m3fn: Scaled(448.0, 128), torch.int8: Scaled(127.0, 1)}


@dataclass(frozen=True, eq=False)
class Residual:
    """values [b, H, N, D] in the kept precision; scales fp32 [b, H, ceil(N/rows)] for the small types."""

    values: Tensor
    scales: Tensor | None = None

    @staticmethod
    @torch.no_grad()
    def of(o_full: Tensor, o_sparse: Tensor, ratio: Tensor, precision: Precision) -> Residual:
        """o_full, o_sparse [b, H, N, D]; ratio [b, H, N], already rounded to what will be kept of it."""
        values = torch.empty(o_full.shape, dtype=DTYPES[precision], device=o_full.device)
        scaled, scales = SCALED.get(values.dtype), []
        for h in range(o_full.shape[1]):
            r = o_full[:, h].float() - ratio[:, h, :, None].float() * o_sparse[:, h].float()
            if scaled is not None:
                scales.append(_scale(r, scaled))
                r = r / _per_row(scales[-1], scaled, r.shape[1])
            values[:, h] = (r.round() if values.dtype == torch.int8 else r).to(values.dtype)
        return Residual(values, torch.stack(scales, 1) if scales else None)

    def affine(self, ratio: Tensor) -> RowAffine | None:
        """``ratio * o + R`` as a part of the attention call; None where R is packed and :meth:`repair` has to do it."""
        return None if self.scales is not None else RowAffine(ratio, self.values)

    def repair(self, o: Tensor, ratio: Tensor) -> Tensor:
        """``ratio * o + R`` in o's dtype and layout; o [b, H, N, D], ratio fp32 [b, H, N]."""
        out = torch.empty_like(o)
        for h in range(o.shape[1]):
            r = self.values[:, h].float()
            if self.scales is not None:
                r = r * _per_row(self.scales[:, h], SCALED[self.values.dtype], r.shape[1])
            out[:, h] = (ratio[:, h, :, None] * o[:, h].float() + r).to(o.dtype)
        return out


def size(shape: tuple[int, ...] | torch.Size, precision: Precision) -> int:
    """Bytes of the residual of an output of ``shape`` [b, H, N, D], scales included."""
    b, h, n, d = shape
    scaled = SCALED.get(DTYPES[precision])
    return b * h * (n * d * DTYPES[precision].itemsize + (4 * -(-n // scaled.rows) if scaled else 0))


def _scale(r: Tensor, scaled: Scaled) -> Tensor:
    """fp32 [b, ceil(N/rows)]: takes the largest entry of a group of rows to the largest number of the type. 1 where all are zero."""
    padded = torch.nn.functional.pad(r, (0, 0, 0, -r.shape[1] % scaled.rows))
    most = padded.abs().unflatten(1, (-1, scaled.rows)).amax((2, 3)) / scaled.largest
    return torch.where(most > 0, most, 1.0)


def _per_row(scale: Tensor, scaled: Scaled, rows: int) -> Tensor:
    return scale.repeat_interleave(scaled.rows, dim=1)[:, :rows, None]
