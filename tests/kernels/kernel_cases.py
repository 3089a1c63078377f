"""The one case table of the kernels: awkward shapes times plan parts, and how close is close enough."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from attention_loom.kernels import (
    MASKED,
    Aside,
    AttentionPlan,
    Band,
    DistanceTable,
    ExtraKV,
    Frames,
    FrameTable,
    HeadMix,
    Labels,
    Modulation,
    Rotation,
    RowAffine,
    RowEdit,
    Window,
)
from block_cases import empty_rows, packed, sparse
from torch import Tensor

DEVICE = "cuda" if os.environ.get("LOOM_GPU") == "1" else "cpu"

# Relative RMS of the output, absolute error of the log-sum-exp. bf16 leaves room for the interpreter's truncating store.
TOLERANCE = {torch.float32: (3e-6, 2e-5), torch.float16: (8e-4, 1e-3), torch.bfloat16: (8e-3, 1e-3)}
# A rotation rounds q and k to their own type once more.
ROTATED = {torch.float32: (5e-6, 5e-5), torch.float16: (2e-3, 1e-2), torch.bfloat16: (1.5e-2, 6e-2)}


@dataclass(frozen=True)
class Shape:
    batch: int = 1
    heads: int = 2
    key_heads: int = 0  # 0: as many as heads
    n_q: int = 127
    n_k: int = 0  # 0: as many as n_q
    width: int = 64

    @property
    def keys(self) -> int:
        return self.n_k or self.n_q

    @property
    def kv_heads(self) -> int:
        return self.key_heads or self.heads


def tensors(s: Shape, dtype=torch.float32, layout: str = "bhnd", seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v with N(0,1) entries; layout "bnhd" gives views of [B,N,H*D] projections, "wide" a slice of a fused one."""
    g = torch.Generator().manual_seed(seed)

    def one(heads: int, n: int) -> Tensor:
        if layout == "bhnd":
            return torch.randn(s.batch, heads, n, s.width, generator=g).to(dtype).to(DEVICE)
        if layout == "bnhd":
            flat = torch.randn(s.batch, n, heads * s.width, generator=g).to(dtype).to(DEVICE)
            return flat.view(s.batch, n, heads, s.width).transpose(1, 2)
        fused = torch.randn(s.batch, n, 3, heads, s.width, generator=g).to(dtype).to(DEVICE)
        return fused[:, :, 1].transpose(1, 2)

    return one(s.heads, s.n_q), one(s.kv_heads, s.keys), one(s.kv_heads, s.keys)


def _g(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 + seed)


def frame_table(s: Shape, *, per_frame: int = 24, text: int = 0, text_first: bool = False, masked: bool = False, factors=None):
    """Video of ``per_frame`` tokens a frame, window of one frame on each side, and ``text`` exempt tokens at one end."""

    def ids(n: int) -> Tensor:
        video = torch.arange(max(n - text, 0)) // per_frame
        outside = torch.full((n - len(video),), -1)
        return torch.cat([outside, video] if text_first else [video, outside]).to(torch.int16).to(DEVICE)

    ids_q, ids_k = ids(s.n_q), ids(s.keys)
    n_f, m_f = int(ids_q.max()) + 1, int(ids_k.max()) + 1
    apart = (torch.arange(n_f)[:, None] - torch.arange(m_f)[None, :]).abs()
    classes = torch.where(apart <= 1, 0, torch.where(apart == 3, 2, 1)).to(torch.uint8)
    if masked:
        classes[0, 2:] = MASKED
    return FrameTable(ids_q, ids_k, classes.to(DEVICE), torch.tensor(factors or [1.0, 0.9, 0.6]).to(DEVICE))


def distance_table(s: Shape, *, window: int = 40, outside: int = 0, masked: bool = False) -> DistanceTable:
    def pos(n: int) -> Tensor:
        x = torch.arange(n, dtype=torch.int32)
        x[n - outside :] = -1
        return x.to(DEVICE)

    d = torch.arange(max(s.n_q, s.keys))
    classes = torch.where(d <= window, 0, torch.where((d - 90).abs() <= 6, 2, 1)).to(torch.uint8)
    if masked:
        classes[100:] = MASKED
    return DistanceTable(pos(s.n_q), pos(s.keys), classes.to(DEVICE), torch.tensor([1.0, 0.9, 0.6]).to(DEVICE))


def key_bias(s: Shape, *, batch: int = 1, heads: int = 1, gone: float = 0.1) -> Tensor:
    g = _g(1)
    bias = torch.randn(batch, heads, s.keys, generator=g)
    return bias.masked_fill(torch.rand(bias.shape, generator=g) < gone, -math.inf).to(DEVICE)


def labels(s: Shape, *, batch: int = 1, count: int = 3, empty_rows: bool = False, shared: bool = False) -> Labels:
    """Keys in ``count`` runs; each run of queries reads its own label and label 0, rows with no bit read nothing."""
    label_k = (torch.arange(s.keys) * count // s.keys).to(torch.int8).expand(batch, -1).clone()
    own = torch.arange(s.n_q) * count // s.n_q
    allow = (1 << own) | (1 if not shared else (1 << count) - 1)
    allow = allow.expand(batch, -1).clone()
    if empty_rows:
        allow[:, 5:70] = 0
    return Labels(label_k.to(DEVICE), allow.to(DEVICE), count)


def rotation(s: Shape, *, pairing: str = "interleaved", per_head: bool = False) -> Rotation:
    g = _g(2)
    freqs = torch.rand(2, s.heads if per_head else 1, s.width // 2, generator=g)
    dq, dk = (torch.randint(-4, 5, (n, 2), generator=g).float() for n in (s.n_q, s.keys))
    return Rotation(dq.to(DEVICE), dk.to(DEVICE), freqs.to(DEVICE), pairing)


def segment(s: Shape, dtype, *, length: int = 9, batch: int = 1, bias: bool = True, rows: bool = False) -> ExtraKV:
    g = _g(3 + length)
    k, v = (torch.randn(batch, s.kv_heads, length, s.width, generator=g).to(dtype).to(DEVICE) for _ in range(2))
    b = torch.randn(batch, s.heads, length, generator=g).to(DEVICE) if bias else None
    return ExtraKV(k, v, b, (torch.arange(s.n_q) % 3 == 0).to(DEVICE) if rows else None)


def mixes(s: Shape, target: str, *, rows: bool = False, listed: int = 0) -> HeadMix:
    """listed: so many keys at the front, for target "own"; the rows behind them are then mixed."""
    amount = torch.linspace(0, 1, s.heads) if s.heads > 1 else torch.tensor([0.4])
    chosen = torch.arange(s.n_q) >= listed if listed else torch.arange(s.n_q) % 2 == 0
    return HeadMix(amount.to(DEVICE), target, chosen.to(DEVICE) if rows or listed else None, torch.arange(listed).to(DEVICE) if listed else None)


def affine(s: Shape, dtype=torch.float32, *, batch: int = 0, heads: int = 0, layout: str = "bhnd") -> RowAffine:
    """Factors in [0, 1] and a residual of the size of the values; batch, heads: 1 to share it, 0 for one of their own."""
    g, (b, h) = _g(5), (batch or s.batch, heads or s.heads)
    scale, residual = torch.rand(b, h, s.n_q, generator=g), torch.randn(b, h, s.n_q, s.width, generator=g).to(dtype)
    if layout == "bnhd":
        residual = residual.transpose(1, 2).contiguous().transpose(1, 2)
    return RowAffine(scale.to(DEVICE), residual.to(DEVICE))


def asides(s: Shape, dtype, *, batch: int = 1) -> tuple[Aside, ...]:
    """Two on overlapping rows: one element blended with its own result, then elements against the last one's, beyond weight 1."""
    g, last = _g(6), s.batch - 1

    def kv(n: int, length: int) -> tuple[Tensor, Tensor]:
        return tuple(torch.randn(n, s.kv_heads, length, s.width, generator=g).to(dtype).to(DEVICE) for _ in range(2))  # type: ignore[return-value]

    everyone = tuple(range(s.batch))
    blend = Aside(*kv(1, 7), torch.arange(3, 20).to(DEVICE), torch.rand(17, generator=g).to(DEVICE), (0,), (0,))
    against = Aside(*kv(batch, 11), torch.tensor([18, 4, 9]).to(DEVICE), torch.tensor([2.5, -1.0, 0.0]).to(DEVICE), everyone, (last,) * s.batch)
    return blend, against


def edits(s: Shape, dtype) -> tuple[RowEdit, ...]:
    g = _g(4)
    values = torch.randn(1, s.heads, 4, s.width, generator=g).to(dtype).to(DEVICE)
    first, second = torch.tensor([1, 3, 5, 7]).to(DEVICE), torch.tensor([2, 4, 6]).to(DEVICE)
    return (RowEdit(first, 0.25, values=values), RowEdit(second, 1.0, copy_from=torch.tensor([1, 9, 4]).to(DEVICE)))


Build = Callable[[Shape, torch.dtype], AttentionPlan]


@dataclass(frozen=True)
class Case:
    id: str
    build: Build
    shape: Shape = field(default_factory=Shape)
    dtype: torch.dtype = torch.float32
    layout: str = "bhnd"


def _mod(**parts) -> AttentionPlan:
    return AttentionPlan(modulation=Modulation(**parts))


def ultravico(s: Shape, dtype=None, **table) -> AttentionPlan:
    """The method the modulation was made for: positive logits only, centred keys."""
    return _mod(frames=frame_table(s, **table), positive_only=True, center_keys=True)


def everything(s: Shape, dtype) -> AttentionPlan:
    return AttentionPlan(
        rotation=rotation(s),
        modulation=Modulation(frames=frame_table(s, text=20, masked=True), distance=distance_table(s), positive_only=True, center_keys=True),
        key_bias=key_bias(s),
        labels=labels(s, count=2),
        extra_kv=(segment(s, dtype), segment(s, dtype, length=33, bias=False, rows=True)),
        row_affine=affine(s, dtype),
        head_mix=(mixes(s, "identity", rows=True),),
        row_edits=edits(s, dtype),
    )


def blocks(s: Shape, more: AttentionPlan = AttentionPlan(), **how) -> AttentionPlan:  # noqa: B008
    """A plan that reads random blocks, and the parts of ``more``."""
    return replace(more, blocks=sparse(s, DEVICE, **how))


def block_everything(s: Shape, dtype) -> AttentionPlan:
    whole = everything(s, dtype)
    rules = Modulation(frames=frame_table(s, masked=True, factors=[1.0, -0.5, 0.6]), distance=distance_table(s), positive_only=True, center_keys=True)
    more = replace(whole, modulation=rules, labels=labels(s, batch=s.batch, count=2), extra_kv=(*whole.extra_kv, segment(s, dtype, length=5)))
    return blocks(s, more, order="frame", groups=2, test=Window(2.6), density=0.8)


half, bf16 = torch.float16, torch.bfloat16
VIDEO = Shape(n_q=118)  # a grid of 105 tokens, 4 free ones before it and 9 behind
CASES = [
    # stock attention: shapes, widths, layouts, types
    *(Case(f"stock-n{n}", lambda s, t: AttentionPlan(), Shape(n_q=n)) for n in (1, 63, 65, 200)),
    *(Case(f"stock-d{d}", lambda s, t: AttentionPlan(), Shape(width=d)) for d in (40, 72, 80, 128, 160)),
    Case("stock-gqa", lambda s, t: AttentionPlan(), Shape(batch=2, heads=4, key_heads=2, n_q=65, n_k=127)),
    Case("stock-cross", lambda s, t: AttentionPlan(), Shape(heads=1, n_q=200, n_k=63)),
    Case("stock-projection", lambda s, t: AttentionPlan(), Shape(batch=2, heads=3, width=40), layout="bnhd"),
    Case("stock-fused", lambda s, t: AttentionPlan(), Shape(heads=3), layout="wide"),
    Case("stock-fp16", lambda s, t: AttentionPlan(), Shape(width=128), half),
    Case("stock-bf16", lambda s, t: AttentionPlan(), Shape(width=128), bf16),
    # frame tables
    Case("frames-ultravico", ultravico, Shape(n_q=200)),
    Case("frames-ultravico-fp16", ultravico, Shape(n_q=200), half),
    Case("frames-ultravico-bf16", ultravico, Shape(n_q=200), bf16, "bnhd"),
    Case("frames-text", lambda s, t: ultravico(s, text=30), Shape(batch=2, n_q=200, width=40)),
    Case("frames-text-first", lambda s, t: ultravico(s, text=70, text_first=True), Shape(n_q=200)),
    Case("frames-masked", lambda s, t: ultravico(s, masked=True), Shape(n_q=200)),
    Case("frames-whole-tiles", lambda s, t: ultravico(s, per_frame=64, masked=True), Shape(heads=1, n_q=320)),
    Case("frames-all-logits", lambda s, t: _mod(frames=frame_table(s), center_keys=True), Shape(heads=4, key_heads=1)),
    Case("frames-not-centred", lambda s, t: _mod(frames=frame_table(s), positive_only=True), Shape(n_q=127, n_k=200)),
    Case("frames-negative-factor", lambda s, t: _mod(frames=frame_table(s, factors=[1.0, -0.5, 1.7])), Shape()),
    Case("frames-scale", lambda s, t: _mod(frames=frame_table(s), scale=torch.tensor([1.1, 0.8]).to(DEVICE), center_keys=True)),
    Case("scale-only", lambda s, t: _mod(scale=torch.tensor([1.1, 0.8]).to(DEVICE), center_keys=True)),
    # token distance
    Case("distance", lambda s, t: _mod(distance=distance_table(s), positive_only=True, center_keys=True), Shape(n_q=200)),
    Case("distance-outside", lambda s, t: _mod(distance=distance_table(s, outside=30), positive_only=True), Shape(n_q=200)),
    Case("distance-masked", lambda s, t: _mod(distance=distance_table(s, masked=True)), Shape(n_q=65, n_k=200)),
    Case("distance-whole-tiles", lambda s, t: _mod(distance=distance_table(s, window=10)), Shape(heads=1, n_q=320)),
    Case("distance-and-frames", lambda s, t: _mod(distance=distance_table(s), frames=frame_table(s, masked=True)), Shape(n_q=200)),
    Case(
        "distance-masked-frames-signed",
        lambda s, t: _mod(distance=distance_table(s, masked=True), frames=frame_table(s, factors=[1.0, -0.5, 0.0])),
        Shape(heads=1, n_q=200),
    ),
    # key bias and labels
    Case("bias", lambda s, t: AttentionPlan(key_bias=key_bias(s))),
    Case("bias-per-head", lambda s, t: AttentionPlan(key_bias=key_bias(s, batch=2, heads=4)), Shape(2, 4, 2, 63, 200)),
    Case("bias-fp16", lambda s, t: AttentionPlan(key_bias=key_bias(s, batch=2)), Shape(2), half),
    Case("bias-nothing-left", lambda s, t: AttentionPlan(key_bias=key_bias(s, gone=2.0))),
    Case("labels", lambda s, t: AttentionPlan(labels=labels(s)), Shape(n_q=200)),
    Case("labels-batch", lambda s, t: AttentionPlan(labels=labels(s, batch=2), key_bias=key_bias(s)), Shape(2, n_q=63, n_k=127)),
    Case("labels-empty-rows", lambda s, t: AttentionPlan(labels=labels(s, empty_rows=True)), Shape(n_q=200), bf16),
    Case("labels-64", lambda s, t: AttentionPlan(labels=labels(s, count=64)), Shape(n_q=130)),
    Case("labels-frames", lambda s, t: AttentionPlan(labels=labels(s), modulation=ultravico(s).modulation), Shape(n_q=200)),
    # stages around the core
    Case("rotation", lambda s, t: AttentionPlan(rotation=rotation(s))),
    Case("rotation-halves-fp16", lambda s, t: AttentionPlan(rotation=rotation(s, pairing="halves")), Shape(width=40), half, "bnhd"),
    Case("rotation-per-head-gqa", lambda s, t: AttentionPlan(rotation=rotation(s, per_head=True)), Shape(1, 4, 2, 63)),
    Case("segment", lambda s, t: AttentionPlan(extra_kv=(segment(s, t),))),
    Case("segments-rows", lambda s, t: AttentionPlan(extra_kv=(segment(s, t, rows=True), segment(s, t, length=70))), Shape(1, 4, 2, 65)),
    Case(
        "segment-alone",
        lambda s, t: AttentionPlan(labels=labels(s, empty_rows=True), extra_kv=(segment(s, t, rows=True),)),
        Shape(batch=2),
    ),
    Case("mix-identity", lambda s, t: AttentionPlan(head_mix=(mixes(s, "identity"),)), Shape(2, 4, 2, 63)),
    Case("mix-mean-rows", lambda s, t: AttentionPlan(head_mix=(mixes(s, "mean", rows=True),)), Shape(heads=3), half),
    Case("mix-query-bias", lambda s, t: AttentionPlan(key_bias=key_bias(s), head_mix=(mixes(s, "query"),)), Shape(2, 4, 2, 63)),
    Case("mix-query-rows", lambda s, t: AttentionPlan(head_mix=(mixes(s, "query", rows=True),)), Shape(heads=3), half),
    Case("mix-max", lambda s, t: AttentionPlan(labels=labels(s), head_mix=(mixes(s, "max", rows=True),)), Shape(2, 4, 2, 63)),
    Case("mix-own", lambda s, t: AttentionPlan(key_bias=key_bias(s), head_mix=(mixes(s, "own", listed=9),)), Shape(2, 4, 2, 63)),
    Case("affine", lambda s, t: AttentionPlan(row_affine=affine(s)), Shape(2, 4, 2, 63, 100, 40), layout="bnhd"),
    Case("affine-shared-bf16-kept", lambda s, t: AttentionPlan(row_affine=affine(s, bf16, batch=1, heads=1)), Shape(2), half),
    Case("affine-empty-rows", lambda s, t: AttentionPlan(labels=labels(s, empty_rows=True), row_affine=affine(s)), Shape(heads=1)),
    Case("asides", lambda s, t: AttentionPlan(asides=asides(s, t, batch=2)), Shape(2, 4, 2, 63)),
    Case("asides-bf16", lambda s, t: AttentionPlan(key_bias=key_bias(s), asides=asides(s, t)), Shape(1, n_q=65), bf16, "bnhd"),
    Case("edits", lambda s, t: AttentionPlan(row_edits=edits(s, t)), Shape(batch=2)),
    Case("everything", everything, Shape(2, 2, 1, 127)),
    Case("everything-bf16", everything, Shape(1, 2, 2, 127, width=40), bf16, "bnhd"),
    # block plans: which blocks, orders, groups of heads
    Case("blocks-all", lambda s, t: blocks(s, density=1.0)),
    Case("blocks-diagonal", lambda s, t: blocks(s, density=0.0)),
    Case("blocks-sparse", lambda s, t: blocks(s, density=0.1, groups=2), Shape(n_q=200)),
    Case("blocks-dense", lambda s, t: blocks(s, density=0.9), Shape(n_q=65, width=40)),
    Case("blocks-of-64", lambda s, t: blocks(s, block=64), Shape(n_q=200, n_k=150)),
    Case("blocks-of-128", lambda s, t: blocks(s, block=128, density=0.6), Shape(heads=1, n_q=200, n_k=300, width=32)),
    Case("blocks-empty-rows", lambda s, t: AttentionPlan(blocks=empty_rows(s, DEVICE)), Shape(n_q=100)),
    Case("blocks-gqa", lambda s, t: blocks(s, groups=4), Shape(1, 4, 1, 65, 127, 32)),
    Case("blocks-per-batch", lambda s, t: blocks(s, groups=4, per_batch=True), Shape(2, n_q=70, n_k=100, width=32), layout="bnhd"),
    Case("blocks-frames", lambda s, t: blocks(s, order="frame"), VIDEO, layout="wide"),
    Case("blocks-tiles", lambda s, t: blocks(s, order="tile", groups=2), VIDEO, half, "bnhd"),
    Case("blocks-tiles-bf16", lambda s, t: blocks(s, order="tile"), VIDEO, bf16),
    # element tests of partial blocks
    *(
        Case(f"blocks-{name}", lambda s, t, test=test, order=order: blocks(s, order=order, groups=2, test=test), VIDEO)
        for name, order, test in (
            ("window", "tile", Window(2.6)),
            ("window-video", "tile", Window(3.1, 1.3)),
            ("window-inverted", "frame", Window(2.6, inverted=True)),
            ("band", "frame", Band(4)),
            ("band-inverted", "frame", Band(4, inverted=True)),
            ("frame-range", "tile", Frames(-1, 0)),
        )
    ),
    Case("blocks-bits", lambda s, t: AttentionPlan(blocks=packed(s, DEVICE)), VIDEO),
    Case("blocks-bits-inverted", lambda s, t: AttentionPlan(blocks=packed(s, DEVICE, order="tile", inverted=True)), VIDEO),
    Case("blocks-bits-of-128", lambda s, t: AttentionPlan(blocks=packed(s, DEVICE, order="raster", block=128, groups=1)), Shape(heads=1, n_q=140, width=32)),
    # block plans together with everything else
    Case("blocks-bias", lambda s, t: blocks(s, AttentionPlan(key_bias=key_bias(s, heads=2)), order="tile"), VIDEO),
    Case("blocks-bias-nothing-left", lambda s, t: blocks(s, AttentionPlan(key_bias=key_bias(s, gone=2.0)))),
    Case("blocks-labels", lambda s, t: blocks(s, AttentionPlan(labels=labels(s, batch=2)), order="frame", groups=2), Shape(2, n_q=118, width=32)),
    Case("blocks-labels-band", lambda s, t: blocks(s, AttentionPlan(labels=labels(s, batch=2)), order="frame", test=Band(6)), Shape(2, n_q=118, width=32)),
    Case("blocks-ultravico", lambda s, t: blocks(s, ultravico(s, masked=True), order="tile"), VIDEO),
    Case("blocks-frames-signed", lambda s, t: blocks(s, _mod(frames=frame_table(s, factors=[1.0, -0.5, 1.7])), order="frame", test=Window(2.6)), VIDEO),
    Case("blocks-distance", lambda s, t: blocks(s, _mod(distance=distance_table(s, outside=9, masked=True)), order="tile"), VIDEO),
    Case("blocks-segments", lambda s, t: blocks(s, AttentionPlan(extra_kv=(segment(s, t, rows=True), segment(s, t, length=40))), order="frame"), VIDEO),
    Case("blocks-tail-row", lambda s, t: blocks(s, order="frame", groups=4, tail="row"), Shape(1, 4, 2, 118)),
    Case("blocks-tail-row-fp16", lambda s, t: blocks(s, density=0.2, tail="row"), Shape(n_q=200, n_k=150), half),
    Case("blocks-tail-centroid", lambda s, t: blocks(s, order="tile", tail="centroid"), VIDEO),
    Case(
        "blocks-tail-segment-mix",
        lambda s, t: blocks(s, AttentionPlan(extra_kv=(segment(s, t),), head_mix=(mixes(s, "mean"),)), order="frame", tail="row"),
        VIDEO,
    ),
    Case("blocks-mix-identity", lambda s, t: blocks(s, AttentionPlan(head_mix=(mixes(s, "identity", rows=True),)), order="tile"), VIDEO),
    Case("blocks-affine", lambda s, t: blocks(s, AttentionPlan(row_affine=affine(s, layout="bnhd")), order="tile", groups=2), VIDEO, layout="bnhd"),
    Case("blocks-affine-bf16", lambda s, t: blocks(s, AttentionPlan(row_affine=affine(s, t)), order="frame"), VIDEO, bf16),
    Case(
        "blocks-tail-affine-segment-mix",
        lambda s, t: blocks(s, AttentionPlan(extra_kv=(segment(s, t),), row_affine=affine(s), head_mix=(mixes(s, "mean"),)), order="frame", tail="row"),
        VIDEO,
    ),
    Case("blocks-affine-tail-centroid", lambda s, t: blocks(s, AttentionPlan(row_affine=affine(s)), order="tile", tail="centroid"), VIDEO),
    Case("blocks-asides", lambda s, t: blocks(s, AttentionPlan(asides=asides(s, t)), order="tile"), VIDEO),
    Case("blocks-everything", block_everything, Shape(2, 2, 1, 118, width=32)),
]


def rel_rms(got: Tensor, want: Tensor) -> float:
    """Root mean square of the difference relative to that of the truth."""
    assert not got.isnan().any()
    error = (got.double() - want.double()).square().mean().sqrt()
    return float(error / want.double().square().mean().sqrt().clamp_min(1e-30)) if error else 0.0


def assert_close(name: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.shape == want.shape, f"{name}: shape {list(got.shape)}, expected {list(want.shape)}"
    error = rel_rms(got, want)
    assert error <= tolerance, f"{name}: relative RMS error {error:.2e}, allowed {tolerance:.0e}"


def assert_lse_close(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert torch.equal(got == -math.inf, want == -math.inf), "lse: different rows are empty"
    error = (got.double() - want)[want != -math.inf].abs()
    assert not error.numel() or error.max() <= tolerance, f"lse: error {error.max():.2e}, allowed {tolerance:.0e}"
