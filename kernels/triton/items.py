"""Device helpers that say what a program of the forward pass has to do: which tile of queries, and which keys of its row."""

from __future__ import annotations

import triton
import triton.language as tl

NO_END = tl.constexpr(1 << 30)


@triton.jit
def item_at(at, items, heads, tiles_q, split_from, splits, LISTED: tl.constexpr):
    """(batch element and head int64, tile of queries, part of its keys) of the item at place ``at`` of the launch order.

    ``items`` int32 [n]: see :func:`kernels.lists.launch_order`; not LISTED: places are items.
    """
    item = at
    if LISTED:
        item = tl.load(items + at)
    per_head = split_from + (tiles_q - split_from) * splits
    late = tl.maximum(item % per_head - split_from, 0)
    tile = tl.minimum(item % per_head, split_from) + late // splits
    # 64-bit from here on: batch and head offsets pass 2^31 elements at video length.
    b = (item // per_head // heads).to(tl.int64)
    h = (item // per_head % heads).to(tl.int64)
    return b, h, tile, late % splits


@triton.jit
def range_of(
    tile, part, list_set, bounds, partial_ptr, chunk, rows_q, blocks_k, split_from,
    KIND: tl.constexpr, KINDS: tl.constexpr, PER_ROW: tl.constexpr, LISTED: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """(first entry of a kind of block in its list, the one after the last, first uniform one) for a tile of queries.

    Lists as in :class:`kernels.lists.WorkLists`, PER_ROW tiles to a row. KIND 0: plain and uniform blocks, 1: mixed, 2: partial. Not
    LISTED: all blocks in order. SPLIT: what ``part`` reads of them. A cut row runs through its listed blocks and on through its
    partial ones; rows before ``split_from`` are not cut.
    """
    first = tl.cast(0, tl.int32)
    last = tl.cast(blocks_k, tl.int32)
    uniform_from = last
    if LISTED:
        list_row = list_set * rows_q + tile // PER_ROW
        row_bounds = bounds + list_row * (KINDS + 1)
        if KIND == 2:
            start = tl.load(partial_ptr + list_set * (rows_q + 1) + tile // PER_ROW)
            first, last = start, tl.load(partial_ptr + list_set * (rows_q + 1) + tile // PER_ROW + 1)
            before = tl.load(row_bounds + KINDS) - tl.load(row_bounds)
        else:
            start = tl.load(row_bounds)
            first, last = tl.load(row_bounds + 2 * KIND), tl.load(row_bounds + (1 if KINDS == 1 else 2 + KIND))
            before = 0
            uniform_from = tl.load(row_bounds + 1)
        if SPLIT:
            size = tl.where(tile >= split_from, tl.load(chunk + list_set), NO_END)
            first = tl.maximum(first, start + part * size - before)
            last = tl.minimum(last, start + (part + 1) * size - before)
    return first, last, uniform_from


@triton.jit
def tile_at(
    step, exists, columns, k_valid, n_k,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, LISTED: tl.constexpr, K_ORDERED: tl.constexpr,
):  # fmt: skip
    """(first key of a step, how many keys from there on are live).

    A step is BLOCK_N keys of a block of BLOCK_K, the blocks as ``columns`` lists them; block 0 where nothing ``exists``. Live
    keys stand in front of their block, and there may be more than the tile holds.
    """
    block = step // (BLOCK_K // BLOCK_N)
    if LISTED:
        block = tl.load(columns + block, mask=exists, other=0).to(tl.int32)
    inner = (step % (BLOCK_K // BLOCK_N)) * BLOCK_N
    col0 = block * BLOCK_K + inner
    live = tl.load(k_valid + block) - inner if K_ORDERED else n_k - col0
    return col0, live
