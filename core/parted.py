"""One call in parts: some batch elements follow a plan of their own, the others stay as they are without it.

For methods that mix pictures of one batch: the references among them must come out as if the method were not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from ..kernels.plan import Aside, ExtraKV, Labels, RowEdit
from .errors import ConflictError
from .weave import Draft

if TYPE_CHECKING:
    from .call import AttentionCall

Elements = tuple[int, ...]


def parted(draft: Draft) -> list[tuple[Elements, Draft]]:
    """The batch elements of each part with the draft for them alone; what was asked of the whole call is in all of them.

    Raises ConflictError where it cannot be cut: two methods that part the batch differently, and readings of probabilities.
    """
    taken: dict[int, tuple[str, ...]] = {}
    for elements, own in draft.parts.items():
        for element in elements:
            if element in taken:
                first, second = (next(iter(names), "a method") for names in (taken[element], own.owners))
                raise ConflictError(first, second, "both rule over the same pictures of the batch", "Use them in different percent windows.")
            taken[element] = own.owners
    owner = next((own.owners[0] for own in draft.parts.values() if own.owners), "a method")
    if draft.probes:
        raise ConflictError(owner, draft.probes[0][0], "one reads the attention of the whole batch and the other parts it", "Use them on different blocks.")
    whole = [*(s[0] for s in draft.swaps), *(r[0] for r in draft.reworks), *(r[0] for r in draft.results)]
    if whole:
        raise ConflictError(owner, whole[0], "one changes the attention of the whole batch and the other parts it", "Use them on different blocks.")
    for name, _ in draft.sparse:
        draft.leave(name, f"{owner} rules over part of the batch here, so it stays dense")
    rest = tuple(e for e in range(draft.call.batch) if e not in taken)
    parts = [(elements, _joined(_cut(draft, elements), own)) for elements, own in draft.parts.items()]
    return [*parts, (rest, _cut(draft, rest))] if rest else parts


def _joined(common: Draft, own: Draft) -> Draft:
    out = Draft(common.call, left=[*common.left, *own.left], backends=[*common.backends, *own.backends])
    for name in ("rotations", "modulations", "biases", "labels", "segments", "mixes", "asides", "edits", "swaps", "reworks", "results"):
        getattr(out, name).extend([*getattr(common, name), *getattr(own, name)])
    return out


def _cut(draft: Draft, elements: Elements) -> Draft:
    """What was asked of the whole call, for some elements of its batch."""

    def cut(x: Tensor) -> Tensor:
        return x if x.shape[0] == 1 else x[list(elements)]

    out = Draft(_call(draft.call, elements), left=list(draft.left), backends=list(draft.backends))
    out.rotations, out.modulations, out.mixes = list(draft.rotations), list(draft.modulations), list(draft.mixes)
    out.biases = [(n, cut(b)) for n, b in draft.biases]
    out.labels = [(n, Labels(cut(x.label_k), cut(x.allow_q), x.count)) for n, x in draft.labels]
    out.segments = [(n, ExtraKV(cut(e.k), cut(e.v), None if e.bias is None else cut(e.bias), e.rows)) for n, e in draft.segments]
    out.asides = [(n, a) for n, aside in draft.asides if (a := _aside(n, aside, elements, draft)) is not None]
    out.edits = [(n, RowEdit(e.rows, e.weight, None if e.values is None else cut(e.values), e.copy_from)) for n, e in draft.edits]
    return out


def _aside(owner: str, aside: Aside, elements: Elements, draft: Draft) -> Aside | None:
    """An aside whose bases lie in another part cannot be cut."""
    kept = [i for i, element in enumerate(aside.elements) if element in elements]
    if not kept:
        return None
    if any(aside.bases[i] not in elements for i in kept):
        other = next(own.owners[0] for own in draft.parts.values())
        raise ConflictError(owner, other, "one compares pictures of the batch that the other parts", "Use them on different blocks.")
    k, v = (x if x.shape[0] == 1 else x[kept] for x in (aside.k, aside.v))
    place = {element: i for i, element in enumerate(elements)}
    return replace(aside, k=k, v=v, elements=tuple(place[aside.elements[i]] for i in kept), bases=tuple(place[aside.bases[i]] for i in kept))


def _call(call: AttentionCall, elements: Sequence[int]) -> AttentionCall:
    return replace(call, batch=len(elements))
