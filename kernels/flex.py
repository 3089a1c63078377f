"""PyTorch's FlexAttention as a backend, and block plans in its form.

On a GPU it is compiled, which takes tens of seconds for each new shape; the tables it needs are dense, so it is a second
choice. On a CPU it runs without a compiler, writes whole matrices of logits, has no gradient, and serves as a second opinion
in tests. Other kernels take the same lists (counts and int32 columns): see :func:`block_tables`.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .blocks import EMPTY, FULL, BlockPlan, TokenOrder
from .caching import with_part
from .flex_mods import distinct, has_dead_keys, mask_mod, placed, score_mod
from .plan import AttentionPlan

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from .backends import Call

MOST_EAGER_TOKENS = 8192
"""Beyond, the matrices of logits of the uncompiled form would exhaust memory."""
LABEL_BLOCK = 128
"""Blocks of plans that hold labels only."""
TILE = 64
"""Its own tiles exceed the shared memory of many GPUs."""

Tables = tuple[Tensor, Tensor, Tensor, Tensor]


def block_tables(plan: BlockPlan, whole: bool = True) -> Tables:
    """(counts, columns) of the blocks that need a look at single pairs, then of those read whole, in place order.

    counts int32 [B|1, H|1, nQ]; columns int32 [B|1, H|1, nQ, nK], listed ones first, ascending. Blocks with dead keys are
    among those looked at, and so are all with whole=False (some rule acts on every pair). Dense: 4 bytes for each block.
    """

    def make() -> Tables:
        kinds, heads = plan.kinds(), plan.head_map.long()
        full = (kinds == FULL) & whole
        if has_dead_keys(plan):
            full &= plan.k.valid == plan.k.block
        counts = [x.sum(-1, dtype=torch.int32)[heads] for x in ((kinds != EMPTY) & ~full, full)]
        columns = [_listed_first(x)[heads] for x in ((kinds != EMPTY) & ~full, full)]
        return counts[0], columns[0], counts[1], columns[1]

    return with_part(plan, ("flex tables", whole), make)


def _listed_first(mask: Tensor) -> Tensor:
    """int32 [G, nQ, nK]; one group at a time, since sorting takes eight bytes for each block."""
    return torch.stack([m.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices.to(torch.int32) for m in mask])


def block_mask(plan: AttentionPlan, batch: int, heads: int) -> BlockMask | None:
    """The labels and blocks of ``plan`` as a BlockMask over the places of its orders; None without blocks.

    Labels alone become one as well, with every block looked at.
    """
    from torch.nn.attention.flex_attention import BlockMask

    rule, blocks = mask_mod(plan, batch, heads), plan.blocks
    if rule is None:
        return None
    if isinstance(blocks, BlockPlan):
        tables, size, lengths = block_tables(blocks, whole=plan.labels is None), (blocks.q.block, blocks.k.block), (_places(blocks.q), _places(blocks.k))

        def make() -> BlockMask:
            return BlockMask.from_kv_blocks(*tables, BLOCK_SIZE=size, mask_mod=rule, seq_lengths=lengths)

        return make() if plan.labels is not None else with_part(blocks, ("flex mask", batch, heads), make)
    assert plan.labels is not None
    lengths = plan.labels.allow_q.shape[1], plan.labels.label_k.shape[1]
    # not create_block_mask: it would write out every pair to find the blocks
    n_q, n_k = (-(-n // LABEL_BLOCK) for n in lengths)
    columns = torch.arange(n_k, dtype=torch.int32, device=plan.labels.allow_q.device).expand(1, 1, n_q, n_k).contiguous()
    return BlockMask.from_kv_blocks(torch.full_like(columns[..., 0], n_k), columns, BLOCK_SIZE=LABEL_BLOCK, mask_mod=rule, seq_lengths=lengths)


def _places(order: TokenOrder) -> int:
    return order.tokens if order.identity else order.padded


def available(call: Call) -> str | None:
    """Why FlexAttention cannot run ``call``; None if it can."""
    if not present():
        return "this PyTorch has no FlexAttention"
    if call.q.device.type == "cpu":
        longest = max(call.q.shape[2], call.k.shape[2])
        if longest > MOST_EAGER_TOKENS:
            return f"on a CPU it would write out the logits of all pairs; {longest} tokens are more than {MOST_EAGER_TOKENS}"
        return None if call.explicit else "on a CPU it is slow and runs only when asked for by name"
    return "it is compiled with triton, which is not installed" if importlib.util.find_spec("triton") is None else None


def present() -> bool:
    """Whether this PyTorch has FlexAttention."""
    return importlib.util.find_spec("torch.nn.attention.flex_attention") is not None


def run(call: Call, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, careful: bool) -> tuple[Tensor, Tensor]:
    """(o [B,H,Nq,D], lse fp32 [B,H,Nq]) for the logit parts of ``plan``; careful: least shared memory."""
    blocks = plan.blocks if isinstance(plan.blocks, BlockPlan) else None
    mask, score = block_mask(plan, q.shape[0], q.shape[1]), score_mod(plan, q, k, call.scale)
    if blocks is not None:
        q, k, v = placed(q, blocks.q, 2), placed(k, blocks.k, 2), placed(v, blocks.k, 2)
    options = _options(blocks, careful) if q.device.type == "cuda" else None
    rules = {"score_mod": score, "block_mask": mask, "scale": call.scale, "enable_gqa": q.shape[1] != k.shape[1], "kernel_options": options}
    o, lse = _with_lse(_function(q.device.type == "cuda"), *distinct(q, k, v), **rules)
    if blocks is not None and not blocks.q.identity:
        back = blocks.q.inverse.long()
        o, lse = o.index_select(2, back), lse.index_select(2, back)
    o = o.to(q.dtype)
    return (o.transpose(1, 2).contiguous().transpose(1, 2) if call.tokens_first else o.contiguous()), lse.float()


def _with_lse(flex: Any, *tensors: Tensor, **rules: Any) -> tuple[Tensor, Tensor]:
    """(o, natural log-sum-exp), asked for as this version of PyTorch wants it."""
    from torch.nn.attention import flex_attention as module

    if not hasattr(module, "AuxRequest"):
        return flex(*tensors, return_lse=True, **rules)
    o, aux = flex(*tensors, return_aux=module.AuxRequest(lse=True), **rules)
    return o, aux.lse


def _options(blocks: BlockPlan | None, careful: bool) -> dict[str, Any]:
    """Launch settings: tiles that divide the blocks, few stages."""
    most = 32 if careful else TILE
    sizes = (most, most) if blocks is None else (min(most, blocks.q.block), min(most, blocks.k.block))
    return {"BLOCK_M": sizes[0], "BLOCK_N": sizes[1], "num_stages": 1 if careful else 2}


@lru_cache(2)
def _function(compiled: bool) -> Any:
    """FlexAttention, compiled once per process. Shapes are never dynamic: block masks of varying size fail or recompile."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
