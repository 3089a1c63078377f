"""SparseD: one search after a dense start; conditioning and generated tokens keep budgets of their own.

Steps 0 to e are dense, e = floor(skip * steps) + 1; the dense step e is searched and its mask used from e + 1 to the end.
Keys fall in two groups: G, the tokens on the grid, and C, the others (text, references, context). Each row of query blocks
keeps a share of both, so references are never squeezed out by a long video, nor the video by text that absorbs attention:
blocks of G are ranked by probabilities renormalised, query by query, over G alone.

Written for diffusion language models; the mapping to pictures and video is ours. Source: SparseD, arXiv 2509.24014;
``specs``: SparseD (c), written from the text only. Logits are divided by sqrt(D), as in attention itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..bits import pack
from ..blocks import BlockPlan, TokenOrder
from ..selection import topk_mask
from .base import Core, Pattern, Situation, Tokens
from .history import NEAR, dense, memory, position, reached
from .search import Heads, Mask, chosen_from, overlap, search, token_order

METER = 0.6
"""Part of the run at which the mask is compared with a fresh one, if wanted."""


@dataclass(frozen=True)
class SparseD(Pattern):
    """keep: part of the blocks each row keeps, in (0, 1]. skip: part of the run that is dense.

    context: "separate" keeps the share of C among C; "joint-top" takes the share of all blocks and keeps those that lie in C
    (so C may get fewer), as the authors' code is described to do. keep_context: up to so many tokens outside of the grid are
    read whole and read everything. meter: compare the mask once, late in the run, with a fresh one (:func:`agreement_of`).
    """

    name: ClassVar[str] = "sparsed"
    reads: ClassVar[Literal["geometry", "q and k", "history"]] = "history"
    needs_lse: ClassVar[bool] = True

    keep: float = 0.25
    skip: float = 0.2
    context: Literal["separate", "joint-top"] = "separate"
    keep_context: int = 1024
    meter: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.keep <= 1.0:
            raise ValueError(f"sparsed keeps {self.keep} of the blocks; expected a number above 0 and at most 1")
        if not 0.0 <= self.skip < 1.0:
            raise ValueError(f"sparsed skips {self.skip} of the run; expected a number from 0 to below 1")
        if self.context not in ("separate", "joint-top"):
            raise ValueError(f"context of sparsed is {self.context!r}; expected 'separate' or 'joint-top'")

    @property
    def label(self) -> str:
        return f"{self.name}_b{self.block}_k{self.keep:.2f}{'' if self.context == 'separate' else '_joint'}"

    def run(self, s: Situation, core: Core) -> tuple[Tensor, Tensor | None]:
        state = memory(s)
        last_dense = self.search_step(s.moment.steps)
        if not reached(s.moment, last_dense):
            return dense(s, core, "warm-up")
        if "found" not in state:
            o, lse = core(s.q, s.k, s.v, s.plan, True)
            self.learn(s, lse)
            s.note = "dense: search"
            return o, (lse if s.lse else None)
        if s.moment.steps and position(s.moment) <= last_dense + NEAR:
            return dense(s, core, "warm-up")  # the sampler asks again at the step of the search
        if self.meter and "agreement" not in state and s.moment.progress >= METER:
            s.facts["overlap"] = state["agreement"] = overlap(state["found"].bools(), self._find(s, None).bools())
        return self.sparse(s, core, self.blocks(s))

    def search_step(self, steps: int) -> float:
        """The last dense step, e, 0-based; a part of the run where the number of steps is unknown (0)."""
        return math.floor(steps * self.skip + 1e-9) + 1 if steps else self.skip

    def blocks(self, s: Situation) -> BlockPlan:
        """What the search found; without one, what a search of this very call finds."""
        if "found" not in s.state:
            self.learn(s, None)
        return s.state["found"].plan(self.tail)

    def learn(self, s: Situation, lse: Tensor | None) -> None:
        """Search with q and k of this call and remember the mask. lse [b, H, N] of this call, or None."""
        s.state["found"] = self._find(s, lse)

    def _find(self, s: Situation, lse: Tensor | None) -> Mask:
        order = token_order(s.tokens, self.block, str(s.q.device))
        whole = s.tokens.free <= self.keep_context
        (words,) = search(s, order, lse, lambda part: (pack(self._choose(part, whole)),))
        return Mask(words, order, order, s.q.shape[0] * s.q.shape[1] * self._row_budget(order, whole))

    def _choose(self, part: Heads, whole: bool) -> Tensor:
        """bool [b, h, nQ, nK]. whole: all of C is read and reads everything."""
        order = part.order
        g = chosen_from(order)
        if g == order.blocks:
            return topk_mask(_importance(part.mass(), order), kept(self.keep, g))
        own = _importance(part.mass((0, g)), order)[..., :g]
        if whole:
            chosen = topk_mask(own[:, :, :g], kept(self.keep, g))
            return torch.nn.functional.pad(chosen, (0, order.blocks - g, 0, order.blocks - g), value=True)
        all_keys = _importance(part.mass(), order)
        n_c = order.blocks - g
        joint = self.context == "joint-top"
        of_c = topk_mask(all_keys, kept(self.keep, order.blocks))[..., g:] if joint else topk_mask(all_keys[..., g:], kept(self.keep, n_c))
        return torch.cat([topk_mask(own, kept(self.keep, g)), of_c], -1)

    def _row_budget(self, order: TokenOrder, whole: bool) -> int:
        """The most blocks one head can keep."""
        n, g = order.blocks, chosen_from(order)
        if whole:
            return g * kept(self.keep, g) + n * n - g * g
        of_c = kept(self.keep, n if self.context == "joint-top" else n - g)
        return n * (kept(self.keep, g) + min(n - g, of_c))


def kept(share: float, blocks: int) -> int:
    """How many of ``blocks`` a row keeps: floor(share * blocks) + 1, at most all."""
    return min(blocks, math.floor(share * blocks + 1e-9) + 1)


def _importance(mass: Tensor, order: TokenOrder) -> Tensor:
    """Mean probability of a block's pairs instead of the sum: a block that is not full is not the less important for it."""
    return mass / order.valid.clamp(min=1)


def agreement_of(state: dict) -> Tensor | None:
    """fp32 scalar on the device: overlap (Jaccard) of the mask in use with a fresh one; None if not metered.

    Below 0.7 attention has moved on and two searches (AdaSpa) are the better choice.
    """
    return state.get("agreement")


def main() -> None:
    """Draw the mask of one head for a picture with a long reference, found by a search of a made-up call."""
    from .draw import draw_main

    draw_main(SparseD(block=64), Tokens(48 * 64 + 1536, (1, 48, 64)))


if __name__ == "__main__":
    main()
