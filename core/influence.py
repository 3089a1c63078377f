"""How much a model's prediction depends on the attention it pays to chosen words.

The result of attention is a sum over keys, ``o[n] = sum_t P[n, t] v[t]``, so for any number S made from the prediction
``dS / dP[n, t] = <dS / do[n], v[t]>``. A term ``sum_t Z[n, t] v[t]`` with Z = 0 added to the result has the same derivative with
respect to Z. So no map is made, the forward pass keeps its values, and the graph begins at the first block that is read: neither
the latent nor the weights take part in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import Block
from .columns import Collector, head_columns

if TYPE_CHECKING:
    from .call import AttentionCall, Seen
    from .columns import Columns
    from .weave import Draft


@dataclass(frozen=True, eq=False)
class Influence:
    """What one block's attention to the groups is worth.

    grid (T, Y, X) of the picture's N tokens; share: attention probabilities P [B, H, G, N]; slope [K, B, H, G, N]: dS / dP for
    each of the K numbers S. fp32, or fp64 for fp64 models.
    """

    block: Block
    grid: tuple[int, int, int]
    share: Tensor
    slope: Tensor


class Taps(Collector):
    """Reads the probabilities of every block asked for, head by head, and lets a gradient reach them. For a pass of the positive
    prompt alone with autograd on; each group is one token.
    """

    def __init__(self, wanted: Columns, context: int) -> None:
        super().__init__(wanted, context)
        self._reads: list[tuple[Block, tuple[int, int, int], Tensor, Tensor]] = []

    def join(self, owner: str, call: AttentionCall, draft: Draft) -> None:
        """Ask to add to this call."""
        draft.tap(owner, lambda seen: self.nudge(call, seen))

    def nudge(self, call: AttentionCall, seen: Seen) -> Tensor:
        """Zeros [B, H, Nq, D] that depend on the probabilities as the result does."""
        with torch.no_grad():
            share, span = self.read(head_columns, call, seen)
        found = call.q.grid_span
        assert found is not None
        assert span.grid is not None
        probabilities = torch.zeros_like(share).requires_grad_(True)
        self._seen.add(call.block)
        self._reads.append((call.block, span.grid, share, probabilities))
        # the values may depend on earlier blocks' zeros; times zero that path is nothing, so it is not recorded
        term = torch.einsum("bhgn,bhgd->bhnd", probabilities.to(seen.v.dtype), self._values(call, seen.v.detach()))
        return F.pad(term, (0, 0, found[0], call.q.length - found[0] - span.length))

    def _values(self, call: AttentionCall, v: Tensor) -> Tensor:
        """[B, H, G, D]."""
        values = torch.einsum("gk,bhkd->bhgd", self._groups(call).to(v.dtype), v)
        return values.repeat_interleave(call.heads // v.shape[1], 1) if v.shape[1] != call.heads else values

    @property
    def empty(self) -> bool:
        """Whether no block was read."""
        return not self._reads

    def influences(self, numbers: Tensor, scale: float = 1.0) -> list[Influence]:
        """Differentiate. numbers [K], each a sum over samples that do not mix; scale: factor during the backward pass."""
        leaves = [leaf for *_, leaf in self._reads]
        slopes: list[list[Tensor]] = [[] for _ in leaves]
        for i, number in enumerate(numbers):
            found = torch.autograd.grad(number * scale, leaves, retain_graph=i + 1 < len(numbers), allow_unused=True)
            for slope, gradient, leaf in zip(slopes, found, leaves, strict=True):
                slope.append(torch.zeros_like(leaf) if gradient is None else gradient / scale)
        return [Influence(block, grid, share, torch.stack(slope)) for (block, grid, share, _), slope in zip(self._reads, slopes, strict=True)]
