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


@functools.cache
def gluon_installed() -> bool:
    """Whether the installed Triton has the dialect the kernel is written in."""
    try:
        return importlib.util.find_spec("triton.experimental.gluon.language.nvidia.hopper") is not None
    except ImportError:
        return False


def runs_on(arch: str) -> bool:
    """Whether the kernel can run on ``arch`` with the installed Triton."""
    return has_wgmma(arch) and gluon_installed()


def fits(arch: str, q: Tensor, k: Tensor, v: Tensor, t: Tensors, n: Numbers, f: Scalars) -> bool:
    """Whether the kernel can take the call, which is to say without extra segments and tail; k, v as it would read them."""
    return (
        runs_on(arch)
        and q.dtype in DTYPES
        and q.shape[-1] in WIDTHS
        and n.block_m == TILE_ROWS
        and n.block_q % TILE_ROWS == 0
        and n.block_n in (64, 128)
        and t.seg0_k is None
        and not n.tail
        and f.scale > 0
        and (t.perm_k is not None or all(_readable(x) for x in (k, v)))  # keys in place order are a copy of our own
    )


def launch_specialised(q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, n: Numbers, n_items: int, given: dict[str, Any]) -> None:
    """Fill ``o`` and ``lse``. k, v: as the kernel reads them; given: arguments of the other forward kernel by name, many of which it shares."""
    from .specialised import specialised_kernel

    programs = min(n_items, processors(q.device)) if "persistent" in VARIANTS[n.variant] else n_items
    takers = given.pop("takers")
    shared = {name: x for name, x in given.items() if name in specialised_kernel.arg_names}
    engines = (descriptor(x, n.block_n) for x in (k, v))
    specialised_kernel[(programs,)](q, *engines, o, lse, **shared, takers=takers, PAIRED=takers is not None, n_items=n_items, STAGES=n.stages, num_warps=4)


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
