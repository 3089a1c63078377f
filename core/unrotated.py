"""Keys as a model makes them, before its rotary embedding: comparable between places and frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..kernels.stages import rotate

if TYPE_CHECKING:
    from .call import AttentionCall
    from .families.base import RopeAxis


def spectrum(axis: RopeAxis, pairs: int) -> Tensor:
    """fp64 [H|1, pairs]: radians per latent frame of every channel pair, 0 where time does not turn it."""
    found = torch.cat([axis.per_frame.double(), axis.per_frame.new_zeros(1).double()])
    return found[axis.pair_of[:, :pairs]]  # -1 picks the zero at the end


def unrotated(call: AttentionCall, k: Tensor) -> Tensor:
    """Keys [B, H, N, D] of the grid's tokens, turned back to the first frame's first token (up to what is the same for all).

    N is the grid's. Axes the family does not know stay as they are; keys of models without rotary axes come back untouched.
    """
    grid = call.q.grid
    if grid is None or (call.rope is None and call.plane is None):
        return k
    pairs, freqs, places = k.shape[-1] // 2, [], []
    rows = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid)).view(-1, 3)
    pairing = "interleaved"
    if call.rope is not None:
        axis: RopeAxis = call.rope  # type: ignore[assignment]
        freqs.append(spectrum(axis, pairs)[None])
        places.append(axis.times(grid[0]).double()[rows[:, 0].long()])
        pairing = axis.pairing
    if call.plane is not None:
        freqs += list(call.plane.freqs.double().split(1))  # type: ignore[attr-defined]
        places += [rows[:, 1], rows[:, 2]]
        pairing = call.plane.pairing  # type: ignore[attr-defined]
    heads = max(f.shape[1] for f in freqs)
    turns = torch.cat([f.expand(-1, heads, -1) for f in freqs])
    return rotate(k, -torch.stack(places, 1).to(k.device), turns.to(k.device), pairing)
