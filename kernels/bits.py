"""Masks as bits: maps over blocks kept across steps, and the pair masks of partial blocks.

A map over blocks [.., nQ, nK] is kept as bytes, eight columns in one: HunyuanVideo at 720p, 931 x 931 blocks of 128 and 24
heads, takes 2.6 MB for each layer. The pair mask of a partial block is kept as 32-bit words and stored once per content.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .block_mask import analytic
from .blocks import Bits, BlockList, BlockPlan, entry_places

WORDS_AT_ONCE = 2**17
"""Words (32 pairs each) of partial blocks that are unpacked at a time."""


def pack(mask: Tensor) -> Tensor:
    """uint8 [..., ceil(n/8)] of ``mask`` bool [..., n]: bit c of byte w is column 8 w + c; bits past the end are zero."""
    columns = mask.shape[-1]
    eights = torch.nn.functional.pad(mask.to(torch.uint8), (0, -columns % 8)).unflatten(-1, (-1, 8))
    return (eights << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, columns: int) -> Tensor:
    """bool [..., columns] of ``packed`` uint8 [..., ceil(columns/8)]."""
    if packed.shape[-1] != -(-columns // 8):
        raise ValueError(f"{packed.shape[-1]} bytes a row do not hold {columns} columns; expected {-(-columns // 8)}")
    bit = (packed[..., None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return bit.flatten(-2)[..., :columns] != 0


def pack_bits(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """(words int32 [masks, Bq, Bk/32], ids int32 [n]) of ``pairs`` bool [n, Bq, Bk], one mask for each partial block in order.

    Equal masks are stored once, which waits for the device: the number of different ones is not known before.
    """
    return distinct(_to_words(pairs))


def distinct(words: Tensor) -> tuple[Tensor, Tensor]:
    """(different masks, which of them each is) of ``words`` int32 [n, Bq, Bk/32]. Waits for the device."""
    if words.shape[0] == 0:
        return words.new_zeros(1, *words.shape[1:]), words.new_zeros(0)
    unique, ids = torch.unique(words.flatten(1), dim=0, return_inverse=True)
    return unique.view(-1, *words.shape[1:]), ids.to(torch.int32)


def to_bits(plan: BlockPlan) -> BlockPlan:
    """The same plan with its element test written out as bits, so that it can be combined with any other. Waits for the device."""
    if plan.partial is None or plan.mask is None or (isinstance(plan.mask, Bits) and not plan.mask.inverted):
        return plan
    end = int(plan.partial.ptr[-1, -1])
    partial = replace(plan.partial, col=plan.partial.col[:end])
    words, ids = distinct(block_words(plan, entry_places(partial, plan.k.blocks)))
    return replace(plan, partial=partial, mask=Bits(words, ids))


def block_words(plan: BlockPlan, places: Tensor) -> Tensor:
    """int32 [n, Bq, Bk/32]: what the plan's element test admits in the blocks at ``places`` int64 [n] of the [G, nQ, nK] map.

    For ``Bits`` only partial blocks of the plan have a meaning; elsewhere, and at dead places of a block, bits are arbitrary.
    """
    assert plan.mask is not None
    assert plan.partial is not None
    if plan.k.block % 32:
        raise ValueError(f"blocks of {plan.k.block} keys cannot be written as 32-bit words")
    if isinstance(plan.mask, Bits):
        words = plan.mask.words[carried_ids(plan.mask, plan.partial, places, plan.k.blocks).long()]
        return ~words if plan.mask.inverted else words
    per_block = plan.q.block * plan.k.block // 32
    step = max(1, WORDS_AT_ONCE // per_block)
    parts = [_analytic_words(plan, places[i : i + step]) for i in range(0, places.shape[0], step)]
    return torch.cat(parts) if parts else torch.zeros(0, plan.q.block, plan.k.block // 32, dtype=torch.int32, device=places.device)


def carried_ids(mask: Bits, partial: BlockList, places: Tensor, n_k: int) -> Tensor:
    """int32 [n]: the masks used by the entries of ``partial`` that stand at ``places``; for places not listed, any id."""
    at = torch.searchsorted(entry_places(partial, n_k), places).clamp(max=max(0, partial.col.shape[0] - 1))
    return mask.ids[at] if partial.col.shape[0] else torch.zeros_like(places, dtype=torch.int32)


def _analytic_words(plan: BlockPlan, places: Tensor) -> Tensor:
    assert plan.mask is not None
    row, column = places // plan.k.blocks % plan.q.blocks, places % plan.k.blocks
    pos_q, pos_k = plan.q.pos.view(plan.q.blocks, -1)[row], plan.k.pos.view(plan.k.blocks, -1)[column]
    return _to_words(analytic(plan.mask, pos_q, pos_k, plan.q.grid or (1, 1, 1)))


def _to_words(pairs: Tensor) -> Tensor:
    if pairs.shape[-1] % 32:
        raise ValueError(f"blocks of {pairs.shape[-1]} keys cannot be written as 32-bit words")
    bit = torch.arange(32, dtype=torch.int64, device=pairs.device)
    # bit 31 is the sign: the sum is taken in 64 bits and wraps when it is narrowed
    return (pairs.unflatten(-1, (-1, 32)).long() << bit).sum(-1).to(torch.int32)
