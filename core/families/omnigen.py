"""OmniGen2, and Boogu in hosts later than ComfyUI 0.3.75; Boogu tried with 0.33.

Refiners of the text, of the picture and of the reference pictures, then joint attention over text, reference pictures, picture. Boogu
begins with double blocks: that joint attention, then self-attention over reference pictures, picture.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Block, Span, TokenLayout
from .base import Family, Laid, Place, RopePlane, Unclear, grid_span, inside, joint, layout, length, mark_forward, number, picture_tokens, tokens
from .wan import last_axes

STACKS = {"block": "layers", "double": "double_stream_layers", "single": "single_stream_layers"}
"""Our kind of block -> the host's list of them; OmniGen2 has the first, Boogu the others."""
REFINERS = ("context_refiner", "noise_refiner", "ref_image_refiner")


class OmniGen2(Family):
    """Adapter of ``comfy.ldm.omnigen.omnigen2`` and ``comfy.ldm.boogu.model``."""

    name = "OmniGen2 / Boogu"
    classes = ("OmniGen2Transformer2DModel", "BooguTransformer2DModel")
    joint = True

    def blocks(self, model: Any) -> list[Block]:
        return number({kind: len(getattr(model, stack, ())) for kind, stack in STACKS.items()})

    def install(self, patcher: Any) -> None:
        model = patcher.get_model_object("diffusion_model")
        for block in self.blocks(model):
            mark_forward(patcher, f"diffusion_model.{STACKS[block.kind]}.{block.index}", block)
        for kind in REFINERS:
            for index, _ in enumerate(getattr(model, kind)):
                mark_forward(patcher, f"diffusion_model.{kind}.{index}", Block(kind, index))

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        grid = (1, tokens(x.shape[2], model.patch_size), tokens(x.shape[3], model.patch_size))
        reference = picture_tokens(extra.get("ref_latents"), model.patch_size)
        text = Span("text", length(context))
        sequence = layout(text, Span("reference", reference), grid_span(grid, True))
        return Laid(grid, text.length, reference, True, sequence=sequence, prompt=layout(text))

    def mark(self, options: dict[str, Any], model: Any) -> None:
        """Done by :meth:`install`: the host has no block replace here."""

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        mark = inside(options)
        pictures = TokenLayout(geometry.sequence.spans[len(geometry.prompt.spans) :])
        match mark.block.kind, mark.calls:
            case "context_refiner", 0:
                return Place(mark.block, "other", geometry.prompt, geometry.prompt)
            case "noise_refiner", 0:
                picture = layout(grid_span(geometry.grid, True))
                return Place(mark.block, "self", picture, picture)
            case "ref_image_refiner", 0:
                references = TokenLayout(pictures.spans[:-1])
                return Place(mark.block, "other", references, references)
            case "double", 1:
                return Place(mark.block, "self", pictures, pictures)
            case _, 0:
                return joint(mark, geometry)
        raise Unclear(f"{mark.block}: attention call number {mark.calls + 1}")

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane | None:
        return last_axes(model.rope_embedder)
