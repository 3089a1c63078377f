"""What a head does, as numbers: statistics of the rows of its attention.

All are means over the rows (queries) given to :meth:`Sums.add`, so a few sampled rows estimate and all rows give the exact
value. With A the probabilities of one head, image keys on a grid (T, Y, X)::

    entropy        H_i = -sum_j A_ij ln A_ij, as H_i / ln(keys that may be read); perplexity e^H_i
    masses         sum of A_ij over the keys of a kind: image, text, reference, other; own token; first key of all
    offset map     R(dy, dx) = mean_i B_{i, i+(dy,dx)}, B: A over the image keys of the query's own frame, summing to 1
    ring profile   S(r) = sum of R over max(|dy|,|dx|) = r;  r = 0 is the query's own place
    distance       sum of R times the Euclidean offset, over the grid's diagonal; rms likewise
    frames         F(dt) = mean_i of A over the image keys dt frames later, as a share of the image mass

Source: Li et al., arXiv 2303.13731 (strength over distance, patterns of heads); adapted here to diffusion models: text keys,
frames, sampled rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..call import TokenLayout

MAP_SIDE = 32
"""Side of the maps that are kept of every head."""
TINY = 1e-12
KINDS = ("image", "text", "reference", "other")
Grid = tuple[int, int, int]


def key_kinds(layout: TokenLayout) -> dict[str, list[tuple[int, int]]]:
    """[lo, hi) ranges of the keys of each kind; the generated picture or video is "image"."""
    out: dict[str, list[tuple[int, int]]] = {}
    offset = 0
    for span in layout.spans:
        kind = "image" if span.kind == "video" else span.kind
        out.setdefault(kind, []).append((offset, offset + span.length))
        offset += span.length
    return out


def masses(a: Tensor, kinds: dict[str, list[tuple[int, int]]]) -> dict[str, Tensor]:
    """Mass of each kind of key: A [..., Nk] -> [...] per kind."""
    return {kind: sum((a[..., lo:hi].sum(-1) for lo, hi in ranges), torch.zeros_like(a[..., 0])) for kind, ranges in kinds.items()}


def entropy(a: Tensor) -> Tensor:
    """Row entropy in nats: A [..., Nk] -> [...]; a term with A = 0 is 0."""
    return torch.special.entr(a).sum(-1)


@dataclass(frozen=True, eq=False)
class HeadStats:
    """One call, all heads. Every tensor on the CPU, fp32, first axis H.

    scalars: name -> [H]. text_rows: masses of the text queries of a joint attention, kind -> [H]. rings [H, R] (S(r)); frames
    [H, 2T-1] (F(dt), dt from -(T-1)); per_frame [H, 2T-1]: F(dt) per key frame that exists at that offset. offsets, popular
    [H, 32, 32]: the offset map over (2Y-1, 2X-1) and the mean attention over (Y, X), each resized. words [H, W]: mass of each
    word in the image rows. None where a call has no such thing. grid: of the keys; rows: sampled; keys: in all.
    """

    grid: Grid | None
    rows: int
    keys: int
    scalars: dict[str, Tensor]
    text_rows: dict[str, Tensor] = field(default_factory=dict)
    rings: Tensor | None = None
    frames: Tensor | None = None
    per_frame: Tensor | None = None
    offsets: Tensor | None = None
    popular: Tensor | None = None
    words: Tensor | None = None


class Sums:
    """Running sums over rows of one call. heads: H; k: layout of the keys; own: the queries are tokens of the same grid.

    readable: number of keys that a mask leaves readable, for the largest possible entropy; default all.
    """

    def __init__(self, heads: int, k: TokenLayout, own: bool, device: torch.device, dtype: torch.dtype = torch.float32, readable: int | None = None) -> None:
        self.heads, self.k, self.kinds = heads, k, key_kinds(k)
        self.grid = k.grid if own else None
        self.offset = 0 if k.grid_span is None else k.grid_span[0]
        self.readable = k.length if readable is None else readable
        self.rows = torch.zeros(heads, dtype=dtype, device=device)
        self.scalar: dict[str, Tensor] = {}
        self.popular = torch.zeros(heads, k.length, dtype=dtype, device=device)
        if self.grid is not None:
            t, y, x = self.grid
            self.placed = torch.zeros(heads, dtype=dtype, device=device)
            self.offsets = torch.zeros(heads, 2 * y - 1, 2 * x - 1, dtype=dtype, device=device)
            self.frames = torch.zeros(heads, 2 * t - 1, dtype=dtype, device=device)
            self.pairs = torch.zeros(heads, 2 * t - 1, dtype=dtype, device=device)

    def add(self, heads: slice, positions: Tensor, a: Tensor) -> None:
        """More rows. a [B, h, m, Nk]: probabilities of the heads ``heads``; positions int64 [m]: of the queries in the grid."""
        n = a.shape[0] * a.shape[2]
        self.rows[heads] += n
        h = entropy(a)
        self._sum("entropy", heads, h / math.log(max(2, self.readable)))
        self._sum("perplexity", heads, h.exp())
        for kind, mass in masses(a, self.kinds).items():
            self._sum(f"{kind} mass", heads, mass)
        self._sum("first key", heads, a[..., 0])
        self.popular[heads] += a.sum((0, 2))
        if self.grid is not None:
            self._place(heads, positions, a)

    def _place(self, heads: slice, positions: Tensor, a: Tensor) -> None:
        if self.grid is None:
            return
        (t, y, x), m = self.grid, len(positions)
        image = a[..., self.offset : self.offset + t * y * x]
        whole = image.sum(-1, keepdim=True)
        own = positions.view(1, 1, m, 1).expand(*image.shape[:2], m, 1)
        self._sum("own token", heads, image.gather(-1, own)[..., 0])
        by_frame = (image / whole.clamp(min=TINY)).unflatten(-1, (t, y * x))  # [B, h, m, T, YX]
        frame, place = positions // (y * x), positions % (y * x)

        here = by_frame.gather(3, frame.view(1, 1, m, 1, 1).expand(*image.shape[:2], m, 1, y * x))[:, :, :, 0]
        local = here.sum(-1, keepdim=True)
        self.placed[heads] += (local > TINY).to(a.dtype).sum((0, 2, 3))
        _add_at(self.offsets[heads].view(-1, self.offsets[0].numel()), _offset_index(place, y, x), here / local.clamp(min=TINY))

        later = torch.arange(t, device=a.device) - frame[:, None] + t - 1
        _add_at(self.frames[heads], later, by_frame.sum(-1))
        _add_at(self.pairs[heads], later, (whole > TINY).to(a.dtype).expand(-1, -1, -1, t))
        if t > 1:
            same = by_frame.gather(4, place.view(1, 1, m, 1, 1).expand(*image.shape[:2], m, t, 1)).sum((3, 4))
            self._sum("same place, other frames", heads, same - by_frame.flatten(3).gather(-1, own)[..., 0])

    def _sum(self, name: str, heads: slice, values: Tensor) -> None:
        """values [B, h, m] are added up per head."""
        total = self.scalar.setdefault(name, torch.zeros_like(self.rows))
        total[heads] += values.sum((0, 2))

    def finish(self, text_rows: dict[str, Tensor] | None = None) -> HeadStats:
        """The means. text_rows: kind -> [H], handed through."""
        rows = self.rows.clamp(min=1)
        scalars = {name: total / rows for name, total in self.scalar.items()}
        scalars["top key"] = self.popular.amax(-1) / rows
        fields: dict[str, Tensor] = {}
        if self.grid is not None:
            t, y, x = self.grid
            offsets = self.offsets / self.placed.clamp(min=1)[:, None, None]
            scalars |= spatial(offsets)
            fields = {
                "rings": ring_profile(offsets),
                "offsets": resized(offsets),
                "popular": resized((self.popular[:, self.offset : self.offset + t * y * x] / rows[:, None]).unflatten(1, (t, y, x)).sum(1)),
            }
            if t > 1:
                fields["frames"] = self.frames / self.pairs[:, t - 1 : t].clamp(min=1)  # every row has its own frame
                fields["per_frame"] = self.frames / self.pairs.clamp(min=1)
                scalars["same frame"] = fields["frames"][:, t - 1]
        return HeadStats(
            grid=self.grid,
            rows=int(self.rows.max()) if self.heads else 0,
            keys=self.k.length,
            scalars={n: s.float().cpu() for n, s in scalars.items()},
            text_rows={n: s.float().cpu() for n, s in (text_rows or {}).items()},
            **{n: f.float().cpu() for n, f in fields.items()},
        )


def _offset_index(place: Tensor, y: int, x: int) -> Tensor:
    """int64 [m, YX]: where each key of the frame lies in the flat offset map of a query at ``place`` [m]."""
    keys = torch.arange(y * x, device=place.device)
    dy = keys // x - (place // x)[:, None] + y - 1
    dx = keys % x - (place % x)[:, None] + x - 1
    return dy * (2 * x - 1) + dx


def _add_at(total: Tensor, index: Tensor, values: Tensor) -> None:
    """``total[h, index[m, n]] += values[b, h, m, n]``, in place; total a view [h, cells]."""
    total.index_add_(1, index.flatten(), values.sum(0).flatten(1))


# --- what follows from the offset map ---------------------------------------------------------------------------------


def offset_axes(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """dy [2Y-1, 1] and dx [1, 2X-1] of an offset map [..., 2Y-1, 2X-1], in tokens."""
    y, x = (n // 2 for n in offsets.shape[-2:])
    dy = torch.arange(-y, y + 1, device=offsets.device, dtype=offsets.dtype)
    dx = torch.arange(-x, x + 1, device=offsets.device, dtype=offsets.dtype)
    return dy[:, None], dx[None, :]


def ring_profile(offsets: Tensor) -> Tensor:
    """S(r): offset map [H, 2Y-1, 2X-1] -> [H, max(Y, X)], the mass at Chebyshev distance r."""
    dy, dx = offset_axes(offsets)
    ring = torch.maximum(dy.abs(), dx.abs()).long().flatten()
    out = torch.zeros(offsets.shape[0], int(ring.max()) + 1, dtype=offsets.dtype, device=offsets.device)
    return out.index_add(1, ring, offsets.flatten(1))


def spatial(offsets: Tensor) -> dict[str, Tensor]:
    """Scalars of an offset map that sums to 1: [H, 2Y-1, 2X-1] -> name -> [H].

    distance, rms: over the grid's diagonal. row, column: mass in the query's own row or column over what an even spread has there.
    """
    y, x = ((n + 1) // 2 for n in offsets.shape[-2:])
    dy, dx = offset_axes(offsets)
    square = dy**2 + dx**2
    diagonal = max(1.0, math.hypot(y - 1, x - 1))
    return {
        "distance": (offsets * square.sqrt()).sum((1, 2)) / diagonal,
        "rms distance": (offsets * square).sum((1, 2)).sqrt() / diagonal,
        "own place": offsets[:, y - 1, x - 1],
        "row": offsets[:, y - 1].sum(-1) * y,
        "column": offsets[:, :, x - 1].sum(-1) * x,
    }


def resized(maps: Tensor, side: int = MAP_SIDE) -> Tensor:
    """[H, a, b] -> [H, side, side]: means over areas where the map is larger, repeated cells where it is smaller."""
    small = F.adaptive_avg_pool2d(maps[:, None], (min(maps.shape[1], side), min(maps.shape[2], side)))
    return F.interpolate(small, size=(side, side), mode="nearest-exact")[:, 0]


def mean_stats(parts: Iterable[HeadStats]) -> HeadStats:
    """Mean over calls of the same place (steps, prompts, windows). Calls with another grid or other keys than the first are left out."""
    parts = list(parts)
    first = parts[0]
    parts = [p for p in parts if (p.grid, sorted(p.scalars)) == (first.grid, sorted(first.scalars))]

    def mean(values: list[Tensor | None]) -> Tensor | None:
        known = [v for v in values if v is not None]
        return torch.stack(known).mean(0) if known else None

    return HeadStats(
        grid=first.grid,
        rows=sum(p.rows for p in parts),
        keys=first.keys,
        scalars={n: torch.stack([p.scalars[n] for p in parts]).mean(0) for n in first.scalars},
        text_rows={n: torch.stack([p.text_rows[n] for p in parts]).mean(0) for n in first.text_rows},
        rings=mean([p.rings for p in parts]),
        frames=mean([p.frames for p in parts]),
        per_frame=mean([p.per_frame for p in parts]),
        offsets=mean([p.offsets for p in parts]),
        popular=mean([p.popular for p in parts]),
        words=mean([p.words for p in parts]),
    )
