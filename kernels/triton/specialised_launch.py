"""When :func:`kernels.triton.specialised.specialised_kernel` can take a call, and how it is launched."""

from __future__ import annotations

import functools
import importlib.util
import math
from typing import Any

import torch
from torch import Tensor

from .arguments import Numbers, Scalars, Tensors
from .settings import VARIANTS, has_wgmma

TILE_ROWS = 128
WIDTHS = (64, 128)
DTYPES = (torch.float16, torch.bfloat16)
# What a call may have beside q, k and v; everything else is for the other kernel.
_KNOWN = frozenset(
    {"items", "head_map", "bounds", "col", "chunk", "perm_q", "perm_k", "k_valid", "row_scale", "residual", "mix_mean", "mix_amount", "mix_rows"}
)  # fmt: skip


@functools.cache
def gluon_installed() -> bool:
    """Whether the installed Triton has the dialect the kernel is written in."""
    try:
        return importlib.util.find_spec("triton.experimental.gluon.language.nvidia.hopper") is not None
    except ImportError:
        return False


def fits(arch: str, q: Tensor, k: Tensor, v: Tensor, t: Tensors, n: Numbers, f: Scalars) -> bool:
    """Whether the kernel can take the call; k, v as it would read them."""
    present = {name for name, x in vars(t).items() if x is not None}
    return (
        has_wgmma(arch)
        and gluon_installed()
        and q.dtype in DTYPES
        and q.shape[-1] in WIDTHS
        and n.block_m == TILE_ROWS
        and n.block_n in (64, 128)
        and present <= _KNOWN
        and not (n.element or n.tail)
        and f.scale > 0
        and all(_readable(x) for x in (k, v))
    )


def launch_specialised(q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, t: Tensors, n: Numbers, f: Scalars, more: dict[str, Any]) -> None:
    """Fill ``o`` and ``lse``. k, v: in place order where ``t.perm_k`` is; more: arguments with the names of both kernels."""
    from .specialised import specialised_kernel

    batch, heads, _, width = q.shape
    tiles_q = n.blocks_q * (n.block_q // n.block_m)
    n_items = t.items.shape[0] if t.items is not None else batch * heads * tiles_q
    programs = n_items
    if "persistent" in VARIANTS[n.variant]:
        programs = min(n_items, processors(q.device))
    more = {name: x for name, x in more.items() if name in specialised_kernel.arg_names}
    specialised_kernel[(programs,)](
        q, descriptor(k, n.block_n), descriptor(v, n.block_n), o, lse, **more,
        n_items=n_items, scale=f.scale, D=width, BLOCK_N=n.block_n, BLOCK_Q=n.block_q, BLOCK_K=n.block_k, STAGES=n.stages,
        LISTED=t.items is not None, SPLIT=n.splits > 1, Q_ORDERED=t.perm_q is not None, K_ORDERED=t.perm_k is not None, EVEN_N=bool(n.even),
        AFFINE=t.residual is not None, MIX=n.mix, MIX_ROWS=t.mix_rows is not None,
        num_warps=4,
    )  # fmt: skip


@functools.lru_cache(maxsize=64)
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def descriptor(x: Tensor, rows: int) -> Any:
    """How the copy engine reads x [B,H,N,D] in blocks of ``rows`` tokens of one head; zeros behind the last token."""
    from triton.experimental.gluon.language import NVMMASharedLayout, bfloat16, float16
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    block = [1, 1, rows, x.shape[-1]]
    layout = NVMMASharedLayout.get_default_for(block, bfloat16 if x.dtype == torch.bfloat16 else float16)
    return TensorDescriptor(x, list(x.shape), _strides(x), block, layout)


def _strides(x: Tensor) -> list[int]:
    """Strides of x, along axes of one entry those it would have if it were contiguous: torch leaves any number there."""
    return [x.stride(i) if x.shape[i] > 1 else math.prod(x.shape[i + 1 :]) for i in range(x.ndim)]


def _readable(x: Tensor) -> bool:
    """Rows, heads and batch elements begin at multiples of 16 bytes, and none of them is read twice."""
    strides = _strides(x)
    return x.data_ptr() % 16 == 0 and strides[-1] == 1 and all(s > 0 and s * x.element_size() % 16 == 0 for s in strides[:-1])
