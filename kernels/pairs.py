"""Two rows of 64 queries as one of 128: the plan whose lists hold what either of them reads, and who reads it.

A tile of 64 queries reads each key for half the arithmetic of one of 128, and the cache cannot bring keys any faster. A kernel that works on
both rows of a pair at once brings what they share only once (``kernels/triton/specialised.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .blocks import FULL, BlockPlan, TokenOrder, entry_places
from .builders import block_list
from .caching import with_part

ROWS = 64


@dataclass(frozen=True, eq=False)
class Pairs:
    """plan: blocks of 2 * ROWS queries that read what either row reads. takers uint8, one per entry of its list: bit i for row i of the pair."""

    plan: BlockPlan
    takers: Tensor


def pairable(blocks: BlockPlan) -> bool:
    """Whether :func:`pair_rows` can take the plan: rows of 64, whole blocks only, nothing for what is not read."""
    return blocks.q.block == ROWS and blocks.partial is None and blocks.tail == "off"


def pair_rows(blocks: BlockPlan) -> Pairs:
    """Neighbouring rows of ``blocks`` in pairs, the last one alone if their number is odd. Kept with the plan."""
    return with_part(blocks, "pairs", lambda: _pair_rows(blocks))


def _pair_rows(blocks: BlockPlan) -> Pairs:
    groups, n_q, n_k = blocks.shape
    reads = blocks.kinds() == FULL
    if n_q % 2:
        reads = torch.cat([reads, reads.new_zeros(groups, 1, n_k)], 1)
    first, second = reads[:, 0::2], reads[:, 1::2]
    listed = block_list(first | second, blocks.full.col.shape[0])
    who = torch.cat([(first.to(torch.uint8) | second.to(torch.uint8) << 1).flatten(), reads.new_zeros(1, dtype=torch.uint8)])
    plan = replace(blocks, q=_order(blocks.q), full=listed)
    return Pairs(plan, who[entry_places(listed, n_k)])


def _order(q: TokenOrder) -> TokenOrder:
    """The same places in blocks of twice the size, with a dead half behind them if their number is odd.

    Dead places may then stand between live ones of a block, which kernels do not mind on the side of the queries.
    """
    missing = q.blocks % 2 * q.block

    def longer(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_full((missing,), -1)]) if missing else x

    valid = torch.cat([q.valid, q.valid.new_zeros(1)]) if missing else q.valid
    frame = torch.cat([q.frame, q.frame.new_full((1,), -1)]) if missing else q.frame
    one = frame[0::2] == frame[1::2]
    return replace(
        q, block=2 * q.block, perm=longer(q.perm), pos=longer(q.pos), valid=valid[0::2] + valid[1::2],
        frame=torch.where(one, frame[0::2], -1).to(frame.dtype), grid_blocks=q.grid_blocks // 2,
    )  # fmt: skip
