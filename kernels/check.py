"""Shape checks of one attention call: a ValueError names the argument, what was received and what fits.

Only shapes, dtypes and devices are looked at. Values are not: reading them would wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .blocks import BlockPlan
from .plan import Aside, AttentionPlan, ExtraKV, HeadMix, Labels, Modulation, Probe, Rotation, RowAffine, RowEdit

Size = int | tuple[int, ...] | None  # one size, any of several, anything


def check_call(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float | None = None) -> None:
    """Raise ValueError where q [B,H,Nq,D], k, v [B,Hk,Nk,D] and the plan do not fit together."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4 or 0 in x.shape:
            raise ValueError(f"{name} has shape {list(x.shape)}; expected four non-empty axes [batch, heads, tokens, width]")
        if not x.is_floating_point():
            raise ValueError(f"{name} has dtype {x.dtype}; expected a floating point type")
        if (x.dtype, x.device) != (q.dtype, q.device):
            raise ValueError(f"{name} is {x.dtype} on {x.device}, q is {q.dtype} on {q.device}; they must match")
    b, h, _, d = q.shape
    _fit("k", k, (b, None, None, d))
    _fit("v", v, tuple(k.shape))
    if h % k.shape[1]:
        raise ValueError(f"k has {k.shape[1]} heads, which does not divide the {h} heads of q")
    if scale is not None and not isinstance(scale, (int, float)):
        raise ValueError(f"scale is a {type(scale).__name__}; expected a number (a per-head factor goes into modulation.scale)")
    if plan.rotation is not None:
        _rotation(plan.rotation, q, k)
    if plan.modulation is not None:
        _modulation(plan.modulation, q, k)
    if plan.key_bias is not None:
        _fit("key_bias", plan.key_bias, ((1, b), (1, h), k.shape[2]), q.device)
    if plan.labels is not None:
        _labels(plan.labels, q, k)
    if plan.blocks is not None:
        _blocks(plan, q, k)
    for i, segment in enumerate(plan.extra_kv):
        _segment(f"extra_kv[{i}]", segment, q)
    if plan.row_affine is not None:
        _row_affine(plan.row_affine, q)
    for i, mix in enumerate(plan.head_mix):
        _head_mix(f"head_mix[{i}]", mix, q, k)
    for i, probe in enumerate(plan.probes):
        _probe(f"probes[{i}]", probe, plan.probes[:i])
    for i, aside in enumerate(plan.asides):
        _aside(f"asides[{i}]", aside, q)
    for i, edit in enumerate(plan.row_edits):
        _row_edit(f"row_edits[{i}]", edit, q)


def _fit(name: str, x: Tensor, want: Sequence[Size], device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
    ok = x.ndim == len(want) and all(w is None or (got in w if isinstance(w, tuple) else got == w) for got, w in zip(x.shape, want, strict=True))
    if not ok:
        text = ", ".join("any" if w is None else "|".join(map(str, sorted(set(w)))) if isinstance(w, tuple) else str(w) for w in want)
        raise ValueError(f"{name} has shape {list(x.shape)}; expected [{text}]")
    if device is not None and x.device != device:
        raise ValueError(f"{name} is on {x.device}; expected {device} (use plan.to(device))")
    if dtype is not None and x.dtype != dtype:
        raise ValueError(f"{name} has dtype {x.dtype}; expected {dtype}")


def _integers(name: str, x: Tensor, want: Sequence[Size], device: torch.device) -> None:
    _fit(name, x, want, device)
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise ValueError(f"{name} has dtype {x.dtype}; expected integers")


def _rotation(r: Rotation, q: Tensor, k: Tensor) -> None:
    axes = r.freqs.shape[0] if r.freqs.ndim else 0
    if q.shape[-1] % 2:
        raise ValueError(f"rotation needs an even head width; q has {q.shape[-1]}")
    _fit("rotation.freqs", r.freqs, (axes, (1, q.shape[1]), q.shape[-1] // 2), q.device)
    _fit("rotation.delta_q", r.delta_q, (q.shape[2], axes), q.device)
    _fit("rotation.delta_k", r.delta_k, (k.shape[2], axes), q.device)
    if r.pairing not in ("interleaved", "halves"):
        raise ValueError(f"rotation.pairing is {r.pairing!r}; expected 'interleaved' or 'halves'")


def _modulation(m: Modulation, q: Tensor, k: Tensor) -> None:
    dev = q.device
    if m.frames is not None:
        _integers("modulation.frames.ids_q", m.frames.ids_q, (q.shape[2],), dev)
        _integers("modulation.frames.ids_k", m.frames.ids_k, (k.shape[2],), dev)
        _fit("modulation.frames.classes", m.frames.classes, (None, None), dev, torch.uint8)
        _factors("modulation.frames.factors", m.frames.factors, dev)
    if m.distance is not None:
        _integers("modulation.distance.pos_q", m.distance.pos_q, (q.shape[2],), dev)
        _integers("modulation.distance.pos_k", m.distance.pos_k, (k.shape[2],), dev)
        _fit("modulation.distance.classes", m.distance.classes, (None,), dev, torch.uint8)
        _factors("modulation.distance.factors", m.distance.factors, dev)
    if m.scale is not None:
        _fit("modulation.scale", m.scale, ((1, q.shape[1]),), dev)
        if m.positive_only:
            raise ValueError("modulation.scale acts on all pairs; it cannot be combined with modulation.positive_only")


def _factors(name: str, x: Tensor, device: torch.device) -> None:
    _fit(name, x, (None,), device, torch.float32)
    if not 1 <= x.shape[0] <= 254:
        raise ValueError(f"{name} has {x.shape[0]} entries; expected 1 to 254 (class 255 means masked)")


def _labels(labels: Labels, q: Tensor, k: Tensor) -> None:
    if not 1 <= labels.count <= 64:
        raise ValueError(f"labels.count is {labels.count}; expected 1 to 64")
    _integers("labels.label_k", labels.label_k, ((1, q.shape[0]), k.shape[2]), q.device)
    _fit("labels.allow_q", labels.allow_q, ((1, q.shape[0]), q.shape[2]), q.device, torch.int64)


def _blocks(plan: AttentionPlan, q: Tensor, k: Tensor) -> None:
    blocks = plan.blocks
    if not isinstance(blocks, BlockPlan):
        if plan.probes:
            raise ValueError("plan.probes read dense attention; they cannot be combined with a pattern that is chosen during the call")
    else:
        for name, order, x in (("q", blocks.q, q), ("k", blocks.k, k)):
            if order.tokens != x.shape[2]:
                raise ValueError(f"blocks.{name} orders {order.tokens} tokens; {name} has {x.shape[2]}")
            if order.perm.device != q.device:
                raise ValueError(f"blocks.{name} is on {order.perm.device}; expected {q.device} (use plan.to(device))")
        _fit("blocks.head_map", blocks.head_map, ((1, q.shape[0]), (1, q.shape[1])), q.device)
        if (blocks.partial is None) != (blocks.mask is None):
            raise ValueError("blocks.partial and blocks.mask go together")
    if blocks is not None and blocks.tail != "off" and (plan.labels is not None or plan.key_bias is not None or plan.modulation is not None):
        raise ValueError("a pooled tail cannot honour rules for single pairs; use tail 'off' together with labels, key_bias or modulation")


def _segment(name: str, e: ExtraKV, q: Tensor) -> None:
    b, h, nq, d = q.shape
    _fit(f"{name}.k", e.k, ((1, b), None, None, d), q.device, q.dtype)
    _fit(f"{name}.v", e.v, tuple(e.k.shape), q.device, q.dtype)
    if 0 in e.k.shape or h % e.k.shape[1]:
        raise ValueError(f"{name}.k has shape {list(e.k.shape)}; its heads must divide {h} and no axis may be empty")
    if e.bias is not None:
        _fit(f"{name}.bias", e.bias, ((1, b), (1, h), e.k.shape[2]), q.device)
    if e.rows is not None:
        _fit(f"{name}.rows", e.rows, (nq,), q.device, torch.bool)


def _row_affine(affine: RowAffine, q: Tensor) -> None:
    b, h, nq, d = q.shape
    _fit("row_affine.scale", affine.scale, ((1, b), (1, h), nq), q.device, torch.float32)
    _fit("row_affine.residual", affine.residual, ((1, b), (1, h), nq, d), q.device)
    if not affine.residual.is_floating_point():
        raise ValueError(f"row_affine.residual has dtype {affine.residual.dtype}; expected a floating point type")


def _head_mix(name: str, mix: HeadMix, q: Tensor, k: Tensor) -> None:
    _fit(f"{name}.amount", mix.amount, (q.shape[1],), q.device)
    if mix.target not in ("identity", "mean", "query", "max", "own"):
        raise ValueError(f"{name}.target is {mix.target!r}; expected 'identity', 'mean', 'query', 'max' or 'own'")
    if mix.target in ("identity", "own") and q.shape[2] != k.shape[2]:
        raise ValueError(f"{name}.target {mix.target!r} needs as many keys as queries; there are {q.shape[2]} and {k.shape[2]}")
    if mix.rows is not None:
        _fit(f"{name}.rows", mix.rows, (q.shape[2],), q.device, torch.bool)
    if (mix.keys is not None) != (mix.target == "own"):
        raise ValueError(f"{name}.keys goes with target 'own' and only with it")
    if mix.keys is not None:
        _integers(f"{name}.keys", mix.keys, (None,), q.device)
        if not mix.keys.shape[0]:
            raise ValueError(f"{name}.keys is empty; without other keys a token's own is 'identity'")


def _probe(name: str, probe: Probe, earlier: tuple[Probe, ...]) -> None:
    if probe.kind not in ("columns", "entropy", "popularity"):
        raise ValueError(f"{name}.kind is {probe.kind!r}; expected 'columns', 'entropy' or 'popularity'")
    if (probe.keys is not None) != (probe.kind == "columns"):
        raise ValueError(f"{name}.keys goes with kind 'columns' and only with it")
    if any(probe.name == other.name for other in earlier):
        raise ValueError(f"{name}.name {probe.name!r} is used twice")


def _aside(name: str, a: Aside, q: Tensor) -> None:
    b, h, _, d = q.shape
    if not a.elements or len(a.elements) != len(a.bases) or not all(0 <= e < b for e in (*a.elements, *a.bases)):
        raise ValueError(f"{name} has elements {a.elements} with bases {a.bases}; expected as many of each, of 0 to {b - 1}")
    _fit(f"{name}.k", a.k, ((1, len(a.elements)), None, None, d), q.device, q.dtype)
    _fit(f"{name}.v", a.v, tuple(a.k.shape), q.device, q.dtype)
    if 0 in a.k.shape or h % a.k.shape[1]:
        raise ValueError(f"{name}.k has shape {list(a.k.shape)}; its heads must divide {h} and no axis may be empty")
    _integers(f"{name}.rows", a.rows, (None,), q.device)
    _fit(f"{name}.weight", a.weight, (a.rows.shape[0],), q.device, torch.float32)


def _row_edit(name: str, edit: RowEdit, q: Tensor) -> None:
    _integers(f"{name}.rows", edit.rows, (None,), q.device)
    n = edit.rows.shape[0]
    if (edit.values is None) == (edit.copy_from is None):
        raise ValueError(f"{name} needs exactly one of values and copy_from")
    if not 0.0 <= edit.weight <= 1.0:
        raise ValueError(f"{name}.weight is {edit.weight}; expected 0 to 1")
    if edit.values is not None:
        _fit(f"{name}.values", edit.values, ((1, q.shape[0]), (1, q.shape[1]), n, q.shape[3]), q.device)
    if edit.copy_from is not None:
        _integers(f"{name}.copy_from", edit.copy_from, (n,), q.device)
