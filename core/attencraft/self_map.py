"""Which places of the picture look at which: the mean self-attention map S of several layers, applied to vectors and never formed.

``S = mean over layers and heads of softmax(scale q k^T)``, picture to picture; in joint attention the text's share is left out and
nothing is made up for it. Scaling S by min and max over the whole map gives ``(S - s) / (max - s)`` with s its smallest entry, so

    (S - s 1 1^T) x  =  S x - s sum(x)

is all that its powers need: where a map is scaled to 0..1 afterwards, a positive factor plays no part. In self-attention the rows of S have the
sum 1, so a constant stays one and plays no part either: there ``S^n x`` itself will do, and x without its mean keeps the digits that
count. Memory grows with the tokens, not with their square.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..columns import columns
from ..errors import LoomError
from ..inspect.rows import probabilities

if TYPE_CHECKING:
    from ..call import AttentionCall, Seen

BUDGET = 2**26
"""Bytes of probabilities held at a time while the smallest entry is looked for."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One attention call on one picture. q [1, H, N, D]: of the picture's places; k [1, Hk, M, D]: of all keys, those of the picture from ``first`` on."""

    q: Tensor
    k: Tensor
    first: int
    scale: float | None

    @property
    def places(self) -> int:
        """Places of the picture."""
        return self.q.shape[2]

    @property
    def whole(self) -> bool:
        """Whether all the attention is on the picture."""
        return self.k.shape[2] == self.places

    def spread(self, x: Tensor) -> Tensor:
        """[G, N]: mean over heads of ``softmax(q k^T) x`` for x [G, N] over the picture's places."""
        whole = x.new_zeros(len(x), self.k.shape[2])
        whole[:, self.first : self.first + self.places] = x
        return columns(self.q, self.k, whole, scale=self.scale)[0]

    def rows(self, at: Tensor) -> Tensor:
        """[m, N]: the rows ``at`` of the map, mean over heads."""
        heads = self.q.shape[1]
        out = torch.zeros(len(at), self.places, device=self.q.device, dtype=torch.float64 if self.q.dtype == torch.float64 else torch.float32)
        for _, part, found in probabilities(self.q, self.k, at, scale=self.scale, budget=BUDGET):
            out[part] += found[0, :, :, self.first : self.first + self.places].sum(0)
        return out / heads


@dataclass(eq=False)
class SelfMap:
    """The mean map of the layers added. grid: (Y, X) of its places."""

    layers: list[Layer] = field(default_factory=list)
    grid: tuple[int, int] | None = None

    def add(self, call: AttentionCall, seen: Seen) -> None:
        """Keep one call's queries and keys. Raises LoomError for several pictures, and where layers have other sizes."""
        found = call.q.grid_span
        assert found is not None
        offset, span = found
        assert span.grid is not None
        if self.grid not in (None, span.grid[1:]):
            raise LoomError(f"the layers to read have maps of different sizes ({self.grid} and {span.grid[1:]} in {call.block}); choose the other detail.")
        if seen.mask is not None:
            raise LoomError(f"{call.block} masks its attention, so its map is not the model's own; take out the node that adds the mask.")
        self.grid = (span.grid[1], span.grid[2])
        self.layers.append(Layer(seen.q[:1, :, offset : offset + span.length].detach(), seen.k[:1].detach(), offset, seen.scale))

    def spread(self, x: Tensor) -> Tensor:
        """``S x`` for each of x [G, N]."""
        return torch.stack([layer.spread(x) for layer in self.layers]).mean(0)

    def floor(self) -> Tensor:
        """The smallest entry of S, read in stretches of rows."""
        places, heads = self.layers[0].places, self.layers[0].q.shape[1]
        step = max(1, BUDGET // (4 * heads * max(layer.k.shape[2] for layer in self.layers)))
        device = self.layers[0].q.device
        stretches = torch.arange(places, device=device).split(step)
        return torch.stack([torch.stack([layer.rows(at) for layer in self.layers]).mean(0).amin() for at in stretches]).amin()

    def power(self, x: Tensor, exponent: int) -> Tensor:
        """``(S - s)^exponent x`` for each of x [G, N], up to one positive factor and, where rows have the sum 1, one added constant."""
        whole = all(layer.whole for layer in self.layers)
        floor = None if whole else self.floor()
        for _ in range(exponent):
            x = self.spread(x - x.mean(-1, keepdim=True)) if floor is None else self.spread(x) - floor * x.sum(-1, keepdim=True)
            # only the shape of a map counts from here on, and powers of small numbers would leave the range of fp32
            x = x / x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        return x
