"""From tensors to a launch: chooses settings, builds the tile lists and starts the kernel on the tensors' own device."""

from __future__ import annotations

import contextlib
import functools
import os

import torch
from torch import Tensor

from ..plan import DistanceTable, FrameTable, Labels
from ..tiles import TileLists, tile_lists
from .settings import Settings, padded_width, precision, settings, smallest


def interpreted() -> bool:
    """True where kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on")


@functools.lru_cache(maxsize=64)
def _device_arch(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def architecture(device: torch.device) -> str:
    """Key into the settings table: "sm_90", "gfx942", or "interpreted" for CPU tensors."""
    if device.type != "cuda":
        return "interpreted"
    return _device_arch(torch.cuda.current_device() if device.index is None else device.index)


def choose(q: Tensor, rules: bool, careful: bool) -> Settings:
    """Settings for q's device, head width and element size: never for its batch, so results do not depend on the batch."""
    if careful:
        return smallest(q.element_size())
    return settings(architecture(q.device), q.shape[-1], q.element_size(), rules)


def lists_for(q: Tensor, k: Tensor, frames: FrameTable | None, distance: DistanceTable | None, labels: Labels | None, s: Settings) -> TileLists | None:
    """Tile lists of the parts in use, or None where all tiles are plain."""
    if frames is None and distance is None and labels is None:
        return None
    return tile_lists(frames, distance, labels, q.shape[2], k.shape[2], s.block_m, s.block_n)


def out_like(q: Tensor, tokens_first: bool) -> Tensor:
    """An output [B,H,Nq,D] laid out as [B,Nq,H,D] in memory if ``tokens_first``."""
    b, h, n, d = q.shape
    return q.new_empty(b, n, h, d).transpose(1, 2) if tokens_first else q.new_empty(b, h, n, d)


def launch_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    kbar: Tensor | None,
    head_scale: Tensor | None,
    key_bias: Tensor | None,
    frames: list[Tensor],
    distance: list[Tensor],
    labels: list[Tensor],
    lists: list[Tensor],
    positive_only: bool,
    tokens_first: bool,
    s: Settings,
) -> tuple[Tensor, Tensor]:
    """Run the forward kernel. Lists of tensors are empty where a part is absent; order as in the plan's dataclasses."""
    from .forward import forward_kernel

    batch, heads, n_q, width = q.shape
    n_k = k.shape[2]
    o = out_like(q, tokens_first)
    lse = torch.empty(batch, heads, n_q, dtype=torch.float32, device=q.device)
    tiles_q, tiles_k = -(-n_q // s.block_m), -(-n_k // s.block_n)
    frame_q, frame_k, frame_table, frame_factors = _or_none(frames, 4)
    pos_q, pos_k, distance_table, distance_factors = _or_none(distance, 4)
    label_k, allow_q = _or_none(labels, 2)
    columns, ends = _or_none(lists, 2)
    guard = torch.cuda.device(q.device) if q.device.type == "cuda" else contextlib.nullcontext()
    with guard:
        forward_kernel[(tiles_q * batch * heads,)](
            q, k, v, o, lse,
            kbar, head_scale, key_bias,
            frame_q, frame_k, frame_table, frame_factors,
            pos_q, pos_k, distance_table, distance_factors,
            label_k, allow_q,
            columns, ends,
            q.stride(0), q.stride(1), q.stride(2),
            k.stride(0), k.stride(1), k.stride(2),
            v.stride(0), v.stride(1), v.stride(2),
            o.stride(0), o.stride(1), o.stride(2),
            *_strides(key_bias, 3),
            _strides(label_k, 1)[0], _strides(allow_q, 1)[0], _strides(columns, 1)[0], _strides(ends, 1)[0],
            _strides(head_scale, 1)[0],
            heads, heads // k.shape[1], n_q, n_k, tiles_q, tiles_k,
            frames[2].shape[0] if frames else 0, frames[2].shape[1] if frames else 0,
            distance[2].shape[0] if distance else 0,
            scale,
            D=width, BLOCK_D=padded_width(width), BLOCK_M=s.block_m, BLOCK_N=s.block_n,
            LISTED=bool(lists), FRAMES=bool(frames), DISTANCE=bool(distance), LABELS=bool(labels),
            POSITIVE_ONLY=positive_only, CENTER=kbar is not None, HEAD_SCALE=head_scale is not None,
            BIAS=key_bias is not None,
            EVEN_N=n_k % s.block_n == 0,
            UPCAST=interpreted() and q.dtype == torch.bfloat16,
            PRECISION=precision(architecture(q.device)),
            num_warps=s.warps, num_stages=s.stages,
        )  # fmt: skip
    return o, lse


def _strides(x: Tensor | None, n: int) -> list[int]:
    """The first n strides, 0 along axes that are broadcast or where the part is absent."""
    if x is None:
        return [0] * n
    return [0 if x.shape[i] == 1 else x.stride(i) for i in range(n)]


def _or_none(part: list[Tensor], count: int) -> list[Tensor] | list[None]:
    """The tensors of a part, or as many Nones: the kernel takes None for pointers it will not read."""
    return part or [None] * count
