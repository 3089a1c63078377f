"""What a block plan means, written out pair by pair from its lists: the truth the plan's own functions are tested against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from attention_loom.kernels import Band, Bits, BlockPlan, Frames, TokenOrder, Window
from torch import Tensor

Pair = tuple[int, int]


def token_mask(plan: BlockPlan) -> Tensor:
    """bool [G, Nq, Nk]: which pairs are read."""
    out = [[[False] * plan.k.tokens for _ in range(plan.q.tokens)] for _ in range(plan.groups)]
    for lists, passes in ((plan.full, lambda *_: True), (plan.partial, element_test(plan))):
        if lists is None:
            continue
        ptr, col = lists.ptr.tolist(), lists.col.tolist()
        for g, row in ((g, row) for g in range(plan.groups) for row in range(plan.q.blocks)):
            for at in range(ptr[g][row], ptr[g][row + 1]):
                for i, a in enumerate(tokens_of(plan.q, row)):
                    for j, b in enumerate(tokens_of(plan.k, col[at])):
                        assert not out[g][a][b], "a pair is listed twice"
                        out[g][a][b] = passes(at, (i, a), (j, b))
    return torch.tensor(out)


def tokens_of(order: TokenOrder, block: int) -> list[int]:
    return [t for t in order.perm[block * order.block : (block + 1) * order.block].tolist() if t >= 0]


def element_test(plan: BlockPlan) -> Callable[[int, Pair, Pair], bool]:
    """Whether (list entry, query, key) is admitted, both sides as (place in the block, token)."""
    test = plan.mask
    if isinstance(test, Bits):
        words, ids = test.words.tolist(), test.ids.tolist()
        return lambda at, query, key: bool(words[ids[at]][query[0]][key[0] // 32] >> (key[0] % 32) & 1) != test.inverted
    _, rows, cols = plan.q.grid or (1, 1, 1)
    pos_q, pos_k = ([order.pos[place].item() for place in order.inverse.tolist()] for order in (plan.q, plan.k))

    def passes(_: int, query: Pair, key: Pair) -> bool:
        p, r = pos_q[query[1]], pos_k[key[1]]
        if p < 0 or r < 0:
            return not test.inverted
        (tp, yp, xp), (tr, yr, xr) = ((n // (rows * cols), n // cols % rows, n % cols) for n in (p, r))
        hit = {
            Window: lambda: (yp - yr) ** 2 + (xp - xr) ** 2 + (test.frame_scale * (tp - tr)) ** 2 < test.radius**2,
            Band: lambda: abs(yp * cols + xp - yr * cols - xr) <= test.half_width,
            Frames: lambda: test.lo <= tr - tp <= test.hi,
        }[type(test)]()
        return hit != test.inverted

    return passes
