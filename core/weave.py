"""One plan from many methods: the merge rules.

Each method writes what it wants of a call into a :class:`Draft`; the draft merges the wishes stage by stage, in an order
that does not depend on the order of the nodes, or raises a :class:`ConflictError` that names both methods.

=====  =================  =====================================================================
stage  part               when two methods contribute
=====  =================  =====================================================================
2      rotation           one writer per token and rotary axis
3      modulation         factors multiply; sign-conditional and plain do not mix
4      key bias           added
5      admitted pairs     labels intersected; a query that may read nothing is an error; one sparse pattern per call
6      extra K/V          concatenated
7      head mix           one writer per head
8      probes             union
9      asides             added
10     output edits       one writer per row; one method may rework the whole result
=====  =================  =====================================================================

Before all of them one method may put other keys and values in the place of the call's own (``Draft.swap``).

(Stage 1, token order, belongs to the kernels.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..kernels.blocks import BlockPlan
from ..kernels.plan import (
    MASKED,
    Aside,
    AttentionPlan,
    DistanceTable,
    ExtraKV,
    FrameTable,
    HeadMix,
    Labels,
    Modulation,
    Probe,
    Rotation,
    RowEdit,
)
from .errors import ConflictError

if TYPE_CHECKING:
    from ..kernels.sparse import Sparse
    from .call import AttentionCall, Seen
    from .methods.base import Method
    from .race import Race

LABEL_LIMIT = 64


@dataclass
class Draft:
    """What the methods have asked of one call so far. ``owner`` is the name of the method's node, for messages."""

    call: AttentionCall
    rotations: list[tuple[str, Rotation]] = field(default_factory=list)
    modulations: list[tuple[str, Modulation]] = field(default_factory=list)
    biases: list[tuple[str, Tensor]] = field(default_factory=list)
    labels: list[tuple[str, Labels]] = field(default_factory=list)
    sparse: list[tuple[str, BlockPlan | Sparse]] = field(default_factory=list)
    segments: list[tuple[str, ExtraKV]] = field(default_factory=list)
    mixes: list[tuple[str, HeadMix]] = field(default_factory=list)
    probes: list[tuple[str, Probe]] = field(default_factory=list)
    asides: list[tuple[str, Aside]] = field(default_factory=list)
    edits: list[tuple[str, RowEdit]] = field(default_factory=list)
    backends: list[tuple[str, str]] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    readers: list[tuple[str, Callable[[Seen], None]]] = field(default_factory=list)
    taps: list[tuple[str, Callable[[Seen], Tensor]]] = field(default_factory=list)
    swaps: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)
    reworks: list[tuple[str, Callable[[Tensor], Tensor]]] = field(default_factory=list)
    results: list[tuple[str, Callable[[Tensor], None]]] = field(default_factory=list)
    race: Race | None = None
    parts: dict[tuple[int, ...], Draft] = field(default_factory=dict)

    def part(self, elements: tuple[int, ...]) -> Draft:
        """A draft for some batch elements alone, with tensors of their number; see ``core/parted.py``."""
        return self.parts.setdefault(elements, Draft(self.call))

    def rotate(self, owner: str, rotation: Rotation) -> None:
        """Stage 2: move tokens along the rotary axes."""
        self.rotations.append((owner, rotation))

    def modulate(self, owner: str, modulation: Modulation) -> None:
        """Stage 3: factors on the logits."""
        if modulation.positive_only and modulation.scale is not None:
            raise ValueError("a plain factor for all pairs cannot be sign-conditional; contribute two modulations")
        self.modulations.append((owner, modulation))

    def bias(self, owner: str, bias: Tensor) -> None:
        """Stage 4: fp32 [B|1, H|1, Nk] added to the logits of each key."""
        self.biases.append((owner, bias))

    def admit(self, owner: str, labels: Labels) -> None:
        """Stage 5: which pairs may see each other."""
        self.labels.append((owner, labels))

    def sparsify(self, owner: str, blocks: BlockPlan | Sparse) -> None:
        """Stage 5: which blocks are computed at all."""
        self.sparse.append((owner, blocks))

    def extend(self, owner: str, segment: ExtraKV) -> None:
        """Stage 6: more keys and values."""
        self.segments.append((owner, segment))

    def mix(self, owner: str, mix: HeadMix) -> None:
        """Stage 7: pull heads towards a simpler attention."""
        self.mixes.append((owner, mix))

    def probe(self, owner: str, probe: Probe) -> None:
        """Stage 8: read something from the probabilities."""
        self.probes.append((owner, replace(probe, name=f"{owner}/{probe.name}")))

    def aside(self, owner: str, aside: Aside) -> None:
        """Stage 9: a softmax of its own for some rows, blended in."""
        self.asides.append((owner, aside))

    def edit(self, owner: str, edit: RowEdit) -> None:
        """Stage 10: replace output rows."""
        self.edits.append((owner, edit))

    def watch(self, owner: str, reader: Callable[[Seen], None]) -> None:
        """Let ``reader`` look at the call once its result is there. It is no part of the plan: stock calls stay stock."""
        self.readers.append((owner, reader))

    def tap(self, owner: str, tap: Callable[[Seen], Tensor]) -> None:
        """Add a term [B, H, Nq, D] to the result, whatever computed it: zeros that a gradient is taken through. No part of the plan."""
        self.taps.append((owner, tap))

    def swap(self, owner: str, k: Tensor, v: Tensor) -> None:
        """Before all stages: keys and values [B, Hk, Nk, D] in the place of the call's own, which everything else then acts on."""
        self.swaps.append((owner, k, v))

    def rework(self, owner: str, rework: Callable[[Tensor], Tensor]) -> None:
        """After all stages: what becomes of the result [B, H, Nq, D]; for edits that depend on it, which a row edit cannot."""
        self.reworks.append((owner, rework))

    def result(self, owner: str, reader: Callable[[Tensor], None]) -> None:
        """Let ``reader`` look at the result [B, H, Nq, D] of the call. It is no part of the plan: stock calls stay stock."""
        self.results.append((owner, reader))

    def replaced(self) -> tuple[Tensor, Tensor] | None:
        """The keys and values of :meth:`swap`. Raises ConflictError where two methods give some, or another adds its own."""
        for owner, _, _ in self.swaps:
            others = [name for name in (*(s[0] for s in self.swaps), *(s[0] for s in self.segments)) if name != owner]
            if others:
                rule = "one takes other keys and values in the place of those the other adds to"
                raise ConflictError(owner, others[0], rule, "Use them on different blocks or in different percent windows.")
        return None if not self.swaps else self.swaps[0][1:]

    def reworked(self, out: Tensor) -> Tensor:
        """The result after :meth:`rework`, the same tensor where nobody has any. Raises ConflictError where two methods do."""
        if len(self.reworks) > 1:
            advice = "Use them on different blocks or in different percent windows."
            raise ConflictError(self.reworks[0][0], self.reworks[1][0], "both write the whole result", advice)
        for _, rework in self.reworks:
            out = rework(out)
        return out

    @property
    def beside(self) -> tuple[str, ...]:
        """What is asked for beside the plan that changes the result, as the report calls it."""
        return (*(["replaced_kv"] if self.swaps else []), *(["reworked"] if self.reworks else []))

    def leave(self, owner: str, reason: str) -> None:
        """Note why a method that wanted this call did nothing to it; the report shows it."""
        self.left.append((owner, reason))

    def prefer(self, owner: str, backend: str) -> None:
        """An explicit choice of backend ("auto" is no choice)."""
        if backend != "auto":
            self.backends.append((owner, backend))

    def plan(self) -> AttentionPlan:
        """Merge. Raises ConflictError naming both methods."""
        return AttentionPlan(
            rotation=_rotation(self.rotations),
            modulation=_modulation(self.modulations),
            key_bias=_bias(self.biases),
            labels=_labels(self.labels),
            blocks=self._blocks(),
            extra_kv=tuple(s for _, s in self.segments),
            head_mix=_head_mix(self.mixes),
            probes=tuple(p for _, p in self.probes),
            asides=tuple(a for _, a in self.asides),
            row_edits=_row_edits(self.edits),
        )

    def _blocks(self) -> BlockPlan | Sparse | None:
        """The one sparse pattern, without its tail where the tail would blur rules for single pairs.

        A pattern is an approximation of dense attention, so it gives way where another method reads the probabilities.
        """
        if not self.sparse:
            return None
        (owner, blocks), rest = self.sparse[0], self.sparse[1:]
        if rest:
            raise ConflictError(owner, rest[0][0], "both choose which blocks are computed", "Keep one sparse pattern per block and percent window.")
        if self.swaps:
            self.leave(owner, f"{self.swaps[0][0]} reads another picture's keys here, so it stays dense")
            return None
        if self._gives_way:
            self.leave(owner, f"{self.probes[0][0]} reads the attention here, so it stays dense")
            return None
        for other, _ in (*self.modulations, *self.biases, *self.labels):
            if blocks.tail != "off":
                self.leave(owner, f"the pooled tail is off here: {other} sets rules for single pairs, which a mean over a block would blur")
                return blocks.without_tail()
        return blocks

    @property
    def reasons(self) -> list[str]:
        """What was left and why, each once."""
        return list(dict.fromkeys(f"{owner}: {why}" for owner, why in self.left))

    @property
    def _gives_way(self) -> bool:
        return bool(self.swaps) or (bool(self.probes) and not any(isinstance(blocks, BlockPlan) for _, blocks in self.sparse))

    @property
    def owners(self) -> tuple[str, ...]:
        """Who contributed, sorted."""
        sparse = [] if self._gives_way else self.sparse
        parts: tuple[Iterable[tuple[Any, ...]], ...] = (
            self.rotations, self.modulations, self.biases, self.labels, sparse, self.segments, self.mixes, self.probes, self.asides, self.edits, self.swaps, self.reworks,
        )  # fmt: skip
        return tuple(sorted({found[0] for part in parts for found in part}))

    def backend(self) -> str:
        """The one backend asked for, or "auto". Raises ConflictError when two methods insist on different ones."""
        for owner, name in self.backends[1:]:
            first, chosen = self.backends[0]
            if name != chosen:
                raise ConflictError(first, owner, f"one asks for the backend '{chosen}', the other for '{name}'", "Set one of them to auto.")
        return self.backends[0][1] if self.backends else "auto"


def weave(methods: Iterable[Method], call: AttentionCall, active: Callable[[Method], bool]) -> Draft:
    """Ask every method that is active and wants this call for its contribution. Order of nodes does not matter."""
    draft = Draft(call)
    for method in sorted(methods, key=lambda m: (m.owner, repr(m))):
        if active(method) and method.wants(call):
            method.contribute(call, draft)
    return draft


# --- stage 2 --------------------------------------------------------------------------------------------------------


def _rotation(parts: list[tuple[str, Rotation]]) -> Rotation | None:
    """Different tokens may be moved by different methods, and the same token along different axes: rotations of other channels commute."""
    if len(parts) <= 1:
        return parts[0][1] if parts else None
    for i, (owner_a, a) in enumerate(parts):
        for owner_b, b in parts[i + 1 :]:
            if a.pairing != b.pairing:
                raise ConflictError(owner_a, owner_b, "they pair rotary channels differently", "This is a defect of a family adapter; please report it.")
            turned = bool((_turned(a.freqs) & _turned(b.freqs)).any())
            both = _moves(a.delta_k, a.freqs) & _moves(b.delta_k, b.freqs)
            if turned and bool(both.any()):
                raise ConflictError(
                    owner_a, owner_b, f"both move the position of {int(both.sum())} tokens", "Keep one of them, or let them act on different blocks or percent windows."
                )
    heads = max(r.freqs.shape[1] for _, r in parts)
    return Rotation(
        delta_q=torch.cat([r.delta_q for _, r in parts], 1),
        delta_k=torch.cat([r.delta_k for _, r in parts], 1),
        freqs=torch.cat([r.freqs.expand(-1, heads, -1) for _, r in parts], 0),
        pairing=parts[0][1].pairing,
    )


def _turned(freqs: Tensor) -> Tensor:
    """bool [H|1, D/2]: channel pairs that are turned at all."""
    return freqs.abs().amax(0) > 0


def _moves(delta: Tensor, freqs: Tensor) -> Tensor:
    """bool [N]: tokens whose angle changes at all. An axis whose frequencies are all zero moves nothing."""
    live = freqs.abs().amax((1, 2)) > 0
    return (delta.abs() * live).amax(1) > 0


# --- stage 3 --------------------------------------------------------------------------------------------------------


def _modulation(parts: list[tuple[str, Modulation]]) -> Modulation | None:
    """Factors multiply. A sign-conditional and a plain factor have no product that is either."""
    if len(parts) <= 1:
        return parts[0][1] if parts else None
    (owner, merged), rest = parts[0], parts[1:]
    for other, mod in rest:
        if merged.positive_only != mod.positive_only:
            signed, plain = (owner, other) if merged.positive_only else (other, owner)
            raise ConflictError(
                signed, plain, f"{signed} scales only positive logits and {plain} scales all, so their product is neither", "Use one of them per block or percent window."
            )
        if merged.center_keys != mod.center_keys:
            raise ConflictError(owner, other, "one centres the keys and the other does not", "Give both the same center_keys.")
        merged = Modulation(
            frames=_times_frames(owner, other, merged.frames, mod.frames),
            distance=_times_distance(owner, other, merged.distance, mod.distance),
            positive_only=merged.positive_only,
            center_keys=merged.center_keys,
            scale=_times(merged.scale, mod.scale),
        )
    return merged


def _times(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a * b


def _times_frames(owner: str, other: str, a: FrameTable | None, b: FrameTable | None) -> FrameTable | None:
    if a is None or b is None:
        return a or b
    if not (_same(a.ids_q, b.ids_q) and _same(a.ids_k, b.ids_k)):
        raise ConflictError(owner, other, "they number the frames of the video differently", "Use one of them per block.")
    classes, factors = _product(owner, other, a.classes, a.factors, b.classes, b.factors)
    return FrameTable(a.ids_q, a.ids_k, classes, factors)


def _times_distance(owner: str, other: str, a: DistanceTable | None, b: DistanceTable | None) -> DistanceTable | None:
    if a is None or b is None:
        return a or b
    if not (_same(a.pos_q, b.pos_q) and _same(a.pos_k, b.pos_k)):
        raise ConflictError(owner, other, "they number the tokens of the video differently", "Use one of them per block.")
    classes, factors = _product(owner, other, a.classes, a.factors, b.classes, b.factors)
    return DistanceTable(a.pos_q, a.pos_k, classes, factors)


def _product(owner: str, other: str, ca: Tensor, fa: Tensor, cb: Tensor, fb: Tensor) -> tuple[Tensor, Tensor]:
    """Class tables of a product: one class per pair of classes, a masked pair stays masked. No host sync."""
    n = len(fa) * len(fb)
    if n >= MASKED:
        raise ConflictError(owner, other, f"together they need {n} factor classes and {MASKED - 1} fit", "Simplify one of them.")
    gone = (ca == MASKED) | (cb == MASKED)
    classes = ca.long() * len(fb) + cb.long()
    return torch.where(gone, MASKED, classes).to(torch.uint8), (fa[:, None] * fb[None, :]).flatten()


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and bool(torch.equal(a, b)))


# --- stages 4 and 5 -------------------------------------------------------------------------------------------------


def _bias(parts: list[tuple[str, Tensor]]) -> Tensor | None:
    total: Tensor | None = None
    for _, bias in parts:
        total = bias if total is None else total + bias
    return total


def _labels(parts: list[tuple[str, Labels]]) -> Labels | None:
    """Intersect: a pair is admitted if every method admits it. The labels of the product are pairs of labels."""
    if not parts:
        return None
    (owner, merged), rest = parts[0], parts[1:]
    names = [owner]
    for other, labels in rest:
        count = merged.count * labels.count
        if count > LABEL_LIMIT:
            raise ConflictError(" and ".join(names), other, f"together they need {count} kinds of token and {LABEL_LIMIT} fit", "Use fewer subjects or regions on this model.")
        allow = torch.zeros(torch.broadcast_shapes(merged.allow_q.shape, labels.allow_q.shape), dtype=torch.int64, device=merged.allow_q.device)
        for a in range(merged.count):
            for b in range(labels.count):
                allow |= ((merged.allow_q >> a) & (labels.allow_q >> b) & 1) << (a * labels.count + b)
        merged = Labels((merged.label_k.long() * labels.count + labels.label_k.long()).to(torch.int8), allow, count)
        names.append(other)
    if len(names) > 1:
        _refuse_empty_rows(names, merged)
    return merged


def _refuse_empty_rows(names: list[str], labels: Labels) -> None:
    present = torch.zeros_like(labels.allow_q[..., :1])
    for label in range(labels.count):
        found = (labels.label_k == label).any(-1, keepdim=True)
        present = present | (found.long() << label)
    empty = int(((labels.allow_q & present) == 0).sum())
    if empty:
        raise ConflictError(
            " and ".join(names[:-1]), names[-1], f"{empty} tokens would be allowed to see nothing at all", "Make their masks overlap, or use them in different percent windows."
        )


# --- stages 7 and 10 ------------------------------------------------------------------------------------------------


def _head_mix(parts: list[tuple[str, HeadMix]]) -> tuple[HeadMix, ...]:
    for i, (owner, a) in enumerate(parts):
        for other, b in parts[i + 1 :]:
            both = ((a.amount != 0) & (b.amount != 0)).nonzero().flatten().tolist()
            if both:
                raise ConflictError(owner, other, f"both change head {both[0]} of this block", "Give them different heads or different blocks.")
    return tuple(m for _, m in parts)


def _row_edits(parts: list[tuple[str, RowEdit]]) -> tuple[RowEdit, ...]:
    for i, (owner, a) in enumerate(parts):
        for other, b in parts[i + 1 :]:
            if bool(torch.isin(a.rows, b.rows).any()):
                raise ConflictError(owner, other, "both write the same output tokens", "Make their masks disjoint.")
    return tuple(e for _, e in parts)
