"""AdaSpa: the model's own attention, measured at one or two steps, says which blocks are read afterwards.

The run starts dense. At a fifth of it the dense call also gives its log-sum-exp, and one more pass over q and k the mass of
every block; each row of query blocks keeps its heaviest key blocks. At three fifths the mass is measured again with the old
log-sum-exp, which drifts slowly, so that step is sparse already. Heads whose attention is concentrated give up blocks to
those whose attention is not. Needs no grid; with one, free tokens (text, references) are always read and read everything.

Source: AdaSpa, arXiv 2502.21079; ``specs``: AdaSpa (c). No code of the authors was known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..bits import pack
from ..blocks import BlockPlan, TokenOrder
from ..selection import topk_mask
from .base import Core, Moment, Pattern, Situation, Tokens
from .history import dense, memory, reached
from .search import Heads, Mask, chosen_from, recall, row_shares, search, token_order

FEW_STEPS = 10
"""Runs this short are searched once, at step 1."""
CONCENTRATED = 0.8
"""Heads that keep more than this share of their mass can do with fewer blocks."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a search leaves behind. searches: how many of the run were due by then. recall fp32 [b, H]: share of the attention
    the kept blocks hold at even budgets. lse [b, H, N]: for the next search, None after the last.
    """  # fmt: skip

    mask: Mask
    recall: Tensor
    lse: Tensor | None
    searches: int


@dataclass(frozen=True)
class AdaSpa(Pattern):
    """sparsity: share of blocks left out, in [0, 1). at: when to search, in parts of the run; dense until the first.

    adaptive: move blocks from concentrated heads to others, at the same total. lse: precision of the log-sum-exp kept for
    the next search.
    """

    name: ClassVar[str] = "adaspa"
    reads: ClassVar[Literal["geometry", "q and k", "history"]] = "history"
    needs_lse: ClassVar[bool] = True

    sparsity: float = 0.8
    at: tuple[float, ...] = (0.2, 0.6)
    adaptive: bool = True
    lse: Literal["fp32", "fp16"] = "fp32"

    def __post_init__(self) -> None:
        if not 0.0 <= self.sparsity < 1.0:
            raise ValueError(f"the sparsity of adaspa is {self.sparsity}; expected 0 (dense) or more and less than 1")
        if not self.at or list(self.at) != sorted(set(self.at)) or self.at[0] < 0.0 or self.at[-1] >= 1.0:
            raise ValueError(f"adaspa searches at {self.at}; expected ascending parts of the run, each at least 0 and less than 1")

    @property
    def label(self) -> str:
        return f"{self.name}_b{self.block}_s{self.sparsity:.2f}{'_adaptive' if self.adaptive else ''}"

    def run(self, s: Situation, core: Core) -> tuple[Tensor, Tensor | None]:
        state = memory(s)
        due = self.searches_due(s.moment)
        found: Found | None = state.get("found")
        if due == 0:
            return dense(s, core, "warm-up")
        if found is None:
            o, lse = core(s.q, s.k, s.v, s.plan, True)
            self.learn(s, lse)
            s.note = "dense: search"
            return o, (lse if s.lse else None)
        if found.searches < due:
            self.learn(s, found.lse)
            s.note = "sparse: search"
        return self.sparse(s, core, self.blocks(s))

    def search_steps(self, steps: int) -> tuple[float, ...]:
        """Step numbers of the searches; parts of the run where the number of steps is unknown (0)."""
        if steps == 0:
            return self.at
        return (1,) if steps <= FEW_STEPS else tuple(round(part * steps) for part in self.at)

    def searches_due(self, moment: Moment) -> int:
        """How many searches lie at or before ``moment``."""
        return sum(reached(moment, place) for place in self.search_steps(moment.steps))

    def blocks(self, s: Situation) -> BlockPlan:
        """What the last search found; without one, what a search of this very call finds."""
        if "found" not in s.state:
            self.learn(s, None)
        return s.state["found"].mask.plan(self.tail)

    def learn(self, s: Situation, lse: Tensor | None) -> None:
        """Search with q and k of this call and remember the mask. lse [b, H, N] of this or of an earlier call, or None."""
        order = token_order(s.tokens, self.block, str(s.q.device))
        counts = self.counts(chosen_from(order))
        words, even, *others = search(s, order, lse, lambda part: _choose(part, counts if self.adaptive else counts[:1]))
        if self.adaptive:
            level = head_levels(even)[:, :, None, None]
            words = torch.where(level > 0, others[0], torch.where(level < 0, others[1], words))
        due = self.searches_due(s.moment)
        last = due >= len(self.search_steps(s.moment.steps))
        kept = None if lse is None or last else lse.detach().to(torch.float16 if self.lse == "fp16" else torch.float32)
        capacity = _capacity(order, counts, s.q.shape[0], s.q.shape[1], self.adaptive)
        s.state["found"] = Found(Mask(words, order, order, capacity), even, kept, due)
        s.facts["recall"] = even.mean()

    def counts(self, blocks: int) -> tuple[int, int, int]:
        """Blocks kept per row, of ``blocks``: by most heads, by concentrated heads, by those that get what these give up.

        Concentrated heads keep half of what they had. Below a sparsity of 1/3 others cannot take that much: they become dense
        and the total stays.
        """
        moved = min((1 - self.sparsity) / 2, self.sparsity)
        return tuple(_count(self.sparsity + change, blocks) for change in (0.0, moved, -moved))  # type: ignore[return-value]


def _count(sparsity: float, blocks: int) -> int:
    # Half a block counts as one: Python's own rounding would send it to the even side.
    return max(1, int((1 - sparsity) * blocks + 0.5 + 1e-9))


def _choose(part: Heads, counts: tuple[int, ...]) -> tuple[Tensor, ...]:
    """(bits at the first count, recall at the first count, bits at the other counts ..): the mass is measured once for all."""
    shares = row_shares(part.mass())
    masks = [keep(shares, part.order, count) for count in counts]
    rows = chosen_from(part.order)
    return pack(masks[0]), recall(shares[:, :, :rows], masks[0][:, :, :rows]), *(pack(m) for m in masks[1:])


def keep(shares: Tensor, order: TokenOrder, count: int) -> Tensor:
    """bool [b, h, nQ, nK]: the ``count`` heaviest blocks of each row, the diagonal one among them, and all of the free tokens."""
    n, free = chosen_from(order), order.blocks - chosen_from(order)
    diagonal = torch.eye(n, dtype=torch.bool, device=shares.device)
    chosen = topk_mask(shares[..., :n, :n].masked_fill(diagonal, torch.inf), count)
    return torch.nn.functional.pad(chosen, (0, free, 0, free), value=True)


def head_levels(recalls: Tensor) -> Tensor:
    """int [b, H]: 1 for heads that get fewer blocks, -1 for as many that get more, 0 for the rest.

    The n heads with the best of ``recalls`` [b, H] give to the n with the worst; n is how many exceed 0.8, at most half.
    """
    heads = recalls.shape[-1]
    rank = recalls.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    n = (recalls > CONCENTRATED).sum(-1, keepdim=True).clamp(max=heads // 2)
    return (rank < n).int() - (rank >= heads - n).int()


def _capacity(order: TokenOrder, counts: tuple[int, int, int], batch: int, heads: int, adaptive: bool) -> int:
    """The most list entries there can be: n heads change by as many blocks up as n others down, but for rounding."""
    n = chosen_from(order)
    even, fewer, more = counts
    chosen = max(heads * even, heads // 2 * (fewer + more) + heads % 2 * even) if adaptive else heads * even
    return batch * (n * chosen + heads * (order.blocks**2 - n * n))


def recall_of(state: dict[Any, Any]) -> Tensor | None:
    """fp32 [b, H] on the device: recall found by the last search of a state, for the report; None before it."""
    found = state.get("found")
    return None if found is None else found.recall


def main() -> None:
    """Draw the mask of the first head, found by a search of a made-up call."""
    from .draw import draw_main

    draw_main(AdaSpa(block=64), Tokens(6 * 16 * 24 + 100, (6, 16, 24)))


if __name__ == "__main__":
    main()
