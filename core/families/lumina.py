"""Lumina 2 and Z-Image, also in the space of pixels: text refiner, picture refiner, then joint attention over text, picture.

Z-Image pads text and picture each to whole multiples of 32 tokens with learned padding tokens, behind the real ones. With reference
pictures (hosts later than ComfyUI 0.3.75) their own texts stand before and behind the prompt, what an image encoder makes of them,
refined by itself, behind all texts, and they before the picture: each with such padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..call import Span, SpanKind, TokenLayout
from .base import NOTHING, Family, Laid, Place, RopePlane, grid_span, inside, joint, layout, length, picture_tokens, tokens
from .rotary import stretched_axes

REFINERS = {"context_refiner": "prompt", "siglip_refiner": "seen", "noise_refiner": "pictures"}
"""Stacks of side blocks, and which part of the tokens each runs on."""


@dataclass(frozen=True)
class LaidInParts(Laid):
    """seen: what an image encoder makes of the reference pictures; pictures: those and the generated one. With padding."""

    seen: TokenLayout = NOTHING
    pictures: TokenLayout = NOTHING


class Lumina(Family):
    """Adapter of ``comfy.ldm.lumina.model``."""

    name = "Lumina 2 / Z-Image"
    classes = ("NextDiT",)
    joint = True
    stacks = {"block": "layers"}
    word_stacks = ("block",)
    side_stacks = {"context_refiner": "context_refiner", "siglip_refiner": "siglip_refiner", "noise_refiner": "noise_refiner"}

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        grid = (1, tokens(x.shape[2], model.patch_size), tokens(x.shape[3], model.patch_size))
        text = length(context)
        multiple = getattr(model, "pad_tokens_multiple", None) or 1
        references, around = extra.get("ref_latents") or (), extra.get("ref_contexts") or ()
        sizes = [picture_tokens([y], model.patch_size) for y in references]
        # padding stands where a reference picture has no text of its own
        texts = [around[i].shape[1] if i < len(around) else multiple for i, _ in enumerate(references)]
        behind = [y.shape[1] for y in around[len(references) :]] if references else []
        seen = self._seen(model, extra.get("siglip_feats") or (), len(references), multiple)
        words = layout(*_beside("other", texts, multiple), *padded(Span("text", text), multiple), *_beside("other", behind, multiple))
        pictures = layout(*_beside("reference", sizes, multiple), *padded(grid_span(grid, True), multiple))
        sequence = TokenLayout(words.spans + seen.spans + pictures.spans)
        return LaidInParts(grid, text, sum(sizes), True, sequence=sequence, prompt=words, seen=seen, pictures=pictures)

    @staticmethod
    def _seen(model: Any, features: Any, references: int, multiple: int) -> TokenLayout:
        """What an image encoder makes of the reference pictures; padding for those it was not shown and for the generated one."""
        if not references or getattr(model, "siglip_embedder", None) is None:
            return NOTHING
        sizes = [y.shape[1] * y.shape[2] for y in features[:references]]
        return layout(*_beside("reference", sizes, multiple), Span("other", multiple * (references - len(sizes) + 1)))

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        mark = inside(options)
        if mark.block.kind in REFINERS and isinstance(geometry, LaidInParts):
            part, kind = getattr(geometry, REFINERS[mark.block.kind]), "self" if mark.block.kind == "noise_refiner" else "other"
            return Place(mark.block, kind, part, part)  # type: ignore[arg-type]
        return joint(mark, geometry)

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane | None:
        """The host lets other nodes stretch both axes."""
        return stretched_axes(model.rope_embedder, options.get("rope_options"))


def padded(span: Span, multiple: int) -> tuple[Span, Span]:
    """A span and what fills it up to whole multiples."""
    return span, Span("other", -span.length % multiple)


def _beside(kind: SpanKind, sizes: list[int], multiple: int) -> list[Span]:
    return [span for n in sizes for span in padded(Span(kind, n), multiple)]
