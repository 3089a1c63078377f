"""The rules of a plan as FlexAttention wants them: one function that says whether a pair is read, one that changes its logit.

Both take (batch, head, place of the query, place of the key) and look everything up in vectors that were put in place order
before. They are traced and compiled, so they hold tensors and plain numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .blocks import FULL, PARTIAL, Band, Bits, BlockPlan, Frames, TokenOrder, Window, entry_places
from .logits import mean_key
from .plan import MASKED, AttentionPlan, DistanceTable, FrameTable, Labels, Modulation

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Score = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def placed(x: Tensor, order: TokenOrder | None, axis: int = -1) -> Tensor:
    """``x`` with one entry per token along ``axis``, in place order; dead places repeat token 0. None: places are tokens."""
    return x if order is None or order.identity else x.index_select(axis, order.perm.clamp(min=0).long())


def distinct(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same tensors as objects of their own.

    Where one object stands in two places, the compiler looks for the reason why earlier code does not fit, and may fail over it.
    """
    return tuple(x.view_as(x) for x in tensors)


def mask_mod(plan: AttentionPlan, batch: int, heads: int) -> Mask | None:
    """Whether a pair is read under the labels and blocks of ``plan``; None where all are.

    It says all there is to say, and not only what block lists leave open: FlexAttention without a compiler reads no lists.
    """
    blocks = plan.blocks if isinstance(plan.blocks, BlockPlan) else None
    rules: list[Mask] = []
    if blocks is not None:
        rules.append(_blocks(blocks, batch, heads))
        if has_dead_keys(blocks):
            rules.append(_live(blocks.k))
    if plan.labels is not None:
        rules.append(_labels(plan.labels, blocks, batch))
    if not rules:
        return None
    from torch.nn.attention.flex_attention import and_masks

    return and_masks(*rules)


def has_dead_keys(blocks: BlockPlan) -> bool:
    """Whether some places of the keys hold no token. In the identity order they lie behind the last token and are not there."""
    return not blocks.k.identity


def _live(order: TokenOrder) -> Mask:
    live = order.perm >= 0
    return lambda b, h, i, j: live[j]


def _labels(labels: Labels, blocks: BlockPlan | None, batch: int) -> Mask:
    allow = placed(labels.allow_q, None if blocks is None else blocks.q).expand(batch, -1).contiguous()
    label = placed(labels.label_k, None if blocks is None else blocks.k).expand(batch, -1).long().contiguous()
    return lambda b, h, i, j: ((allow[b, i] >> label[b, j]) & 1) != 0


def _blocks(plan: BlockPlan, batch: int, heads: int) -> Mask:
    kinds, group = plan.kinds(), plan.head_map.expand(batch, heads).contiguous()
    m, n = plan.q.block, plan.k.block
    if plan.mask is None:
        return lambda b, h, i, j: kinds[group[b, h], i // m, j // n] == FULL
    test = _bits(plan, plan.mask, group) if isinstance(plan.mask, Bits) else _analytic(plan)

    def read(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        kind = kinds[group[b, h], i // m, j // n]
        return (kind == FULL) | ((kind == PARTIAL) & test(b, h, i, j))

    return read


def _bits(plan: BlockPlan, mask: Bits, group: Tensor) -> Mask:
    """A table of mask ids over all blocks: no larger than the index tables FlexAttention takes anyway."""
    assert plan.partial is not None
    places = plan.groups * plan.q.blocks * plan.k.blocks
    ids = torch.zeros(places + 1, dtype=torch.int32, device=mask.ids.device)
    ids = ids.scatter_(0, entry_places(plan.partial, plan.k.blocks), mask.ids)[:-1].view(plan.shape)
    words, inverted, m, n = mask.words, mask.inverted, plan.q.block, plan.k.block

    def test(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        word = words[ids[group[b, h], i // m, j // n], i % m, j % n // 32]
        return (((word >> (j % 32)) & 1) != 0) != inverted

    return test


def _analytic(plan: BlockPlan) -> Mask:
    rule, (_, rows, cols) = plan.mask, plan.q.grid or (1, 1, 1)
    area = rows * cols
    pos_q, pos_k = distinct(plan.q.pos, plan.k.pos)
    inverted = rule.inverted  # type: ignore[union-attr]

    def hit(p: Tensor, r: Tensor) -> Tensor:
        if isinstance(rule, Window):
            dy, dx, dt = p % area // cols - r % area // cols, p % cols - r % cols, (p // area - r // area) * rule.frame_scale
            return (dy * dy + dx * dx) + dt * dt < rule.radius * rule.radius
        if isinstance(rule, Band):
            return (p % area - r % area).abs() <= rule.half_width
        assert isinstance(rule, Frames)
        apart = r // area - p // area
        return (apart >= rule.lo) & (apart <= rule.hi)

    def test(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        p, r = pos_q[i], pos_k[j]
        free = (p < 0) | (r < 0)
        inner = hit(p.clamp(min=0), r.clamp(min=0))
        return (~inner & ~free) if inverted else (inner | free)

    return test


# --- logits --------------------------------------------------------------------------------------------------------------


def score_mod(plan: AttentionPlan, q: Tensor, k: Tensor, scale: float) -> Score | None:
    """The change of a scaled logit under modulation and key bias of ``plan``; None where there is none. q, k in token order."""
    blocks = plan.blocks if isinstance(plan.blocks, BlockPlan) else None
    change = None if plan.modulation is None else _modulated(plan.modulation, blocks, q, k, scale)
    if plan.key_bias is None:
        return change
    bias = placed(plan.key_bias.float(), None if blocks is None else blocks.k).expand(q.shape[0], q.shape[1], -1).contiguous()

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (s if change is None else change(s, b, h, i, j)) + bias[b, h, j]

    return score


def _modulated(mod: Modulation, blocks: BlockPlan | None, q: Tensor, k: Tensor, scale: float) -> Score:
    tables = [_table(t, blocks) for t in (mod.frames, mod.distance) if t is not None]
    per_head = None if mod.scale is None else mod.scale.float().expand(q.shape[1]).contiguous()
    center = _centers(q, k, scale, blocks) if mod.center_keys else None
    positive_only = mod.positive_only

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        c = center[b, h, i] if center is not None else 0.0
        x = s - c
        changed = x if per_head is None else x * per_head[h]
        for table in tables:
            changed = changed * table(i, j)
        if positive_only:
            changed = torch.where(x > 0, changed, x)
        out = changed + c
        for table in tables:  # a product with a dropped pair's entry says nothing: the drop is looked up again
            out = torch.where(table(i, j, dropped=True), -math.inf, out)
        return out

    return score


def _table(table: FrameTable | DistanceTable, blocks: BlockPlan | None) -> Callable[..., Tensor]:
    """(i, j) -> factor of the pair, 1 for dropped ones; with ``dropped`` whether it is dropped."""
    gone = table.classes == MASKED
    factors = table.factors.float()[table.classes.masked_fill(gone, 0).long()].masked_fill(gone, 1.0)
    sides = (table.ids_q, table.ids_k) if isinstance(table, FrameTable) else (table.pos_q, table.pos_k)
    orders = (None, None) if blocks is None else (blocks.q, blocks.k)
    of_q, of_k = distinct(*(placed(x, order).int() for x, order in zip(sides, orders, strict=True)))
    by_frame = isinstance(table, FrameTable)

    def look(i: Tensor, j: Tensor, dropped: bool = False) -> Tensor:
        a, c = of_q[i], of_k[j]
        exempt = (a < 0) | (c < 0)
        a, c = torch.where(exempt, 0, a), torch.where(exempt, 0, c)
        if dropped:
            return ~exempt & (gone[a, c] if by_frame else gone[(a - c).abs()])
        return torch.where(exempt, 1.0, factors[a, c] if by_frame else factors[(a - c).abs()])

    return look


def _centers(q: Tensor, k: Tensor, scale: float, blocks: BlockPlan | None) -> Tensor:
    """fp32 [B, H, places]: each query's logit with the mean key."""
    mean = mean_key(k).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return placed(torch.einsum("bhnd,bhd->bhn", q.to(mean.dtype), mean) * scale, None if blocks is None else blocks.q)
