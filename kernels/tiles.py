"""Which tiles of the (query, key) plane need what: worked out once per plan, on the device, without waiting for it.

A tile of ``block_m`` queries by ``block_n`` keys is
    PLAIN    nothing to do: every pair admitted with factor 1
    UNIFORM  every pair admitted, one factor for all
    MIXED    look at each pair
    EMPTY    no pair admitted: never visited
``kernels/lists.py`` lists them in that order, so a kernel looks at pairs in a loop of its own. Memory is O(nQ nK + tokens).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .caching import with_part
from .plan import MASKED, DistanceTable, FrameTable, Labels

PLAIN, UNIFORM, MIXED, EMPTY = 0, 1, 2, 3
MOST_CLASSES = 16
"""Above this many factors uniform tiles are not looked for: they run as mixed, which is right and slower."""


def table_kinds(parts: tuple[FrameTable | DistanceTable | Labels, ...], block_m: int, block_n: int) -> Tensor:
    """uint8 [B|1, nQ, nK] of the parts given, at least one: the kinds of several combine by their maximum.

    The vectors of the parts are cut into blocks as they stand; tokens in another order are put into it first.

    >>> table_kinds((plan.modulation.frames,), 128, 64).shape
    torch.Size([1, 256, 512])
    """
    kinds = [_kinds_cached(p, block_m, block_n) for p in parts]
    total = kinds[0]
    for other in kinds[1:]:
        total = torch.maximum(total, other)
    return total


def _kinds_cached(part: FrameTable | DistanceTable | Labels, bm: int, bn: int) -> Tensor:
    def compute() -> Tensor:
        if isinstance(part, FrameTable):
            return frame_kinds(part, bm, bn)
        if isinstance(part, DistanceTable):
            return distance_kinds(part, bm, bn)
        return label_kinds(part, bm, bn)

    return with_part(part, ("kinds", bm, bn), compute)


def frame_kinds(t: FrameTable, block_m: int, block_n: int) -> Tensor:
    """uint8 [1, nQ, nK] from which frames occur in each tile. Exact for any order of ids. Products of 0/1 matrices only."""
    # Column 0 stands for tokens outside the grid: class 0 with everything.
    classes = torch.nn.functional.pad(t.classes, (1, 0, 1, 0), value=0)
    present_q = _presence(t.ids_q.long() + 1, classes.shape[0], block_m)
    present_k = _presence(t.ids_k.long() + 1, classes.shape[1], block_n)
    plain = ~_meets(present_q, classes != 0, present_k)
    empty = ~_meets(present_q, classes != MASKED, present_k)
    uniform = torch.zeros_like(plain)
    if t.factors.shape[0] <= MOST_CLASSES:
        for c in range(1, t.factors.shape[0]):
            uniform |= ~_meets(present_q, classes != c, present_k)
    return _kinds(plain, uniform, empty)[None]


def distance_kinds(t: DistanceTable, block_m: int, block_n: int) -> Tensor:
    """uint8 [1, nQ, nK] from the range of distances a tile can contain; a wider range than occurs only costs speed."""
    q_lo, q_hi, q_out = _position_range(t.pos_q, block_m)
    k_lo, k_hi, k_out = _position_range(t.pos_k, block_n)
    # Tiles without any token of the grid have lo > hi; they are plain whatever the distances say.
    outside = (q_lo > q_hi)[:, None] | (k_lo > k_hi)[None, :]
    last = t.classes.shape[0] - 1
    nearest = torch.maximum(q_lo[:, None] - k_hi[None, :], k_lo[None, :] - q_hi[:, None]).clamp(0, last)
    farthest = torch.maximum(q_hi[:, None] - k_lo[None, :], k_hi[None, :] - q_lo[:, None]).clamp(0, last)

    def none_in_range(hit: Tensor, start: Tensor) -> Tensor:
        before = torch.nn.functional.pad(hit.int().cumsum(0), (1, 0))
        return before[farthest + 1] <= before[start]

    changes = torch.nn.functional.pad(t.classes[1:] != t.classes[:-1], (1, 0), value=False)
    # Steps from class nearest to nearest+1, ..., farthest: none means one class throughout.
    same = none_in_range(changes, torch.minimum(nearest + 1, farthest + 1))
    exempt = q_out[:, None] | k_out[None, :]
    plain = none_in_range(t.classes != 0, nearest) | outside
    empty = none_in_range(t.classes != MASKED, nearest) & ~exempt & ~outside
    return _kinds(plain, same & ~exempt, empty)[None]


def label_kinds(t: Labels, block_m: int, block_n: int) -> Tensor:
    """uint8 [B|1, nQ, nK] from the labels present among the keys and the bits all, or any, of the queries have."""
    bits = torch.arange(t.count, device=t.allow_q.device)
    allowed = ((t.allow_q[..., None] >> bits) & 1).bool()  # [B|1, Nq, count]
    present = t.label_k.long()[..., None] == bits
    any_q, lacking_q = _tile_any(allowed, block_m), _tile_any(~allowed, block_m)
    any_k = _tile_any(present, block_n).float()
    reads = (any_q.float() @ any_k.transpose(-1, -2)) > 0
    refuses = (lacking_q.float() @ any_k.transpose(-1, -2)) > 0
    return _kinds(~refuses, torch.zeros_like(reads), ~reads)


def factor_map(parts: tuple[FrameTable | DistanceTable | Labels, ...], block_m: int, block_n: int) -> Tensor | None:
    """fp32 [nQ, nK]: the factor of each tile's first pair, which is that of all its pairs where the tile is uniform.

    None where no part has factors.
    """
    found = None
    for part in parts:
        if isinstance(part, Labels):
            continue
        frames = isinstance(part, FrameTable)
        q, k = (part.ids_q, part.ids_k) if isinstance(part, FrameTable) else (part.pos_q, part.pos_k)
        i, j = q[::block_m].long()[:, None], k[::block_n].long()[None, :]
        inside = (i >= 0) & (j >= 0)
        if frames:  # ids beyond the table are read from its edge, as the kernel reads them
            i, j = i.clamp(0, part.classes.shape[0] - 1), j.clamp(0, part.classes.shape[1] - 1)
        classes = part.classes[i, j] if frames else part.classes[(i - j).abs().clamp(max=part.classes.shape[0] - 1)]
        factor = part.factors.float()[classes.masked_fill(~inside | (classes == MASKED), 0).long()]
        found = factor if found is None else found * factor
    return found


def _kinds(plain: Tensor, uniform: Tensor, empty: Tensor) -> Tensor:
    kinds = torch.full_like(plain, MIXED, dtype=torch.uint8)
    kinds.masked_fill_(uniform, UNIFORM).masked_fill_(plain, PLAIN).masked_fill_(empty, EMPTY)
    return kinds


def _presence(ids: Tensor, size: int, block: int) -> Tensor:
    """fp32 0/1 [tiles, size]: does id occur in the tile."""
    tiles = -(-ids.shape[0] // block)
    flat = torch.arange(ids.shape[0], device=ids.device) // block * size + ids.clamp(0, size - 1)
    return torch.zeros(tiles * size, device=ids.device).scatter_(0, flat, 1.0).view(tiles, size)


def _meets(a: Tensor, relation: Tensor, b: Tensor) -> Tensor:
    """bool [nQ, nK]: some id of tile i is related to some id of tile j."""
    reached = ((a @ relation.float()) > 0).float()
    return (reached @ b.transpose(0, 1)) > 0


def _position_range(pos: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Smallest and largest position in the grid per tile, and whether a token outside of it occurs."""
    far = torch.iinfo(torch.int32).max // 4
    tiles = -(-pos.shape[0] // block)
    padding = tiles * block - pos.shape[0]
    pos, out = pos.long(), pos < 0
    lo = torch.nn.functional.pad(pos.masked_fill(out, far), (0, padding), value=far).view(tiles, block).amin(-1)
    hi = torch.nn.functional.pad(pos.masked_fill(out, -far), (0, padding), value=-far).view(tiles, block).amax(-1)
    return lo, hi, torch.nn.functional.pad(out, (0, padding)).view(tiles, block).any(-1)


def _tile_any(x: Tensor, block: int) -> Tensor:
    """bool [B|1, tiles, count] from bool [B|1, N, count]."""
    tiles = -(-x.shape[1] // block)
    return torch.nn.functional.pad(x, (0, 0, 0, tiles * block - x.shape[1])).view(x.shape[0], tiles, block, -1).any(2)
