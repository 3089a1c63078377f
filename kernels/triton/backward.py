"""The two backward passes as PyTorch operators and their launches: ``torch.ops.attention_loom.dq`` and ``.dkdv``."""

from __future__ import annotations

import contextlib
from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor

from .launch import architecture, interpreted
from .settings import INTERPRETED, Settings, padded_width, precision


@dataclass(frozen=True)
class Given:
    """Tensors both passes read beside q, k, v, in the order of the kernels' arguments; None where a part is absent.

    Everything per token is in token order. at_*: positions of a distance table; pos_*: grid positions per place.
    """

    kbar: Tensor | None = None
    head_scale: Tensor | None = None
    key_bias: Tensor | None = None
    frame_q: Tensor | None = None
    frame_k: Tensor | None = None
    frame_table: Tensor | None = None
    frame_factors: Tensor | None = None
    at_q: Tensor | None = None
    at_k: Tensor | None = None
    distance_table: Tensor | None = None
    distance_factors: Tensor | None = None
    label_k: Tensor | None = None
    allow_q: Tensor | None = None
    perm_q: Tensor | None = None
    perm_k: Tensor | None = None
    pos_q: Tensor | None = None
    pos_k: Tensor | None = None
    items: Tensor | None = None
    head_map: Tensor | None = None
    bounds: Tensor | None = None
    col: Tensor | None = None
    part_ptr: Tensor | None = None
    part_col: Tensor | None = None
    part_id: Tensor | None = None
    words: Tensor | None = None

    def pack(self) -> list[Tensor | None]:
        """The fields in order."""
        return [getattr(self, f.name) for f in fields(self)]


@dataclass(frozen=True)
class Sizes:
    """Integers of a launch. blocks_q, blocks_k: blocks of block_q queries and block_k keys; tiles divide them."""

    block_m: int
    block_n: int
    warps: int
    stages: int
    block_q: int
    block_k: int
    blocks_q: int
    blocks_k: int
    positive_only: int = 0
    element: int = 0
    inverted: int = 0
    grid_y: int = 1
    grid_x: int = 1
    lo: int = 0
    hi: int = 0

    def pack(self) -> list[int]:
        """The fields in order."""
        return [int(x) for x in astuple(self)]


# Padded head width -> settings for 16-bit types. The pass over the keys holds k, v and two accumulators of its tile: more
# warps share a wide one, or its registers spill.
_HALF = {
    "sm_80": {32: (64, 64, 4, 2), 64: (64, 64, 4, 2), 128: (64, 64, 8, 2), 256: (64, 32, 8, 1)},
    "sm_86": {32: (64, 64, 4, 2), 64: (64, 64, 4, 2), 128: (64, 64, 8, 2), 256: (32, 32, 8, 1)},
    "gfx942": {32: (32, 64, 4, 1), 64: (32, 64, 4, 1), 128: (32, 32, 4, 1), 256: (16, 32, 4, 1)},
}
_FULL = {32: (32, 32, 4, 1), 64: (32, 32, 4, 1), 128: (32, 32, 8, 1), 256: (16, 16, 4, 1)}
_ROOMY = ("sm_80", "sm_90", "sm_100", "sm_103")
"""More than 100 KB of shared memory per block; any other NVIDIA architecture takes the row of sm_86."""


def backward_settings(arch: str, width: int, item_size: int, pairs: bool = False, careful: bool = False) -> Settings:
    """Tile and launch settings of both passes; by architecture, head width and bytes per element, never by the batch.

    pairs: rules look at single pairs, which takes registers: more warps share a tile. careful: what is tried last.
    """
    if arch == "interpreted":
        return INTERPRETED
    block_d = padded_width(width)
    if item_size > 2:
        block_m, block_n, warps, stages = _FULL[block_d]
    elif careful:
        block_m, block_n, warps, stages = 16, 32, 4, 1
    else:
        row = "gfx942" if arch.startswith("gfx") else "sm_80" if arch in _ROOMY else "sm_86"
        block_m, block_n, warps, stages = _HALF[row][block_d]
    return Settings(block_m, block_n, 8 if pairs and not careful else warps, stages)


@torch.library.custom_op("attention_loom::dq", mutates_args=())
def dq_op(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, do: Tensor, lse: Tensor, dlse: Tensor | None,
    given: list[Tensor | None], sizes: list[int], scalars: list[float],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq like q, delta fp32 [B,H,Nq], gradient of the centre fp32 [B,H,Nq] or nothing); arguments: ``dq_kernel``."""
    from .backward_dq import dq_kernel

    g, s = Given(*given), Sizes(*sizes)
    batch, heads, n_q, _ = q.shape
    dq, delta, dcenter = torch.empty_like(q), torch.empty_like(lse), lse.new_empty(lse.shape if g.kbar is not None else 0)
    tiles = s.blocks_q * s.block_q // s.block_m
    with _on(q):
        dq_kernel[(tiles * batch * heads,)](
            q, k, v, o, do, lse, dlse, dq, delta, dcenter, *given,
            *_strides(q, k, v, o, do, dq), *_rule_strides(g), heads, heads // k.shape[1], n_q, k.shape[2], tiles,
            *_numbers(g, s, scalars), **_launched(q, g, s), DLSE=dlse is not None,
        )  # fmt: skip
    return dq, delta, dcenter


@dq_op.register_fake
def _dq_shapes(q, k, v, o, do, lse, dlse, given, sizes, scalars):
    return torch.empty_like(q), torch.empty_like(lse), lse.new_empty(lse.shape if given[0] is not None else 0)


@torch.library.custom_op("attention_loom::dkdv", mutates_args=())
def dkdv_op(
    q: Tensor, k: Tensor, v: Tensor, do: Tensor, lse: Tensor, delta: Tensor,
    given: list[Tensor | None], sizes: list[int], scalars: list[float],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dk like k, dv like v, gradient of the key bias fp32 [B,H,Nk] or nothing); arguments: ``dkdv_kernel``."""
    from .backward_dkdv import dkdv_kernel

    g, s = Given(*given), Sizes(*sizes)
    batch, heads = q.shape[:2]
    key_heads, n_k = k.shape[1:3]
    dk, dv, dbias = torch.empty_like(k), torch.empty_like(v), lse.new_empty((batch, heads, n_k) if g.key_bias is not None else 0)
    tiles = s.blocks_k * s.block_k // s.block_n
    with _on(q):
        dkdv_kernel[(tiles * batch * key_heads,)](
            q, k, v, do, lse, delta, dk, dv, dbias, *given,
            *_strides(q, k, v, do, dk, dv), *_rule_strides(g), heads, heads // key_heads, q.shape[2], n_k, tiles,
            *_numbers(g, s, scalars), **_launched(q, g, s),
        )  # fmt: skip
    return dk, dv, dbias


@dkdv_op.register_fake
def _dkdv_shapes(q, k, v, do, lse, delta, given, sizes, scalars):
    shape = (q.shape[0], q.shape[1], k.shape[2]) if given[2] is not None else 0
    return torch.empty_like(k), torch.empty_like(v), lse.new_empty(shape)


def _on(x: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device: make it that of ``x``."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()


def _strides(*parts: Tensor) -> list[int]:
    return [stride for x in parts for stride in x.stride()[:3]]


def _rule_strides(g: Given) -> list[int]:
    """Strides of bias, labels, head scale and head map: 0 along axes that are broadcast or where the part is absent."""

    def of(x: Tensor | None, n: int) -> list[int]:
        return [0] * n if x is None else [0 if x.shape[i] == 1 else x.stride(i) for i in range(n)]

    return [*of(g.key_bias, 3), *of(g.label_k, 1), *of(g.allow_q, 1), *of(g.head_scale, 1), *of(g.head_map, 2)]


def _numbers(g: Given, s: Sizes, scalars: list[float]) -> list[float]:
    frames = (0, 0) if g.frame_table is None else g.frame_table.shape
    distances = 0 if g.distance_table is None else g.distance_table.shape[0]
    scale, radius2, frame_scale = scalars
    return [s.blocks_q, s.blocks_k, *frames, distances, s.grid_y, s.grid_x, radius2, frame_scale, s.lo, s.hi, scale]


def constants(width: int, g: Given, s: Sizes, fp32_precision: str, upcast: bool) -> dict[str, object]:
    """What both kernels know at compile time."""
    return {
        "D": width, "BLOCK_D": padded_width(width), "BLOCK_M": s.block_m, "BLOCK_N": s.block_n,
        "BLOCK_Q": s.block_q, "BLOCK_K": s.block_k, "GATHER_Q": g.perm_q is not None, "GATHER_K": g.perm_k is not None,
        "LISTED": g.bounds is not None, "KINDS": 1 if g.bounds is None else g.bounds.shape[-1] - 1,
        "ELEMENT": s.element, "INVERTED": bool(s.inverted),
        "FRAMES": g.frame_table is not None, "DISTANCE": g.distance_table is not None, "LABELS": g.label_k is not None,
        "POSITIVE_ONLY": bool(s.positive_only), "CENTER": g.kbar is not None, "HEAD_SCALE": g.head_scale is not None,
        "BIAS": g.key_bias is not None, "UPCAST": upcast, "PRECISION": fp32_precision,
    }  # fmt: skip


def _launched(q: Tensor, g: Given, s: Sizes) -> dict[str, object]:
    upcast = interpreted() and q.dtype == torch.bfloat16
    return constants(q.shape[-1], g, s, precision(architecture(q.device)), upcast) | {"num_warps": s.warps, "num_stages": s.stages}
