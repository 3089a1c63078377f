"""What one attention call shall compute, as pure data.

An :class:`AttentionPlan` is the only thing the methods and the kernels share. A method describes what it wants of a call,
``core.weave`` merges the descriptions into one plan, and :func:`kernels.attend.attend` executes it in one pass. A plan
holds tensors and numbers, never code, so it can be inspected, cached, cut to a head range and sent to another device.

Shape letters: B batch, H query heads, Hk key heads, Nq/Nk query/key tokens, D head width, Fq/Fk frames, A position axes.
A leading ``B|1`` or ``H|1`` means "this size or one, broadcast".

Semantics, in stage order, for admitted pairs (i, j)::

    q_i, k_j   <- rotated by R(delta_i @ freqs), R(delta_j @ freqs)                      Rotation
    s_ij       =  scale * <q_i, k_j>                     (natural units)
    s_ij       <- c_i + m(s_ij - c_i),  c_i = scale * <q_i, mean_j k_j> if center_keys else 0
                  m(s) = factor_ij * s, or only where s > 0 if positive_only             Modulation
                  factor_ij = frame factor * distance factor * scale_h; MASKED in either table drops the pair
    s_ij       <- s_ij + bias_j                                                          key_bias
    pair (i,j) dropped unless allow_i has bit label_j                                    Labels
    pair (i,j) dropped unless its block is listed; or read as one mean per block (tail)   blocks
    out_i      =  softmax over admitted keys and extra segments, times v                 ExtraKV
    out_i      <- f_i out_i + R_i                                                        RowAffine
    out_i      <- (1 - u_h) out_i + u_h target_i                                         HeadMix
    out_i      <- out_i + w_i (softmax over the aside's own keys, times v, - base_i)     Aside
    out_i      <- (1 - w) out_i + w source_i   on listed rows                            RowEdit

A query with no admitted key yields 0 and a log-sum-exp of -inf, never NaN. The log-sum-exp is that of the softmax; no later
stage changes it.

A plan is data with one exception: a sparse pattern that chooses its blocks by looking at q and k stands in ``blocks`` as a
:class:`kernels.sparse.Sparse` until they are there.

The tensors of a plan are read-only once it has been executed: what is derived from them is cached by identity.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .blocks import BlockPlan

if TYPE_CHECKING:
    from .sparse import Sparse

MASKED = 255
"""Class id of a pair that takes no part in the softmax."""


@dataclass(frozen=True, eq=False)
class Rotation:
    """A change of rotary position, applied to q and k that already carry their stock rotation.

    Rotations compose: ``R(p) R(d) = R(p + d)``, so moving a token by ``d`` needs no knowledge of where it stood.
    The angle of token n at channel pair c of head h is ``sum_a delta[n, a] * freqs[a, h, c]``.

    delta_q [Nq, A], delta_k [Nk, A]: position change, fp32, in the units of ``freqs``.
    freqs [A, H|1, D/2]: radians per unit.
    pairing: channel pairs are (2c, 2c+1) for "interleaved" and (c, c + D/2) for "halves".
    """

    delta_q: Tensor
    delta_k: Tensor
    freqs: Tensor
    pairing: Literal["interleaved", "halves"] = "interleaved"


@dataclass(frozen=True, eq=False)
class FrameTable:
    """A logit factor that depends on (frame of the query, frame of the key).

    ids_q int16 [Nq], ids_k int16 [Nk]: frame of each token; -1 = outside the grid, factor 1 (text, references, padding).
    classes uint8 [Fq, Fk]: index into ``factors``, or :data:`MASKED`.
    factors fp32 [n], n < 255; ``factors[0]`` is 1.
    """

    ids_q: Tensor
    ids_k: Tensor
    classes: Tensor
    factors: Tensor


@dataclass(frozen=True, eq=False)
class DistanceTable:
    """A logit factor that depends on the flat token distance ``|pos_i - pos_j|``.

    pos_q int32 [Nq], pos_k int32 [Nk]: flat position in the grid; -1 = outside, factor 1.
    classes uint8 [longest distance + 1]; factors fp32 [n] as in :class:`FrameTable`.
    """

    pos_q: Tensor
    pos_k: Tensor
    classes: Tensor
    factors: Tensor


@dataclass(frozen=True, eq=False)
class Modulation:
    """Multiplicative change of the logits (``specs``: UltraViCo, entropy scaling).

    positive_only: the factor acts only where the (centred) logit is positive; multiplying a negative logit by a factor
    below one would raise it.
    center_keys: the sign is read after subtracting the mean key of the call, that is, "positive" means "above this row's
    average logit". The log-sum-exp stays that of the uncentred logits.
    scale: one more plain factor for all pairs, fp32 [H|1] (entropy scaling); None = 1. Never with ``positive_only``.
    """

    frames: FrameTable | None = None
    distance: DistanceTable | None = None
    positive_only: bool = False
    center_keys: bool = False
    scale: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Labels:
    """Which pairs are admitted, by class of token: isolation, regions, trajectories, grounding.

    label_k int8 [B|1, Nk] in [0, count); allow_q int64 [B|1, Nq]: bit l set = keys with label l are read. count <= 64.
    """

    label_k: Tensor
    allow_q: Tensor
    count: int


@dataclass(frozen=True, eq=False)
class ExtraKV:
    """One more dense segment of keys and values, read by all queries or by some.

    k, v [B|1, Hk, M, D]; bias fp32 [B|1, H|1, M] added to the logits; rows bool [Nq]: the queries that read it (None: all).
    Modulation and labels do not act on a segment; keys arrive with the rotation they shall have.
    """

    k: Tensor
    v: Tensor
    bias: Tensor | None = None
    rows: Tensor | None = None


@dataclass(frozen=True, eq=False)
class RowAffine:
    """``out = scale * out + residual``, row by row (Re-ttention: what a sparse pattern is known to miss).

    scale fp32 [B|1, H|1, Nq]; residual [B|1, H|1, Nq, D] of any floating type. Rows are query tokens in the call's own
    order, whatever order the blocks have. A row without admitted keys becomes its residual.
    """

    scale: Tensor
    residual: Tensor


@dataclass(frozen=True, eq=False)
class HeadMix:
    """``out = (1 - amount) * out + amount * target`` per head (SoftPAG).

    amount fp32 [H]; rows bool [Nq]: query rows that are mixed (None: all). target:

    "identity"  the token's own value (attention = unit matrix; needs Nq = Nk)
    "mean"      the mean value of all keys (uniform attention)
    "query"     one row of attention for all: that of the mean query of the mixed rows
    "max"       the value of the key with the greatest logit (one-hot attention)
    "own"       attention over the token's own key and the keys listed in ``keys`` int64 [n], n > 0 (needs Nq = Nk); the mixed
                rows are not among those keys

    key_bias and the plain factor of a modulation hold in "query", "max" and "own"; tables and labels only in "max", which alone
    looks at pairs. Blocks and extra segments play no part.
    """

    amount: Tensor
    target: Literal["identity", "mean", "query", "max", "own"]
    rows: Tensor | None = None
    keys: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Probe:
    """Something read from the attention probabilities without ever forming them as a whole.

    kind "columns": P[:, :, :, keys] -> fp32 [B, H, Nq, n]; "entropy": row entropy in nats -> fp32 [B, H, Nq];
    "popularity": mean over queries of each column -> fp32 [B, H, Nk].
    name: under which the result is handed back (:class:`kernels.attend.Trace`).
    """

    name: str
    kind: Literal["columns", "entropy", "popularity"]
    keys: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Aside:
    """A softmax of its own beside the call's, for some rows: ``out[e, rows] += weight * (aside - out[base, rows])``.

    ``aside`` is the attention of those queries over ``k, v`` alone [1|E, Hk, M, D], with the call's scale. elements: the E batch
    elements it concerns; bases: for each, the element whose output is subtracted, as it was before any aside: its own (then a
    weight w blends, ``(1 - w) out + w aside``), or that of another conditioning. rows int64 [n], distinct; weight fp32 [n], of
    any size.
    """

    k: Tensor
    v: Tensor
    rows: Tensor
    weight: Tensor
    elements: tuple[int, ...]
    bases: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class RowEdit:
    """``out[rows] = (1 - weight) * out[rows] + weight * source``.

    rows int64 [n]; exactly one of ``values`` [B|1, H|1, n, D] and ``copy_from`` int64 [n] (rows of the same output, read
    before any edit); weight in [0, 1].
    """

    rows: Tensor
    weight: float
    values: Tensor | None = None
    copy_from: Tensor | None = None


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Everything asked of one call. Absent parts are None or empty; a plan with nothing in it is stock attention."""

    rotation: Rotation | None = None
    modulation: Modulation | None = None
    key_bias: Tensor | None = None  # fp32 [B|1, H|1, Nk], natural units
    labels: Labels | None = None
    blocks: BlockPlan | Sparse | None = None
    extra_kv: tuple[ExtraKV, ...] = ()
    row_affine: RowAffine | None = None
    head_mix: tuple[HeadMix, ...] = ()
    probes: tuple[Probe, ...] = ()
    asides: tuple[Aside, ...] = ()
    row_edits: tuple[RowEdit, ...] = ()

    @property
    def features(self) -> frozenset[str]:
        """Names of the parts in use; a backend states which of them it can execute."""
        return frozenset(f.name for f in fields(self) if not _absent(getattr(self, f.name)))

    @property
    def empty(self) -> bool:
        """True when the plan asks for nothing."""
        return not self.features

    def without(self, *names: str) -> AttentionPlan:
        """The same plan less the named parts."""
        gone: dict[str, Any] = {n: () if isinstance(getattr(self, n), tuple) else None for n in names}
        return replace(self, **gone)

    def to(self, device: torch.device | str) -> AttentionPlan:
        """The same plan with every tensor on ``device``; parts that are there already are kept as they are."""
        return _move(self, torch.device(device))

    def head_range(self, h0: int, h1: int, heads: int) -> AttentionPlan:
        """The part of the plan that concerns query heads ``h0 <= h < h1`` of ``heads`` (sequence-parallel execution).

        Key/value segments are cut by key head in proportion; raises ValueError where a group of query heads that share a
        key head would be torn apart.
        """
        if not 0 <= h0 < h1 <= heads:
            raise ValueError(f"head range [{h0}:{h1}] does not fit {heads} heads")

        def cut(x: Tensor, axis: int) -> Tensor:
            return x if x.shape[axis] == 1 else x.narrow(axis, h0, h1 - h0)

        def cut_if(x: Tensor | None, axis: int) -> Tensor | None:
            return None if x is None else cut(x, axis)

        def cut_kv(x: Tensor) -> Tensor:
            group = heads // x.shape[1]
            if h0 % group or h1 % group:
                raise ValueError(f"head range [{h0}:{h1}] splits a group of {group} query heads that share one key head")
            return x.narrow(1, h0 // group, (h1 - h0) // group)

        rot, mod, affine = self.rotation, self.modulation, self.row_affine
        return replace(
            self,
            rotation=None if rot is None else replace(rot, freqs=cut(rot.freqs, 1)),
            modulation=None if mod is None else replace(mod, scale=cut_if(mod.scale, 0)),
            key_bias=cut_if(self.key_bias, 1),
            extra_kv=tuple(replace(e, k=cut_kv(e.k), v=cut_kv(e.v), bias=cut_if(e.bias, 1)) for e in self.extra_kv),
            blocks=None if self.blocks is None else self.blocks.head_range(h0, h1),
            row_affine=None if affine is None else RowAffine(cut(affine.scale, 1), cut(affine.residual, 1)),
            head_mix=tuple(replace(m, amount=cut(m.amount, 0)) for m in self.head_mix),
            asides=tuple(replace(a, k=cut_kv(a.k), v=cut_kv(a.v)) for a in self.asides),
            row_edits=tuple(replace(e, values=cut_if(e.values, 1)) for e in self.row_edits),
        )

    def batch_range(self, b0: int, b1: int) -> AttentionPlan:
        """The logit parts (modulation, key_bias, labels) that concern batch elements ``b0 <= b < b1``."""

        def cut(x: Tensor) -> Tensor:
            return x if x.shape[0] == 1 or (b0 == 0 and b1 == x.shape[0]) else x[b0:b1]

        bias, labels = self.key_bias, self.labels
        if labels is not None:
            parts = cut(labels.label_k), cut(labels.allow_q)
            if parts[0] is not labels.label_k or parts[1] is not labels.allow_q:
                labels = replace(labels, label_k=parts[0], allow_q=parts[1])
        return AttentionPlan(modulation=self.modulation, key_bias=None if bias is None else cut(bias), labels=labels)


def _absent(part: object) -> bool:
    return part is None or part == ()


def _move(part: Any, device: torch.device) -> Any:
    if isinstance(part, Tensor):
        return part.to(device)
    if isinstance(part, tuple):
        moved = tuple(_move(p, device) for p in part)
        return part if all(a is b for a, b in zip(part, moved, strict=True)) else moved
    if is_dataclass(part) and not isinstance(part, type):
        old = {f.name: getattr(part, f.name) for f in fields(part)}
        new = {name: _move(value, device) for name, value in old.items()}
        # Identity is kept where nothing moves: derived tile lists are cached on it.
        return part if all(new[n] is old[n] for n in old) else replace(part, **new)
    return part
