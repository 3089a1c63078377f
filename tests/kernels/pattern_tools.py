"""What the tests of all patterns share: a call, what a plan reads token by token, and "chunked equals the reference"."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from attention_loom.kernels import AttentionPlan, BlockPlan, attend, reference_attend
from attention_loom.kernels.patterns.base import Moment, Pattern, Situation, Tokens
from attention_loom.kernels.patterns.draw import situation
from attention_loom.kernels.sparse import Sparse
from kernel_cases import assert_close
from torch import Tensor

VIDEO = Tokens(4 * 6 * 9 + 21, (4, 6, 9), 0)
"""54 tokens a frame: no block size divides it. Text behind."""
TEXT_FIRST = Tokens(13 + 3 * 5 * 7, (3, 5, 7), 13)
PICTURE = Tokens(10 + 12 * 11 + 5, (1, 12, 11), 10)
NO_GRID = Tokens(150)


def call(tokens: Tokens, *, key_heads: int = 0, **shape: Any) -> Situation:
    s = situation(tokens, **shape)
    return replace(s, k=s.k[:, :key_heads], v=s.v[:, :key_heads]) if key_heads else s


def listed(plan: BlockPlan, group: int = 0) -> list[set[int]]:
    """Columns of each row, full and partial, straight from the lists."""
    rows: list[set[int]] = [set() for _ in range(plan.q.blocks)]
    for lists in (plan.full, plan.partial):
        if lists is not None:
            ptr = lists.ptr[group].tolist()
            for a in range(plan.q.blocks):
                columns = lists.col[ptr[a] : ptr[a + 1]].tolist()
                assert not rows[a] & set(columns), "a block is in both lists"
                rows[a] |= set(columns)
    return rows


def counted_density(plan: BlockPlan) -> float:
    """Pairs of live tokens in listed blocks over all pairs, counted one block at a time."""
    live_q, live_k = ([int((side.perm[b * side.block : (b + 1) * side.block] >= 0).sum()) for b in range(side.blocks)] for side in (plan.q, plan.k))
    groups = [sum(live_q[a] * live_k[b] for a, row in enumerate(listed(plan, g)) for b in row) for g in range(plan.groups)]
    heads = plan.head_map.flatten().tolist()
    return sum(groups[g] for g in heads) / len(heads) / (plan.q.tokens * plan.k.tokens)


def nnz(plan: BlockPlan) -> int:
    """List entries of the first group, full and partial."""
    return sum(len(row) for row in listed(plan))


def run(pattern: Pattern, s: Situation, parts: tuple[int, ...] = (), backend: str = "chunked", lse: bool = False) -> Any:
    """The whole way of a call: the pattern bound to it, one conditioning of ``parts`` rows after the other."""
    rows = parts or (s.q.shape[0],)
    bound = Sparse(pattern, s.tokens, s.moment, tuple((n, {}) for n in rows))
    return attend(s.q, s.k, s.v, AttentionPlan(blocks=bound), backend=backend, return_lse=lse)


def assert_runs_like_reference(pattern: Pattern, tokens: Tokens, **shape: Any) -> None:
    """chunked, and masked SDPA, compute what the reference computes with the same plan."""
    s = call(tokens, **shape)
    o, lse = run(pattern, s, lse=True)
    want, want_lse = reference_attend(s.q, s.k, s.v, AttentionPlan(blocks=pattern.blocks(s)), return_lse=True)
    assert_close("o", o, want, 3e-6)
    assert torch.allclose(lse.double(), want_lse, atol=2e-5)
    if pattern.tail == "off":
        assert_close("o by sdpa", run(pattern, s, backend="sdpa"), want, 3e-6)


def assert_batch_does_not_matter(pattern: Pattern, tokens: Tokens) -> None:
    """Two conditionings in one call, or one after the other: the same bits."""
    both = call(tokens, batch=2)
    together = run(pattern, both, parts=(1, 1))
    for b in range(2):
        alone = Situation(tokens, Moment(), both.q[b : b + 1], both.k[b : b + 1], both.v[b : b + 1], AttentionPlan(), both.scale, False)
        assert torch.equal(together[b : b + 1], run(pattern, alone))


def masked_attention(s: Situation, mask: Tensor) -> Tensor:
    """fp64 softmax over the pairs of a literal token mask [N, N]."""
    logits = (s.scale * s.q.double() @ s.k.double().transpose(-1, -2)).masked_fill(~mask, -torch.inf)
    return torch.softmax(logits, -1) @ s.v.double()
