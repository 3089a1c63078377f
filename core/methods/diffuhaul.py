"""DiffUHaul: one object of a picture is dragged to another place, without training.

Source: Avrahami, Gal, Chechik, Fried, Lischinski, Vahdat, Nie, "DiffUHaul: A Training-Free Method for Object Dragging in Images", arXiv 2406.01594.
Written from the paper's rules; no code was released. Two branches see the same prompt: the source s as the picture is, and the result d with the object
elsewhere. In every self-attention of d, with u the progress of the sampling::

    sharing     A_d  = softmax(Q_d K_s^T) V_s
    anchoring   A'_d = A_d + w(u) (A_s - A_d)                                     w: core/anchoring.py
    copying     A'_d[p] = A_s[q],  q = argmax over the object's old tokens of cos(A'_d[p], A_s[q])    from u = anchor_end on

The source is a picture seen aside (``core/source_call.py``) or the first of the sampler's own batch. What keeps objects to their places: GLIGEN with a
masked exchange (``core/masked_gligen.py``), or texts of their own, read only in their places: more keys in the cross-attention of U-Nets, spans of the
prompt in joint attention (``core/regional.py``). In joint attention sharing, anchoring and copying concern the picture's tokens alone, and rotary keys
of the object are turned to its new place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from ...kernels.plan import ExtraKV
from ...kernels.stages import rotate
from .. import regional
from ..anchoring import Anchoring
from ..beside import SidePass, notes_key
from ..drag import Dragged, Scene, owned
from ..errors import LoomError
from ..nearest import nearest
from ..texts import elements, projected
from .sourced import SourcedMethod

if TYPE_CHECKING:
    from ..call import AttentionCall, Geometry
    from ..families.base import Family
    from ..weave import Draft

Scope = Literal["auto", "all", "outside moved regions"]
SCOPES = ("auto", "all", "outside moved regions")
FAMILIES = ("SD 1.5 / SDXL", "SD3", "FLUX", "Qwen-Image")
ROTARY = ("FLUX", "Qwen-Image")
FIRST = 1 / 3
"""Share of the layers of a joint model before the first that reads the source, where the user names no blocks (our choice)."""
REPLACED = ("attn1/", "attn2/")


@dataclass(eq=False)
class Features:
    """What one self-attention made of the source's picture tokens, each [1, H, N, D]; out: before the output projection."""

    k: Tensor
    v: Tensor
    out: Tensor | None = None


@dataclass(frozen=True, eq=False)
class DiffUHaul(SourcedMethod):
    """Settings. scene: objects, the dragged one first, and its drag. texts: a text [1, M, C] for each object, as cross-attention reads it, or none.
    spans: tokens of each object's text behind the prompt, where text and picture stand in one attention, or none.

    share_from, share_to: share of the sampling in which keys and values are the source's. copy: how much of a copied row counts, 0 = no copying.
    scope: where features are anchored; "auto" is everywhere on U-Nets (the paper) and, where text and picture stand in one attention, everywhere but at the
    object's old and new place: there the object otherwise stays where it was. vacate: tokens where the object was do not see its keys, nor, where text and
    picture stand in one attention, the prompt. blocks: where the source is read; none chosen means all layers of a U-Net and the last two
    thirds of other models. force: run although nothing moves.
    """

    owner: ClassVar[str] = "Drag Object (DiffUHaul)"
    needs_grid: ClassVar[bool] = True

    scene: Scene
    texts: tuple[Tensor, ...] = field(default=(), repr=False)
    spans: tuple[int, ...] = ()
    anchoring: Anchoring = field(default_factory=Anchoring)
    scope: Scope = "auto"
    share_from: float = 0.0
    share_to: float = 1.0
    copy: float = 1.0
    vacate: bool = True

    def __post_init__(self) -> None:
        for name, value in (("share_start", self.share_from), ("share_end", self.share_to), ("copy_blend", self.copy)):
            if not 0.0 <= value <= 1.0:
                raise LoomError(f"{name} {value:g} was given; it lies between 0 and 1.")
        if self.scope not in SCOPES:
            raise LoomError(f"anchor_scope '{self.scope}' was given; choose one of {', '.join(SCOPES)}.")
        for texts, what in ((self.texts, "texts"), (self.spans, "spans")):
            if texts and len(texts) != len(self.scene.objects):
                raise LoomError(f"{len(self.scene.objects)} objects and {len(texts)} {what} were given; give one caption for each object.")

    def check_family(self, family: Family, model: Any) -> None:
        """Picture models whose tokens and positions are known."""
        if family.name not in FAMILIES or (family.name == "SD 1.5 / SDXL" and family.text_width(model) is None):
            raise LoomError(f"{self.owner} works on pictures and was given {family.name}; connect {', '.join(FAMILIES)}.")
        if family.name in ROTARY and family.plane(model, {}) is None:
            raise LoomError(f"{self.owner} cannot read the rotary positions of this {family.name} model (FLUX.2 has others); connect FLUX.1, SD3, Qwen-Image or a U-Net.")
        width = family.text_width(model)
        if self.texts and any(t.shape[-1] != width for t in self.texts):
            raise LoomError(f"the captions were encoded to a width of {self.texts[0].shape[-1]} and the model reads {width}; connect the CLIP that belongs to this model.")

    def check_run(self, family: Family, geometry: Geometry, warn: Any) -> None:
        """The mask has the picture's shape, and the batch what it must hold."""
        _, y, x = geometry.grid
        h, w = self.scene.objects[0].frame
        if abs(h / w * x - y) > 1 and abs(w / h * y - x) > 1:
            raise LoomError(f"the mask is {w} x {h} and the picture has {x} x {y} tokens, which is another shape; make the mask as the picture is.")
        if self.source is None and geometry.batch < 2:
            raise LoomError(f"{self.owner} draws the source and the result in one batch and was given {geometry.batch} picture; connect the node's own latent to the sampler.")

    def needs_source(self, progress: float) -> bool:
        """Sharing, anchoring and copying all read it; between them there is a part of the sampling with none only if all are off."""
        return self._shares(progress) or self.anchoring.weight(progress) > 0 or self._copies(progress)

    def _shares(self, progress: float) -> bool:
        return self.share_from <= progress < self.share_to or (self.share_to >= 1.0 and progress >= self.share_from)

    def _copies(self, progress: float) -> bool:
        return self.copy > 0 and self.anchoring.copies(progress)

    def wants(self, call: AttentionCall) -> bool:
        """Attention among the picture's tokens, and to the prompt where objects have texts of their own."""
        return call.q.grid_span is not None and (call.kind in ("self", "joint") or (call.kind == "cross" and bool(self.texts)))

    def contribute(self, call: AttentionCall, draft: Draft) -> None:
        """Keys and values of the source, pairs that may see each other, more text, and what becomes of the result."""
        if isinstance(call.extra, SidePass) and self.source is None:
            return
        self._insist(call)
        draft.prefer(self.owner, self.backend)
        features: dict[int, Features] = {}
        for own, source in self._sides(call):
            if call.kind == "cross":
                self._describe(call, draft, own, source)
                continue
            acts = self._acts(call) and (source or self.needs_source(call.progress))
            self._place(call, draft, own, source, acts)
            if not acts:
                draft.leave(self.owner, "a layer or step that does not read the source")
            elif source:
                self._keep(call, self._part(call, draft, own), own, features)
            else:
                self._edit(call, self._part(call, draft, own), own, features if self.source is None else self._noted(call))

    def _insist(self, call: AttentionCall) -> None:
        if call.frames is not None:
            raise LoomError(f"{self.owner} cannot work with context windows, which cut the batch into parts; take the context window node out.")
        taken = next((name for name in call.replaced if name.startswith(REPLACED)), None)
        if taken is not None:
            raise LoomError(f"{self.owner} would miss a block: another node replaces its attention ({taken}). Take that node out.")
        if call.run is not None and call.run.whole is not None and call.run.grid != call.run.whole:
            raise LoomError(f"{self.owner} cannot work with a conditioning of an area, in which masks of the whole picture mean nothing; take the area off the prompt.")
        if call.q.range("reference") is not None:
            raise LoomError(f"{self.owner} cannot work with reference pictures behind the picture's tokens; take the reference latent off the prompt.")

    # --- who is who -----------------------------------------------------------------------------------------------------

    def _sides(self, call: AttentionCall) -> Iterator[tuple[tuple[int, ...], bool]]:
        """Batch elements, and whether they are the source. Of each chunk of a batch with both the first is the source."""
        if self.source is not None:
            yield tuple(range(call.batch)), isinstance(call.extra, SidePass)
            return
        chunks = elements(call)
        yield tuple(c.start for c in chunks), True
        yield tuple(e for c in chunks for e in c if e != c.start), False

    def _role(self, call: AttentionCall, element: int) -> int:
        """0 for an element with the positive prompt, 1 for the negative one, more for a guider's others."""
        return call.rows[element * len(call.rows) // call.batch]

    def _part(self, call: AttentionCall, draft: Draft, own: tuple[int, ...]) -> Draft:
        return draft if len(own) == call.batch else draft.part(own)

    def _acts(self, call: AttentionCall) -> bool:
        if self.blocks.items or (call.kind == "self" and call.family == FAMILIES[0]):
            return call.block in self.blocks
        return call.block.ordinal >= round(FIRST * call.block.total)

    def _objects(self, call: AttentionCall) -> tuple[Dragged, ...]:
        _, y, x = call.q.grid  # type: ignore[misc]
        return self.scene.on(y, x)

    # --- what objects are -------------------------------------------------------------------------------------------------

    def _describe(self, call: AttentionCall, draft: Draft, own: tuple[int, ...], source: bool) -> None:
        """Cross-attention: the text of each object as more keys, for its tokens, under the positive prompt."""
        positive = tuple(e for e in own if self._role(call, e) == 0)
        if not positive:
            draft.leave(self.owner, "the negative prompt alone")
            return
        part = self._part(call, draft, positive)
        for i, (text, found) in enumerate(zip(self.texts, self._objects(call), strict=True)):
            k, v = projected(call, self.owner, text)
            part.extend(self.owner, ExtraKV(k, v, None, self._rows(call, i, found.old if source else found.new, source)))

    def _rows(self, call: AttentionCall, number: int, tokens: Tensor, source: bool) -> Tensor:
        """bool [Nq]: an object's tokens among the call's queries, on the device."""
        return call.kept((self.owner, id(self), "rows", number, source, call.q, str(call.device)), lambda: call.q.along(tokens, False).to(call.device))

    def _place(self, call: AttentionCall, draft: Draft, own: tuple[int, ...], source: bool, acts: bool) -> None:
        """Self- and joint attention: who may see whom."""
        shared = acts and not source and self._shares(call.progress)
        vacates = self.vacate and acts and not source
        roles = tuple(self._role(call, e) for e in own)
        spans = self.spans if call.kind == "joint" else ()
        if spans and 0 in roles:
            self._check_text(call)

        def make() -> Any:
            objects = self._objects(call)
            reads = tuple(o.old if source else o.new for o in objects)
            # shared keys show the objects where they were
            shows = tuple(o.old if source or shared else o.new for o in objects)
            first = objects[0]
            empty = vacates and bool(first.vacated.any()) and not bool(first.old.all())
            made = {role: regional.labels(call.q, spans if role == 0 else (), reads, shows, first.vacated if empty else None, self.owner) for role in set(roles)}
            stacked = regional.stacked([made[role] for role in roles], call.q.length)
            return None if stacked is None else type(stacked)(stacked.label_k.to(call.device), stacked.allow_q.to(call.device), stacked.count)

        found = call.kept((self.owner, id(self), "labels", roles, source, shared, vacates, call.q, str(call.device)), make)
        if found is not None:
            self._part(call, draft, own).admit(self.owner, found)

    def _check_text(self, call: AttentionCall) -> None:
        lo, hi = call.q.range("text") or (0, 0)
        if hi - lo <= sum(self.spans):
            raise LoomError(
                f"{self.owner}: the prompt has {hi - lo} tokens in {call.block} and the captions alone {sum(self.spans)}; connect the node's own positive output to the sampler."
            )

    # --- the source -------------------------------------------------------------------------------------------------------

    def _keep(self, call: AttentionCall, part: Draft, own: tuple[int, ...], features: dict[int, Features]) -> None:
        """Hold on to what this attention makes of the source."""
        assert call.seen is not None
        assert call.q.grid_span is not None
        offset, span = call.q.grid_span
        image = slice(offset, offset + span.length)
        for e in own:
            features[self._role(call, e)] = Features(call.seen.k[e : e + 1, :, image], call.seen.v[e : e + 1, :, image])
        if isinstance(call.extra, SidePass):
            for role, held in features.items():
                call.extra.notes[call.block, call.kind, call.turn, role] = held

        def read(out: Tensor) -> None:
            for i, e in enumerate(own):
                features[self._role(call, e)].out = out[i : i + 1, :, image]

        part.result(self.owner, read)

    def _noted(self, call: AttentionCall) -> dict[int, Features]:
        """What was held of the source in this attention, by role."""
        notes = {} if call.run is None else call.run.state.get(notes_key(self), {})
        roles = {self._role(call, e) for e in range(call.batch)}
        found: dict[int, Features] = {role: notes[where] for role in roles if (where := (call.block, call.kind, call.turn, role)) in notes}
        if len(found) < len(roles):
            raise LoomError(f"{self.owner} found no source in {call.block}: another node skips or replaces this block where the source runs alone. Take that node out.")
        return found

    # --- the result -------------------------------------------------------------------------------------------------------

    def _edit(self, call: AttentionCall, part: Draft, own: tuple[int, ...], features: dict[int, Features]) -> None:
        assert call.q.grid_span is not None
        each = [features[self._role(call, e)] for e in own]
        if self._shares(call.progress):
            part.swap(self.owner, *self._shared(call, own, each))
        weight = self._weight(call)
        copies = self._copies(call.progress)
        if weight is None and not copies:
            return
        offset, span = call.q.grid_span
        image = slice(offset, offset + span.length)

        def rework(out: Tensor) -> Tensor:
            source = torch.cat([f.out for f in each])  # type: ignore[misc]
            made = out[:, :, image]
            made = made if weight is None else torch.lerp(made, source, weight)
            made = self._copied(call, made, source) if copies else made
            if span.length == out.shape[2]:
                return made
            whole = out.clone()
            whole[:, :, image] = made
            return whole

        part.rework(self.owner, rework)

    def _shared(self, call: AttentionCall, own: tuple[int, ...], each: list[Features]) -> tuple[Tensor, Tensor]:
        """Keys and values [E, H, N, D] with the source's at the picture's tokens."""
        assert call.seen is not None
        assert call.q.grid_span is not None
        offset, span = call.q.grid_span
        k, v = torch.cat([f.k for f in each]), torch.cat([f.v for f in each])
        if call.plane is not None and not self.scene.rests(*call.q.grid[1:]):  # type: ignore[index]
            moves = call.kept((self.owner, id(self), "moves", call.q.grid, str(call.device)), lambda: self._objects(call)[0].moves.to(call.device))
            k = rotate(k, moves, call.plane.freqs.float().to(k.device), call.plane.pairing)  # type: ignore[attr-defined]
        if span.length == call.k.length:
            return k, v
        whole = call.seen.k[list(own)].clone(), call.seen.v[list(own)].clone()
        for all_, image in zip(whole, (k, v), strict=True):
            all_[:, :, offset : offset + span.length] = image
        return whole

    def _weight(self, call: AttentionCall) -> Tensor | float | None:
        """w for all tokens or for each [N, 1]; None for none."""
        w = self.anchoring.weight(call.progress)
        if w == 0:
            return None
        if self.scope == "all" or (self.scope == "auto" and call.family == FAMILIES[0]):
            return w

        def make() -> Tensor:
            first = self._objects(call)[0]
            return (~(first.old | first.new)).float()[:, None].to(device=call.device, dtype=call.dtype)

        return w * call.kept((self.owner, id(self), "outside", call.q.grid, str(call.device), call.dtype), make)

    def _copied(self, call: AttentionCall, made: Tensor, source: Tensor) -> Tensor:
        """Result [E, H, N, D] with the rows of every object copied from those of the source that are most like them."""
        out = made.clone()
        for e in range(len(made)):
            flat, own = made[e].transpose(0, 1).flatten(1), source[e].transpose(0, 1).flatten(1)
            for at, old, preferred in self._copies_of(call):
                rows = old[nearest(flat[at], own[old], preferred)]
                out[e, :, at] = torch.lerp(made[e, :, at], source[e, :, rows], self.copy)
        return out

    def _copies_of(self, call: AttentionCall) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each object: its tokens int64 [P] in the result, [Q] in the source, and for each of the former the one among the latter that a plain move brings."""

        def make() -> list[tuple[Tensor, Tensor, Tensor]]:
            objects = self._objects(call)
            out = []
            for found, new in zip(objects, owned(objects), strict=True):
                at, old = new.nonzero()[:, 0], found.old.nonzero()[:, 0]
                place = torch.zeros(len(found.old), dtype=torch.long)
                place[old] = torch.arange(len(old))
                if len(at):
                    out.append(tuple(t.to(call.device) for t in (at, old, place[found.back[at]])))
            return out  # type: ignore[return-value]

        return call.kept((self.owner, id(self), "copies", call.q.grid, str(call.device)), make)
