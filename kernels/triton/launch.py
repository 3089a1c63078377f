"""From tensors to launches, on the tensors' own device: keys into place order, the forward kernel, the merge of split rows."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from .arguments import Numbers, Scalars, Tensors
from .settings import MOST_PAIRED, VARIANTS, Settings, is_shipped, padded_width, precision, settings, smallest
from .specialised_launch import fits, launch_specialised
from .tuning import on_trial, tuned, tuning_key


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


def choose(q: Tensor, flags: Iterable[str], careful: bool, blocks: tuple[int, int] = (128, 128)) -> Settings:
    """Settings for q's device, head width and element size: never for its batch, so results do not depend on the batch.

    flags: of :data:`kernels.triton.settings.FLAGS`. blocks: (Bq, Bk) of a block plan; the tile divides them. Measured
    settings count where the table has none for the GPU.
    """
    arch, width, size = architecture(q.device), q.shape[-1], q.element_size()
    s = smallest(size) if careful else on_trial()
    if s is None and not is_shipped(arch):
        s = tuned(tuning_key("forward", arch, padded_width(width), size, *blocks, flags), q.device)
    return settings(arch, width, size, flags, *blocks) if s is None else s.within(*blocks).on(arch)


def out_like(q: Tensor, tokens_first: bool) -> Tensor:
    """An output [B,H,Nq,D] laid out as [B,Nq,H,D] in memory if ``tokens_first``."""
    b, h, n, d = q.shape
    return q.new_empty(b, n, h, d).transpose(1, 2) if tokens_first else q.new_empty(b, h, n, d)


def on_device(x: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device: make it the one of ``x``."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()


def launch_forward(q: Tensor, k: Tensor, v: Tensor, t: Tensors, n: Numbers, f: Scalars) -> tuple[Tensor, Tensor]:
    """(o [B,H,Nq,D], lse fp32 [B,H,Nq]) of one call; arguments from :func:`kernels.triton.arguments.gather`."""
    from .forward import forward_kernel

    batch, heads, n_q, width = q.shape
    source_v, source_n_k = v, k.shape[2]
    o = out_like(q, n.tokens_first)
    lse = torch.empty(batch, heads, n_q, dtype=torch.float32, device=q.device)
    tiles_q = n.blocks_q * (n.block_q // n.block_m)
    listed = t.items is not None
    programs = t.items.shape[0] if t.items is not None else batch * heads * tiles_q
    split_rows = (tiles_q - n.split_from) * n.block_m if n.splits > 1 else 0
    part_o = part_lse = k_mean = v_mean = None
    if split_rows:
        part_o = torch.empty(batch * heads, n.splits, split_rows, width, dtype=torch.float32, device=q.device)
        part_lse = torch.empty(batch * heads, n.splits, split_rows, dtype=torch.float32, device=q.device)
    with on_device(q):
        if t.perm_k is not None or n.tail:
            k, v, k_mean, v_mean = place_keys(k, v, t.perm_k, n.blocks_k, n.block_k, pool=bool(n.tail))
        n = _in_a_way_that_fits(q, k, v, t, n, f)
        given: dict[str, Any] = {
            **{name: getattr(t, name) for name in _KERNEL_TENSORS},
            "k_mean": k_mean, "v_mean": v_mean, "mix_v": source_v, "part_o": part_o, "part_lse": part_lse,
            **_strides("q", q, 3), **_strides("k", k, 3), **_strides("v", v, 3), **_strides("o", o, 3), **_strides("mix", source_v, 3),
            **_strides("bias", t.key_bias, 3), **_strides("row_scale", t.row_scale, 2), **_strides("residual", t.residual, 3),
            "label_sb": _stride(t.label_k, 0), "allow_sb": _stride(t.allow_q, 0),
            "map_sb": _stride(t.head_map, 0), "map_sh": _stride(t.head_map, 1), "head_scale_sh": _stride(t.head_scale, 0),
            **_segment_sizes("seg0", t.seg0_k, t.seg0_bias, heads), **_segment_sizes("seg1", t.seg1_k, t.seg1_bias, heads),
            "heads": heads, "group": heads // k.shape[1], "n_q": n_q, "n_k": k.shape[2] if t.perm_k is not None else source_n_k,
            "tiles_q": tiles_q, "rows_q": n.blocks_q, "blocks_k": n.blocks_k, "unread_bytes": -(-n.blocks_k // 8),
            "frames_q": _size(t.frame_table, 0), "frames_k": _size(t.frame_table, 1), "distances": _size(t.distance_table, 0),
            "split_from": n.split_from if listed else tiles_q, "splits": n.splits,
            "grid_y": n.grid_y, "grid_x": n.grid_x, "lo": n.lo, "hi": n.hi, "radius2": f.radius2, "frame_scale": f.frame_scale,
            "scale": f.scale,
            **constants(t, n, width, precision(architecture(q.device)), positive_scale=f.scale > 0, upcast=interpreted() and q.dtype == torch.bfloat16),
        }  # fmt: skip
        if "specialised" in VARIANTS[n.variant]:
            launch_specialised(q, k, v, o, lse, n, programs, given | {"takers": t.takers})
        else:
            forward_kernel[(programs,)](q, k, v, o, lse, **given, num_warps=n.warps, num_stages=n.stages)
        if part_o is not None and part_lse is not None:
            _merge_parts(part_o, part_lse, o, lse, source_v, t, n)
    return o, lse


def constants(t: Tensors, n: Numbers, width: int, how: str, *, positive_scale: bool = True, upcast: bool = False) -> dict[str, object]:
    """Everything the kernel knows at compile time, from what is there. Also used by the ahead-of-time check."""
    return {
        "D": width, "BLOCK_D": padded_width(width),
        "BLOCK_M": n.block_m, "BLOCK_N": n.block_n, "BLOCK_Q": n.block_q, "BLOCK_K": n.block_k,
        "LISTED": t.items is not None, "FRAMES": t.frame_q is not None, "DISTANCE": t.pos_q is not None, "LABELS": t.label_k is not None,
        "ELEMENT": n.element, "INVERTED": bool(n.inverted), "SPLIT": n.splits > 1,
        "Q_ORDERED": t.perm_q is not None, "K_ORDERED": t.perm_k is not None, "EVEN_N": bool(n.even),
        "POSITIVE_ONLY": bool(n.positive_only), "CENTER": t.kbar is not None, "HEAD_SCALE": t.head_scale is not None,
        "BIAS": t.key_bias is not None,
        "SEG0": _segment_step(t.seg0_k, n), "SEG0_BIAS": t.seg0_bias is not None, "SEG0_ROWS": t.seg0_rows is not None,
        "SEG1": _segment_step(t.seg1_k, n), "SEG1_BIAS": t.seg1_bias is not None, "SEG1_ROWS": t.seg1_rows is not None,
        "TAIL": bool(n.tail), "AFFINE": t.residual is not None, "MIX": n.mix, "MIX_ROWS": t.mix_rows is not None,
        "POSITIVE_SCALE": positive_scale, "UPCAST": upcast, "PRECISION": how,
        "BLOCK_PAIR": min(n.block_n, MOST_PAIRED), "AHEAD": "ahead" in VARIANTS[n.variant], "ENGINE": "engine" in VARIANTS[n.variant],
    }  # fmt: skip


def _in_a_way_that_fits(q: Tensor, k: Tensor, v: Tensor, t: Tensors, n: Numbers, f: Scalars) -> Numbers:
    """``n`` with a variant that can run the call: the copy engine wants rows and heads to begin at multiples of 16 bytes, and the
    specialised kernel does not know everything."""
    if "specialised" in VARIANTS[n.variant] and not fits(architecture(q.device), q, k, v, t, n, f):
        if t.takers is not None:
            raise RuntimeError("rows were paired for a kernel that cannot take the call")
        return replace(n, variant=VARIANTS.index("plain"))
    if "engine" not in VARIANTS[n.variant]:
        return n
    if any(x.data_ptr() % 16 or any(s * x.element_size() % 16 for s in x.stride()[:3]) for x in (k, v)):
        return replace(n, variant=VARIANTS.index("ahead" if "ahead" in VARIANTS[n.variant] else "plain"))
    if not interpreted():
        from .key_tiles import lend_memory

        lend_memory(k.device)
    return n


def place_keys(k: Tensor, v: Tensor, perm: Tensor | None, blocks: int, block: int, *, pool: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(k, v in place order [B,Hk,places,D], dead places zero; means of k and v per block, fp32 [B,Hk,blocks,D], if ``pool``).

    perm None: the tokens stand in their places already, k and v come back as they are.
    """
    from .permute import permute_kernel

    batch, heads, n, width = k.shape
    ordered = perm is not None
    k_out, v_out = (x.new_empty(batch, heads, blocks * block, width) if ordered else x for x in (k, v))
    k_mean, v_mean = (torch.empty(batch, heads, blocks, width, dtype=torch.float32, device=k.device) if pool else None for _ in range(2))
    permute_kernel[(batch * heads * blocks,)](
        k, v, perm, k_out, v_out, k_mean, v_mean,
        **_strides("k", k, 3), **_strides("v", v, 3), heads=heads, n=n, blocks=blocks,
        D=width, BLOCK_D=padded_width(width), BLOCK=block, STEP=min(block, 32), ORDERED=ordered, POOL=pool,
        num_warps=4,
    )  # fmt: skip
    return k_out, v_out, k_mean, v_mean


def _merge_parts(part_o: Tensor, part_lse: Tensor, o: Tensor, lse: Tensor, v: Tensor, t: Tensors, n: Numbers) -> None:
    from .epilogue import merge_kernel

    rows, width = part_o.shape[2:]
    step = min(n.block_m, 32)  # all parts of a row pass through its registers
    tiles, heads = rows // step, o.shape[1]
    merge_kernel[(o.shape[0] * heads * tiles,)](
        part_o, part_lse, t.perm_q, o, lse, t.row_scale, t.residual, v, t.mix_mean, t.mix_amount, t.mix_rows,
        **_strides("o", o, 3), **_strides("row_scale", t.row_scale, 2), **_strides("residual", t.residual, 3), **_strides("v", v, 3),
        heads=heads, group=heads // v.shape[1], n_q=o.shape[2], tiles=tiles, splits=n.splits, place0=n.split_from * n.block_m,
        D=width, BLOCK_D=padded_width(width), BLOCK_M=step,
        Q_ORDERED=t.perm_q is not None, AFFINE=t.residual is not None, MIX=n.mix, MIX_ROWS=t.mix_rows is not None,
        num_warps=4,
    )  # fmt: skip


# Read by name from Tensors; perm_k is only for the pass before, takers for the other kernel.
_KERNEL_TENSORS = tuple(f.name for f in fields(Tensors) if f.name not in ("perm_k", "takers"))


def _segment_step(k: Tensor | None, n: Numbers) -> int:
    """Keys per step of a segment: no more than it has, in steps a matrix unit takes."""
    if k is None:
        return 0
    return min(n.block_n, 16 if k.shape[2] <= 16 else 32 if k.shape[2] <= 32 else 64)


def _segment_sizes(name: str, k: Tensor | None, bias: Tensor | None, heads: int) -> dict[str, int]:
    return {
        f"{name}_sb": _stride(k, 0),
        f"{name}_group": 1 if k is None else heads // k.shape[1],
        f"{name}_n": _size(k, 2),
        f"{name}_bias_sb": _stride(bias, 0),
        f"{name}_bias_sh": _stride(bias, 1),
    }


def _size(x: Tensor | None, axis: int) -> int:
    return 0 if x is None else x.shape[axis]


def _stride(x: Tensor | None, axis: int) -> int:
    """A stride, 0 along an axis that is broadcast or where the part is absent."""
    return 0 if x is None or x.shape[axis] == 1 else x.stride(axis)


def _strides(name: str, x: Tensor | None, n: int) -> dict[str, int]:
    return {f"{name}_s{axis}": _stride(x, i) for i, axis in zip(range(n), "bhn", strict=False)}
