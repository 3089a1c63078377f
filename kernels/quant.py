"""Eight-bit attention: the arithmetic of the opt-in paths ``int8_qk`` and ``int8_qk_fp8_pv`` in plain torch, and when they may run.

Symmetric int8 with one fp32 scale per tile of at most 128 queries or 64 keys. The mean key of a head is taken out first: it
shifts all logits of a row alike, which no softmax sees and the log-sum-exp gets back. Source: SageAttention
(arXiv 2410.02367), sections 4.2 and 4.3; ``specs``: sparse backend §10.

``int8_qk_fp8_pv`` takes weights and values to e4m3, eight-bit floats with four significant bits: the weights of a row relative to its
largest and times 448, the values with one scale per channel. Source: SageAttention2 (arXiv 2411.10958), sections 3.3 and 3.4.

The gate has two halves. What is known before a call (head width, type, gradient) is refused with a sentence. What only the
values tell, logits so large that a rounding step of q or k moves the softmax, is decided per head on the device: such a head
is computed from the 16-bit values in the same launch. Nobody waits for the answer, and it depends on that head alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .backends import Backend, Call, Limits, backends
from .blocks import TokenOrder
from .plan import AttentionPlan
from .stages import AROUND, WITH_LSE

QUERY_ROWS, KEY_ROWS = 128, 64
"""Most rows that share a scale."""
WIDTHS = (64, 128)
MOST_LOGIT = 60.0
"""Heads with a larger estimate of the largest |logit| are not quantised."""
LEAST_SCALE = 1e-7
MOST_E4M3 = 448.0
"""The largest e4m3 number."""
LONGEST = 32
"""Tiles per side whose longest vector enters the estimate of the largest logit."""


@dataclass(frozen=True, eq=False)
class Quantised:
    """One side in place order. values int8 [B,H,places,D], dead places 0; scale fp32 [B,H,places/rows]; norm fp32
    [B,H,places]: length of each (centred) vector; rows: places per scale."""

    values: Tensor
    scale: Tensor
    norm: Tensor
    rows: int

    def dequantised(self) -> Tensor:
        """fp32 [B,H,places,D]: what the kernel computes with."""
        return self.values.float() * self.scale.repeat_interleave(self.rows, -1)[..., None]


def quantise(x: Tensor, order: TokenOrder, rows: int, mean: Tensor | None = None) -> Quantised:
    """``x [B,H,N,D]`` less ``mean fp32 [B,H,D]``, in place order, as int8. rows: places per scale; divides the block.

    scale = max|x| / 127 + 1e-7 over the live places; halves round up. The literal form of the kernel's first pass.
    """
    if order.block % rows:
        raise ValueError(f"{rows} rows per scale do not divide blocks of {order.block} tokens")
    live = (order.perm >= 0)[:, None]
    placed = x.index_select(2, order.perm.clamp(min=0).long()).float()
    if mean is not None:
        placed = placed - mean[:, :, None]
    placed = torch.where(live, placed, 0.0)
    tiles = placed.unflatten(2, (-1, rows))
    scale = tiles.abs().amax((-1, -2)) / 127 + LEAST_SCALE
    values = (tiles / scale[..., None, None] + 0.5).floor().to(torch.int8).flatten(2, 3)
    return Quantised(values, scale, placed.norm(dim=-1), rows)


def value_scale(v: Tensor) -> Tensor:
    """fp32 [B,Hk,D]: scale of each channel of v [B,Hk,N,D]. All tokens count, whatever a plan reads."""
    return v.abs().amax(2).float() / MOST_E4M3 + LEAST_SCALE


def quantise_values(v: Tensor) -> Tensor:
    """fp32 [B,Hk,N,D]: v as the kernel computes with it, e4m3 times :func:`value_scale`."""
    scale = value_scale(v)[:, :, None]
    return (v.float() / scale).to(torch.float8_e4m3fn).float() * scale


def quantise_weights(weights: Tensor) -> Tensor:
    """fp32: weights [.., N], each row over its largest, as e4m3."""
    return (weights.float() * MOST_E4M3).to(torch.float8_e4m3fn).float() / MOST_E4M3


def largest_logit(q: Quantised, k: Quantised, scale: float) -> Tensor:
    """fp32 [B,H]: an estimate from below of each head's largest |logit| less the row's mean.

    The longest vector of each tile is taken, of those the :data:`LONGEST` longest per side, and their products formed:
    the largest logits come from long vectors. O(tiles), on the device.
    """
    long_q, long_k = _longest(q), _longest(k)
    group = long_q.shape[1] // long_k.shape[1]
    s = long_q.unflatten(1, (-1, group)) @ long_k[:, :, None].transpose(-1, -2)
    return s.abs().amax((-1, -2)).flatten(1, 2) * abs(scale)


def _longest(x: Quantised) -> Tensor:
    """fp32 [B,H,n,D]: the longest vectors, one per tile at most."""
    norm, within = x.norm.unflatten(-1, (-1, x.rows)).max(-1)
    tile = norm.topk(min(LONGEST, norm.shape[-1]), dim=-1).indices
    place = tile * x.rows + within.gather(-1, tile)
    vectors = x.values.gather(2, place[..., None].expand(-1, -1, -1, x.values.shape[-1]))
    return vectors.float() * x.scale.gather(-1, tile)[..., None]


def refusal(width: int, dtype: torch.dtype, needs_grad: bool, name: str = "int8_qk") -> str | None:
    """Why a call of this kind is not quantised, as a sentence; None if it may be."""
    if width not in WIDTHS:
        return f"{name} takes head width {WIDTHS[0]} or {WIDTHS[1]}, this is {width}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"{name} takes fp16 and bf16 values, these are {dtype}"
    if needs_grad:
        return f"{name} has no gradient and one is needed"
    return None


def has_e4m3(arch: str) -> bool:
    """Whether the matrix units of ``arch`` multiply e4m3: NVIDIA's from 8.9 on. The interpreter stands in for them."""
    return arch == "interpreted" or (arch.startswith("sm_") and int(arch.removeprefix("sm_")) >= 89)


def _available(call: Call) -> str | None:
    reason = refusal(call.q.shape[-1], call.q.dtype, call.needs_grad)
    return reason or next(b for b in backends() if b.name == "triton").available(call)


def _available_fp8(call: Call) -> str | None:
    reason = refusal(call.q.shape[-1], call.q.dtype, call.needs_grad, "int8_qk_fp8_pv") or _available(call)
    if reason:
        return reason
    from .triton.launch import architecture

    arch = architecture(call.q.device)
    return None if has_e4m3(arch) else f"int8_qk_fp8_pv needs matrix units for e4m3, compute capability 8.9 or later; this is {arch}: int8_qk runs there"


def _run(call: Call, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, lse: bool, careful: bool) -> tuple[Tensor, Tensor]:
    return _run_with(call, q, k, v, plan, careful, values8=False)


def _run_fp8(call: Call, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, lse: bool, careful: bool) -> tuple[Tensor, Tensor]:
    return _run_with(call, q, k, v, plan, careful, values8=True)


def _run_with(call: Call, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, careful: bool, *, values8: bool) -> tuple[Tensor, Tensor]:
    from .triton.int8_op import run

    o, o_lse, _ = run(q, k, v, plan, call.scale, tokens_first=call.tokens_first, careful=careful, values8=values8)
    return o, o_lse


LIMITS = Limits(features=AROUND | WITH_LSE | {"key_bias", "blocks"}, devices=frozenset({"cuda", "cpu"}))
QUANTISED = {
    "int8_qk": Backend("int8_qk", 0, LIMITS, _run, _available, may_fail=True),
    "int8_qk_fp8_pv": Backend("int8_qk_fp8_pv", 0, LIMITS, _run_fp8, _available_fp8, may_fail=True),
}
"""Not in the registry: only ``attend(..., quant=...)`` of the same name runs them."""
