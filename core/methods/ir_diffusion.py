"""IR-Diffusion: several subjects look like their reference pictures and do not blend into each other, without training.

Source: He et al., "Improving Multi-Subject Consistency in Open-Domain Image Generation with Isolation and Reposition Attention",
arXiv 2411.19261; the mixing of texts is that of the base system DreamStory, arXiv 2407.12899. Written from the rules; no code was
taken. References and scene are one batch, the references first (``core/subject_batch.py``). In the scene's rows:

isolation     tokens of one subject do not attend to tokens of another: labels, in every self- or joint attention
reposition    tokens of a subject attend to its reference as well, cropped, resized and moved to the subject's place: one extra
              segment of keys and values per subject, in the later layers. Rotary models: keys are turned to their new place
mixed texts   in cross-attention the tokens of a subject read mostly the text of its own portrait: asides

The references' rows are left as they are: their part of the batch takes the model's own attention (``core/parted.py``). Or references are
sampled aside (``core/side_call.py``): then the batch holds scenes alone, and what is read of a reference was kept from its own call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from ...kernels.plan import Aside, ExtraKV, Labels
from ...kernels.stages import rotate
from ..beside import SidePass, notes_key
from ..draws import Draws
from ..errors import LoomError
from ..isolation import isolated
from ..places import apart_on_grid, bounds, on_grid
from ..reposition import Moved, in_place, repositioned
from ..texts import elements
from .referenced import ReferencedMethod

if TYPE_CHECKING:
    from ..call import AttentionCall, Geometry
    from ..concepts import Located
    from ..families.base import Family
    from ..weave import Draft

Reading = Literal["reposition", "in place", "off"]
READINGS = ("reposition", "in place", "off")
MOST = 16
"""Subjects."""
START = {"SD 1.5 / SDXL": 36 / 70, "SD3": 12 / 38, "FLUX": 6 / 57, "Qwen-Image": 20 / 60}
"""Share of the layers before the first that reads references: 36 of 70 is the source's for SDXL; the others are chosen after it."""
ROTARY = ("FLUX", "Qwen-Image")
AUTO = -1
SELF, CROSS = "attn1/", "attn2/"
"""Slots in which other nodes replace the attention of a U-Net's block."""


@dataclass(frozen=True, eq=False)
class IRDiffusion(ReferencedMethod):
    """Settings. scene fp32 [1 or targets, S, h, w]: where each subject is in the scene; references fp32 [S, h, w]: and in its own picture.

    strength: weight of the references beside the scene's own tokens, and of the mixed texts; isolation knows no part of a way.
    reading: how references are read. start_layer: first that reads them, :data:`AUTO` = the family's. read_from, read_to: share of
    the sampling in which they are read. dropout: share of a subject's tokens that do not read its reference, drawn anew at each
    step from ``seed``. beside: references sampled aside, None where they stand in the batch. cross: lambda of the mixed texts. bias: on the logits of references. threshold: of masks on token grids, 0 = Otsu's.
    words: where each subject stands in the scene's prompt; its words are then hidden from the others' tokens. None: they are not.
    """

    owner: ClassVar[str] = "Keep Subjects Consistent (IR-Diffusion)"
    needs_grid: ClassVar[bool] = True
    __eq__, __hash__ = object.__eq__, object.__hash__

    scene: Tensor = field(repr=False)
    references: Tensor = field(repr=False)
    strength: float = 1.0
    isolation: bool = True
    reading: Reading = "reposition"
    start_layer: int = AUTO
    read_from: float = 0.0
    read_to: float = 1.0
    dropout: float = 0.5
    cross: float = 0.9
    bias: float = 0.0
    threshold: float = 0.5
    seed: int = 0
    allow_missing: bool = False
    words: Located | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, value in (("strength", self.strength), ("cross_lambda", self.cross), ("reference_start", self.read_from), ("reference_end", self.read_to)):
            if not 0.0 <= value <= 1.0:
                raise LoomError(f"{name} {value:g} was given; it lies between 0 (off) and 1.")
        if not 0.0 <= self.dropout <= 0.95:
            raise LoomError(f"query_dropout {self.dropout:g} was given; it lies between 0 and 0.95.")
        if not 0.0 <= self.threshold <= 0.95:
            raise LoomError(f"mask_threshold {self.threshold:g} was given; it lies between 0.05 and 0.95, or is 0 for a threshold found for each mask.")
        if self.reading not in READINGS:
            raise LoomError(f"references '{self.reading}' was given; choose one of {', '.join(READINGS)}.")
        count = self.scene.shape[1]
        if count != len(self.references):
            raise LoomError(f"{count} scene masks and {len(self.references)} reference masks were given; connect one of each per subject, in the same order.")
        if self.beside is not None and count != len(self.beside.prompts):
            raise LoomError(f"{count} subjects have masks and {len(self.beside.prompts)} references were given; connect one of each per subject, in the same order.")
        if self.words is not None and count != len(self.words.concepts):
            raise LoomError(f"{count} subjects have masks and subject_words names {len(self.words.concepts)}; write one line per subject, in the order of the masks.")
        if count > MOST:
            raise LoomError(f"{count} subjects were given and {MOST} fit; take some out.")
        for number in range(count):
            self._filled(self.references[number : number + 1], f"subject {number + 1} has an empty reference mask")
            self._filled(self.scene[:, number], f"subject {number + 1} has an empty scene mask")

    def _filled(self, masks: Tensor, sentence: str) -> None:
        if not self.allow_missing and not bool((masks > 0).flatten(1).any(1).all()):
            raise LoomError(f"{sentence}; paint where it is, or switch allow_missing on to leave it uncontrolled.")

    @property
    def subjects(self) -> int:
        """S."""
        return len(self.references)

    @property
    def _first(self) -> int:
        """Place of the first scene in the batch."""
        return self.subjects if self.beside is None else 0

    def needs_references(self, progress: float) -> bool:
        """Whether anything reads references at this part of the sampling."""
        return self.cross > 0 or (self.reading != "off" and self._inside(progress))

    def _inside(self, progress: float) -> bool:
        return self.read_from <= progress < self.read_to or (self.read_to >= 1.0 and progress >= self.read_from)

    @property
    def off(self) -> bool:
        """No subject, no strength, or nothing to do: one subject has nobody to be isolated from."""
        idle = (not self.isolation or self.subjects < 2) and self.reading == "off" and self.cross == 0.0
        return super().off or self.strength == 0.0 or self.subjects == 0 or idle or not bool((self.scene > 0).any())

    def check_family(self, family: Family, model: Any) -> None:
        """Picture models whose tokens and positions are known."""
        if family.name not in START or (family.name == "SD 1.5 / SDXL" and family.text_width(model) is None):
            raise LoomError(f"{self.owner} works on pictures and was given {family.name}; connect {', '.join(START)}.")
        if family.name in ROTARY and self.reading == "reposition" and family.plane(model, {}) is None:
            raise LoomError(f"{self.owner} cannot read the rotary positions of this {family.name} model (FLUX.2 has others); set references to 'in place' or 'off'.")
        total = len(family.blocks(model))
        if self.start_layer >= total:
            raise LoomError(f"start_layer {self.start_layer} was given and the model has {total} layers; give 0 to {total - 1}, or {AUTO} for the family's default.")

    def check_run(self, family: Family, geometry: Geometry, warn: Any) -> None:
        """The batch holds the references and the scene; masks have the picture's shape."""
        self._targets(geometry.batch)
        _, y, x = geometry.grid
        for name, masks in (("scene", self.scene), ("reference", self.references)):
            h, w = masks.shape[-2:]
            if abs(h / w * x - y) > 1 and abs(w / h * y - x) > 1:
                raise LoomError(f"the {name} masks are {w} x {h} and the picture has {x} x {y} tokens, which is another shape; make the masks as the picture is.")
        if family.joint and self.cross > 0:
            warn(f"{self.owner}: this model has no cross-attention, so the portraits' texts are not mixed in")
        if self.words is not None and not family.joint:
            warn(f"{self.owner}: this model reads text in cross-attention, where cross_lambda keeps the subjects' words apart; subject_words does nothing")

    def check_prompts(self, prompts: dict[str, list[dict[str, Any]]], batch: int) -> None:
        """In one batch with the scene each picture has its row in each prompt."""
        if self.beside is not None:
            return
        cure = "connect the three outputs of Subjects and Scene in One Batch to the sampler"
        for name, entries in prompts.items():
            if len(entries) > 1:
                raise LoomError(f"the {name} prompt consists of {len(entries)} conditionings and {self.owner} takes one with a row per picture; take Combine and area nodes out.")
            for text in (entry.get("cross_attn") for entry in entries):
                if text is not None and len(text) != batch and (len(text) > 1 or name == "positive"):
                    raise LoomError(f"the {name} prompt has {len(text)} rows and the latent {batch} pictures, portraits first; {cure}.")

    def _targets(self, batch: int) -> int:
        """Scenes in a batch that begins with the references."""
        targets = batch - self._first
        if self.beside is not None and len(self.scene) not in (1, batch):
            raise LoomError(f"the latent has {batch} pictures, and masks of {len(self.scene)} scenes were given; connect masks of one scene, or of each.")
        if targets < 1 or (len(self.scene) > 1 and len(self.scene) != targets):
            raise LoomError(
                f"the latent has {batch} pictures, and the masks are for {self.subjects} references and {len(self.scene)} scenes, references first; "
                "connect the three outputs of Subjects and Scene in One Batch to the sampler."
            )
        return targets

    def wants(self, call: AttentionCall) -> bool:
        """Attention among the picture's tokens, and to the text where that is apart."""
        return call.q.grid_span is not None and (call.kind in ("self", "joint") or (call.kind == "cross" and self.cross > 0))

    def contribute(self, call: AttentionCall, draft: Draft) -> None:
        """Stages 5, 6 and 9."""
        self._insist(call)
        if isinstance(call.extra, SidePass):
            if self.beside is not None:
                self._keep(call, call.extra)
            return
        draft.prefer(self.owner, self.backend)
        made = False
        for scene, group in self._groups(call):
            if call.kind == "cross":
                self._mix(call, draft, scene, group)
            elif self._write(call, draft, scene, group):
                made = True
        if call.kind != "cross" and not made:
            draft.leave(self.owner, "one subject alone, in a layer or step that reads no reference" if self.subjects < 2 else "a layer or step that reads no reference")

    def _insist(self, call: AttentionCall) -> None:
        if call.frames is not None:
            raise LoomError(f"{self.owner} cannot work with context windows, which cut the batch into parts; take the context window node out.")
        slots = (SELF, CROSS) if self.cross > 0 else (SELF,)
        taken = next((name for name in call.replaced if name.startswith(slots)), None)
        if taken is not None:
            raise LoomError(f"{self.owner} would miss a block: another node replaces its attention ({taken}). Take that node out{_or_texts(taken)}.")
        if call.run is not None and call.run.whole is not None and call.run.grid != call.run.whole:
            raise LoomError(f"{self.owner} cannot work with a conditioning of an area, in which masks of the whole picture mean nothing; take the area off the prompt.")

    # --- who is where ---------------------------------------------------------------------------------------------------

    def _groups(self, call: AttentionCall) -> Iterator[tuple[int, tuple[tuple[int, int], ...]]]:
        """(scene mask, elements) for batch elements that follow the same masks; each with the first element of its chunk."""
        chunks = elements(call)
        targets = self._targets(len(chunks[0]))
        each = [tuple((c.start + self._first + t, c.start) for c in chunks) for t in range(targets)]
        if len(self.scene) > 1:
            yield from enumerate(each)
        else:
            yield 0, tuple(sorted(pair for pairs in each for pair in pairs))

    def _masks(self, call: AttentionCall, scene: int) -> tuple[Tensor, Tensor]:
        """bool [S, y, x]: the subjects' tokens in the scene and in their references."""
        _, y, x = call.q.grid  # type: ignore[misc]

        def make() -> tuple[Tensor, Tensor]:
            return apart_on_grid(self.scene[scene], y, x, self.threshold), on_grid(self.references, y, x, self.threshold)

        return self._kept(call, ("masks", scene, y, x), make)

    def _kept(self, call: AttentionCall, what: tuple[Any, ...], make: Any) -> Any:
        return call.kept((self.owner, id(self), *what), make)

    # --- self and joint attention ---------------------------------------------------------------------------------------

    def _write(self, call: AttentionCall, draft: Draft, scene: int, group: tuple[tuple[int, int], ...]) -> bool:
        """Labels and segments for some elements; whether there were any."""
        labels = self._labels(call, scene, group) if self.isolation and self.subjects > 1 else None
        segments = list(self._segments(call, scene, group)) if self._reads(call) else []
        if labels is None and not segments:
            return False
        part = draft.part(tuple(element for element, _ in group))
        if labels is not None:
            part.admit(self.owner, labels)
        for segment in segments:
            part.extend(self.owner, segment)
        return True

    def _reads(self, call: AttentionCall) -> bool:
        """Whether references are read in this layer and step."""
        start = self.start_layer if self.start_layer >= 0 else round(START.get(call.family, 0.5) * call.block.total)
        return self.reading != "off" and call.block.ordinal >= start and self._inside(call.progress)

    def _labels(self, call: AttentionCall, scene: int, group: tuple[tuple[int, int], ...]) -> Labels:
        """Isolation; the words of the scene's prompt are hidden where it is that prompt that is read."""
        size = call.batch // len(call.rows)
        named = tuple(self.words is not None and call.kind == "joint" and call.rows[e // size] == 0 for e, _ in group)

        def make(words: Located | None) -> Labels:
            masks, _ = self._masks(call, scene)
            made = isolated(masks, call.q, words)
            return Labels(made.label_k.to(call.device), made.allow_q.to(call.device), made.count)

        def each() -> Labels:
            own = [make(self.words if name else None) for name in (named if any(named) and not all(named) else named[:1])]
            return Labels(torch.cat([x.label_k for x in own]), torch.cat([x.allow_q for x in own]), max(x.count for x in own))

        return self._kept(call, ("labels", scene, named, call.q, str(call.device)), each)

    def _segments(self, call: AttentionCall, scene: int, group: tuple[tuple[int, int], ...]) -> Iterator[ExtraKV]:
        """The references of all subjects as keys and values [E, H, n, D] for the elements of a group."""
        assert call.seen is not None
        rows = self._rows(call, scene)
        bias = self.bias + math.log(self.strength)
        for i in range(self.subjects):
            moved = self._moved(call, scene, i)
            if moved is None:
                continue
            if self.beside is None:
                own = [first + i for _, first in group]
                k, v = _picked(call, own, moved)
            else:
                k, v = self._kept_of(call, scene, i, group)
            weight = None if bias == 0 else torch.full((1, 1, k.shape[2]), bias, device=k.device)
            yield ExtraKV(k, v, weight, rows[i])

    def _moved(self, call: AttentionCall, scene: int, subject: int) -> _Placed | None:
        """Which of the reference's keys go where, as places in the call's own order; None for a subject that is not found."""

        def make() -> _Placed | None:
            scenes, references = self._masks(call, scene)
            if bool(references[subject].any()) and not self._wide_enough(references[subject], subject):
                return None
            move: Moved | None = (repositioned if self.reading == "reposition" else in_place)(references[subject], scenes[subject])
            if move is None:
                return None
            offset = call.q.grid_span[0]  # type: ignore[index]
            turns = call.plane is not None and bool(move.shift.any())
            return _Placed((move.source + offset).to(call.device), move.shift.to(call.device), turns)

        return self._kept(call, ("moved", scene, subject, call.q, str(call.device)), make)

    def _wide_enough(self, mask: Tensor, subject: int) -> bool:
        """Whether a reference has tokens enough in this layer to be cropped and resized; False where it may be left alone."""
        top, bottom, left, right = bounds(mask)
        if self.reading != "reposition" or (top < bottom and left < right):
            return True
        if self.allow_missing:
            return False
        raise LoomError(
            f"the reference mask of subject {subject + 1} is {right - left + 1} x {bottom - top + 1} tokens where the picture has {mask.shape[1]} x {mask.shape[0]}, too few to "
            "crop and resize; use a larger picture or a portrait that shows more of the subject, raise start_layer, or switch allow_missing on to leave it out of such layers."
        )

    def _rows(self, call: AttentionCall, scene: int) -> Tensor:
        """bool [S, Nq]: which tokens read their reference at this step."""

        def make() -> Tensor:
            masks, _ = self._masks(call, scene)
            y, x = masks.shape[1:]
            made = Draws(self.seed, call.step, y * x, scene).kept(masks.flatten(1), self.dropout)
            return call.q.along(made.T, False).T.contiguous().to(call.device)

        return self._kept(call, ("rows", scene, call.step, call.q, str(call.device)), make)

    # --- references aside -----------------------------------------------------------------------------------------------

    def _keep(self, call: AttentionCall, mark: SidePass) -> None:
        """What the scene will read of the reference under way: its keys and values where they go, or its text's."""
        assert call.seen is not None
        place = (call.block, call.kind, call.turn, mark.role, mark.subject)
        if call.kind == "cross":
            mark.notes[(*place, 0)] = (call.seen.k, call.seen.v)
            return
        for scene in range(len(self.scene)) if self._reads(call) else ():
            moved = self._moved(call, scene, mark.subject)
            if moved is not None:
                mark.notes[(*place, scene)] = _picked(call, [0], moved)

    def _kept_of(self, call: AttentionCall, scene: int, subject: int, group: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
        """Keys and values [E, H, n, D] of a reference for the elements of a group, each by its prompt's role."""
        notes = {} if call.run is None else call.run.state.get(notes_key(self), {})
        size = call.batch // len(call.rows)
        found = [notes.get((call.block, call.kind, call.turn, min(call.rows[e // size], 1), subject, scene)) for e, _ in group]
        if any(f is None for f in found):
            raise LoomError(f"{self.owner} found no reference in {call.block}: another node skips or replaces this block where references run alone. Take that node out.")
        k, v = (torch.cat([f[n] for f in found if f is not None]) for n in (0, 1))
        return k, v

    # --- cross-attention ------------------------------------------------------------------------------------------------

    def _mix(self, call: AttentionCall, draft: Draft, scene: int, group: tuple[tuple[int, int], ...]) -> None:
        """Each subject's tokens read the text of its portrait, in the share lambda."""
        assert call.seen is not None
        masks, _ = self._masks(call, scene)
        offset = call.q.grid_span[0]  # type: ignore[index]
        for i, mask in enumerate(masks):
            rows = self._kept(call, ("place", scene, i, call.q, str(call.device)), lambda mask=mask: (mask.flatten().nonzero()[:, 0] + offset).to(call.device))
            if not len(rows):
                continue
            weight = torch.full((len(rows),), self.strength * self.cross, device=call.device)
            for part in self._by_prompt(call, group):
                own = [first + i for _, first in part]
                k, v = (call.seen.k[own], call.seen.v[own]) if self.beside is None else self._kept_of(call, 0, i, part)
                each = tuple(range(len(part)))
                draft.part(tuple(element for element, _ in part)).aside(self.owner, Aside(k, v, rows, weight, each, each))

    def _by_prompt(self, call: AttentionCall, group: tuple[tuple[int, int], ...]) -> list[tuple[tuple[int, int], ...]]:
        """References aside read prompts of their own, which need not be as long as the negative one: a part for each."""
        if self.beside is None:
            return [group]
        size, parts = call.batch // len(call.rows), {}  # type: ignore[var-annotated]
        for element, first in group:
            parts.setdefault(min(call.rows[element // size], 1), []).append((element, first))
        return [tuple(part) for part in parts.values()]


def _or_texts(slot: str) -> str:
    return ", or set cross_lambda to 0" if slot.startswith(CROSS) else ""


@dataclass(frozen=True, eq=False)
class _Placed:
    """source int64 [n]: keys of the call; shift fp32 [n, 2]: rows and columns; turns: whether positions must be turned."""

    source: Tensor
    shift: Tensor
    turns: bool


def _picked(call: AttentionCall, own: list[int], moved: _Placed) -> tuple[Tensor, Tensor]:
    """Keys and values [E, H, n, D] of batch elements, at the place they are moved to."""
    assert call.seen is not None
    k, v = (torch.stack([x[e].index_select(1, moved.source) for e in own]) for x in (call.seen.k, call.seen.v))
    if moved.turns:
        k = rotate(k, moved.shift, call.plane.freqs.float().to(k.device), call.plane.pairing)  # type: ignore[union-attr,attr-defined]
    return k, v
