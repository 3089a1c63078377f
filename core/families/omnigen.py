"""OmniGen2, and Boogu in hosts later than ComfyUI 0.3.75; Boogu tried with 0.33.

Refiners of the text, of the picture and of the reference pictures, then joint attention over text, reference pictures, picture. Boogu
begins with double blocks: that joint attention, then self-attention over reference pictures, picture.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Span, TokenLayout
from .base import Family, Laid, Place, RopePlane, Unclear, grid_span, inside, joint, laid, layout, length, picture_tokens, tokens
from .rotary import last_axes


class OmniGen2(Family):
    """Adapter of ``comfy.ldm.omnigen.omnigen2`` and ``comfy.ldm.boogu.model``."""

    name = "OmniGen2 / Boogu"
    classes = ("OmniGen2Transformer2DModel", "BooguTransformer2DModel")
    joint = True
    # OmniGen2 has the first, Boogu the others
    stacks = {"block": "layers", "double": "double_stream_layers", "single": "single_stream_layers"}
    word_stacks = ("block", "double", "single")
    side_stacks = {"context_refiner": "context_refiner", "noise_refiner": "noise_refiner", "ref_image_refiner": "ref_image_refiner"}

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        grid = (1, tokens(x.shape[2], model.patch_size), tokens(x.shape[3], model.patch_size))
        reference = picture_tokens(extra.get("ref_latents"), model.patch_size)
        text = Span("text", length(context))
        return laid(grid, True, text, Span("reference", reference), grid_span(grid, True))

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
