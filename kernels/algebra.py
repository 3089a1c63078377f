"""Block plans combined: union, intersection, complement, forced rows and columns, other block sizes.

Blocks are EMPTY < PARTIAL < FULL, so with one and the same element test a union is a maximum and an intersection a minimum of
kinds. Plans whose partial blocks are tested differently can only be combined as bits (:func:`kernels.bits.to_bits`).
Nothing waits for the device unless said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .bits import block_words, carried_ids, distinct
from .blocks import EMPTY, FULL, PARTIAL, Bits, BlockPlan, ElementMask, TokenOrder, entry_places
from .builders import block_list, kinds_plan, rescue
from .caching import with_parts

Combine = Callable[[Tensor, Tensor], Tensor]


def union(a: BlockPlan, b: BlockPlan) -> BlockPlan:
    """The pairs that ``a`` or ``b`` admits. Same token orders; the same element test, or bits on both sides."""
    return _combined(a, b, torch.maximum, torch.bitwise_or)


def intersect(a: BlockPlan, b: BlockPlan) -> BlockPlan:
    """The pairs that both admit; rows in which no block is left get their diagonal block (I3)."""
    out = _combined(a, b, torch.minimum, torch.bitwise_and)
    kinds = out.kinds()
    lost = rescue(kinds != EMPTY, out.q, out.k)
    return kinds_plan(torch.where(lost, FULL, kinds), out)


def complement(plan: BlockPlan) -> BlockPlan:
    """The pairs that ``plan`` does not admit: merged by log-sum-exp, both make dense attention.

    Rows may be empty (there is nothing left where the plan is dense), there is no tail, and dense attention does not stand
    in for the result.
    """
    test = None if plan.mask is None else replace(plan.mask, inverted=not plan.mask.inverted)
    full = block_list(plan.kinds() == EMPTY)
    return replace(plan, full=full, mask=test, tail="off", approximate=False)


def force(plan: BlockPlan, *, rows: Tensor | None = None, columns: Tensor | None = None, diagonal: bool = False) -> BlockPlan:
    """The same plan with blocks read whole: ``rows`` bool [nQ], ``columns`` bool [nK], the diagonal (nQ = nK)."""
    _, n_q, n_k = plan.shape
    device = plan.full.ptr.device
    forced = torch.zeros(n_q, n_k, dtype=torch.bool, device=device)
    if rows is not None:
        forced = forced | rows[:, None]
    if columns is not None:
        forced = forced | columns[None, :]
    if diagonal:
        if n_q != n_k:
            raise ValueError(f"there is no diagonal in {n_q} x {n_k} blocks")
        forced = forced | torch.eye(n_q, dtype=torch.bool, device=device)
    return kinds_plan(torch.where(forced, FULL, plan.kinds()), plan)


def coarsen(plan: BlockPlan, q: TokenOrder, k: TokenOrder) -> BlockPlan:
    """The plan in larger blocks (64 -> 128), the orders ``q`` and ``k``: a block is read as its most read part is."""
    return _reblocked(plan, q, k)


def refine(plan: BlockPlan, q: TokenOrder, k: TokenOrder) -> BlockPlan:
    """The plan in smaller blocks (128 -> 64), the orders ``q`` and ``k``; the same pairs where each lies in one old block."""
    return _reblocked(plan, q, k)


# --- two plans -----------------------------------------------------------------------------------------------------------

_OTHER_TEST = "the plans test their partial blocks differently ({} and {}); write both as bits with to_bits first"


def _combined(a: BlockPlan, b: BlockPlan, of_kinds: Combine, of_words: Combine) -> BlockPlan:
    for side in ("q", "k"):
        if getattr(a, side) is not getattr(b, side):
            raise ValueError(f"the plans order the tokens of {side} differently; build both on the same TokenOrder")
    if a.tail != b.tail:
        raise ValueError(f"the plans treat unread blocks differently: tail {a.tail!r} and {b.tail!r}")
    a, b = _same_groups(a, b)
    kinds, test = of_kinds(a.kinds(), b.kinds()), a.mask if b.mask is None else b.mask
    if a.mask is not None and b.mask is not None and a.mask != b.mask:
        if isinstance(a.mask, Bits) and isinstance(b.mask, Bits):
            return _combined_bits(a, b, kinds, of_words)
        if isinstance(a.mask, Bits) or isinstance(b.mask, Bits) or a.mask != replace(b.mask, inverted=not b.mask.inverted):
            raise ValueError(_OTHER_TEST.format(_name(a.mask), _name(b.mask)))
        # opposite tests: together all pairs of a block or none, which leaves no room for a block only one side tests
        both = (a.kinds() == PARTIAL) & (b.kinds() == PARTIAL)
        kinds, test = torch.where(both, of_kinds(both * FULL, ~both * FULL), kinds), None
        if bool((kinds == PARTIAL).any()):
            raise ValueError(_OTHER_TEST.format(_name(a.mask), _name(b.mask)))
    approximate = a.approximate and b.approximate
    if isinstance(test, Bits):  # one side's only: what stays partial was so there
        return kinds_plan(kinds, a if a.mask is test else b, approximate=approximate)
    partial = None if test is None else block_list(kinds == PARTIAL)
    return replace(a, full=block_list(kinds == FULL), partial=partial, mask=test, approximate=approximate)


def _combined_bits(a: BlockPlan, b: BlockPlan, kinds: Tensor, of_words: Combine) -> BlockPlan:
    """Waits for the device: masks are stored once per content."""
    places = (kinds == PARTIAL).flatten().nonzero()[:, 0]
    words, ids = distinct(of_words(_words_at(a, places), _words_at(b, places)))
    lists = block_list(kinds == FULL), block_list(kinds == PARTIAL, places.shape[0])
    return replace(a, full=lists[0], partial=lists[1], mask=Bits(words, ids), approximate=a.approximate and b.approximate)


def _words_at(plan: BlockPlan, places: Tensor) -> Tensor:
    """The pair masks of any blocks: whole ones admit all, empty ones nothing."""
    kind = plan.kinds().flatten()[places][:, None, None]
    return torch.where(kind == PARTIAL, block_words(plan, places), (kind == FULL) * -1).to(torch.int32)


def _name(test: ElementMask) -> str:
    return "Bits" if isinstance(test, Bits) else str(test)


def _same_groups(a: BlockPlan, b: BlockPlan) -> tuple[BlockPlan, BlockPlan]:
    """Both plans on list sets with the same heads: their own where they agree, else one for each batch element and head."""
    if a.head_map is b.head_map or (a.groups == b.groups == 1):
        return a, b
    shape = torch.broadcast_shapes(a.head_map.shape, b.head_map.shape)
    if a.groups == 1 or b.groups == 1:
        own = b if a.groups == 1 else a
        each = torch.zeros(own.groups, dtype=torch.long, device=own.full.ptr.device)
        return (_regrouped(a, each, own.head_map), b) if a.groups == 1 else (a, _regrouped(b, each, own.head_map))
    heads = torch.arange(shape.numel(), dtype=torch.int32, device=a.head_map.device).view(shape)
    one, other = (_regrouped(x, x.head_map.expand(shape).flatten().long(), heads) for x in (a, b))
    return one, other


def _regrouped(plan: BlockPlan, source: Tensor, head_map: Tensor) -> BlockPlan:
    """The plan with list set g a copy of its set ``source[g]``."""
    kinds = plan.kinds()[source]
    if plan.mask is None or plan.partial is None:
        return replace(plan, full=block_list(kinds == FULL), head_map=head_map)
    partial, mask = block_list(kinds == PARTIAL), plan.mask
    if isinstance(mask, Bits):
        size = plan.q.blocks * plan.k.blocks
        places = entry_places(partial, plan.k.blocks)
        inside = source[(places // size).clamp(max=source.shape[0] - 1)] * size + places % size
        mask = replace(mask, ids=carried_ids(mask, plan.partial, inside, plan.k.blocks))
    return replace(plan, full=block_list(kinds == FULL), partial=partial, mask=mask, head_map=head_map)


# --- other blocks --------------------------------------------------------------------------------------------------------


def _reblocked(plan: BlockPlan, q: TokenOrder, k: TokenOrder) -> BlockPlan:
    """Each block takes the strongest kind of the old blocks that share a token with it on either side."""
    if isinstance(plan.mask, Bits):
        raise ValueError("the bits of partial blocks belong to their block size; build the plan in the wanted blocks")
    if (q.tokens, k.tokens) != (plan.q.tokens, plan.k.tokens) or (plan.mask is not None and (q.grid, k.grid) != (plan.q.grid, plan.k.grid)):
        raise ValueError("the new orders hold other tokens or another grid than the plan")
    kinds = _strongest(_strongest(plan.kinds(), 1, _shared_blocks(q, plan.q)), 2, _shared_blocks(k, plan.k))
    partial = None if plan.partial is None else block_list(kinds == PARTIAL)
    return replace(plan, q=q, k=k, full=block_list(kinds == FULL), partial=partial)


def _strongest(kinds: Tensor, axis: int, shared: Tensor) -> Tensor:
    out = kinds.index_select(axis, shared[:, 0])
    for column in shared[:, 1:].unbind(1):
        out = torch.maximum(out, kinds.index_select(axis, column))
    return out


def _shared_blocks(new: TokenOrder, old: TokenOrder) -> Tensor:
    """int64 [new blocks, most]: the old blocks that share a token with each, the first one repeated.

    Waits for the device the first time a pair of orders is met: the table is a fact of geometry and kept with them.
    """
    return with_parts((new, old), "shared blocks", lambda: _find_shared(new, old))


def _find_shared(new: TokenOrder, old: TokenOrder) -> Tensor:
    home, source = new.inverse.long().cpu() // new.block, old.inverse.long().cpu() // old.block
    pairs = torch.unique(home * old.blocks + source)
    row, block = pairs // old.blocks, pairs % old.blocks
    count = torch.bincount(row, minlength=new.blocks)
    first = count.cumsum(0) - count
    rank = torch.arange(row.shape[0]) - first[row]
    out = block[first][:, None].repeat(1, int(count.max()))
    out[row, rank] = block
    return out.to(new.perm.device)
