"""Device helpers that bring one tile of keys or values into a program, by addresses or by the copy engine, and multiply it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .items import tile_at


@triton.jit
def key_tile(
    engine, base, stride, col0, live, dims, live_dim,
    BLOCK_N: tl.constexpr, TRANSPOSED: tl.constexpr, ENGINE: tl.constexpr, WHOLE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """[BLOCK_N, D] from row ``col0`` of ``base`` on, or [D, BLOCK_N] if TRANSPOSED; zeros beyond ``live`` rows and D channels.

    ENGINE: ``engine`` is a tensor descriptor of the same rows, which the copy engine reads; the zeros are its own. WHOLE: all
    rows and channels are there, nothing needs a mask.
    """
    if ENGINE:
        tile = engine.load([col0, 0])
        if TRANSPOSED:
            tile = tl.trans(tile)
    else:
        within = tl.arange(0, BLOCK_N)
        first = base + tl.cast(col0, tl.int64) * stride
        if TRANSPOSED:
            at = first + within[None, :] * stride + dims[:, None]
            tile = tl.load(at) if WHOLE else tl.load(at, mask=live_dim[:, None] & (within < live)[None, :], other=0.0)
        else:
            at = first + within[:, None] * stride + dims[None, :]
            tile = tl.load(at) if WHOLE else tl.load(at, mask=(within < live)[:, None] & live_dim[None, :], other=0.0)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def products_at(
    step, exists, columns, q_tile, engine, base, stride, k_valid, n_k, dims, live_dim,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, LISTED: tl.constexpr, K_ORDERED: tl.constexpr,
    ENGINE: tl.constexpr, WHOLE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(products [M, BLOCK_N] of the queries with the keys of a step, its first key, how many keys from there on are live).

    A step: as in :func:`kernels.triton.items.tile_at`.
    """
    col0, live = tile_at(step, exists, columns, k_valid, n_k, BLOCK_K, BLOCK_N, LISTED, K_ORDERED)
    k_tile = key_tile(engine, base, stride, col0, live, dims, live_dim, BLOCK_N, True, ENGINE, WHOLE, UPCAST)
    return tl.dot(q_tile, k_tile, input_precision=PRECISION), col0, live


def lend_memory(device: torch.device) -> None:
    """Descriptors are made in the kernel and lie in device memory that the caller provides."""
    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=device))
