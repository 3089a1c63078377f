"""Krea 2: one joint attention per block over text, picture [, reference pictures]. In hosts later than ComfyUI 0.3.75; tried with 0.33.

Before the blocks the text is fused: twice each of its tokens attends over the layers of the text encoder it was taken from, a batch
element per token, and twice the tokens over each other.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Span
from .base import Family, Laid, Place, RopePlane, grid_span, inside, joint, laid, layout, length, picture_tokens, tokens
from .rotary import last_axes


class Krea(Family):
    """Adapter of ``comfy.ldm.krea2.model``."""

    name = "Krea 2"
    classes = ("SingleStreamDiT",)
    joint = True
    stacks = {"single": "blocks"}
    word_stacks = ("single",)
    side_stacks = {"layer_refiner": "txtfusion.layerwise_blocks", "refiner": "txtfusion.refiner_blocks"}

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        # [B, C, h, w] or [B, C, 1, h, w]
        grid = (1, tokens(x.shape[-2], model.patch), tokens(x.shape[-1], model.patch))
        if x.ndim not in (4, 5):
            raise IndexError(f"the latent has {x.ndim} axes, the model takes 4 or 5")
        heeded = extra.get("ref_latents_method", model.default_ref_method) is not None
        reference = picture_tokens(extra.get("ref_latents"), model.patch) if heeded else 0
        text = Span("text", length(context))
        return laid(grid, True, text, grid_span(grid, True), Span("reference", reference))

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        mark = inside(options)
        if mark.block.kind == "layer_refiner":
            return Place(mark.block, "other", layout(Span("other", nq)), layout(Span("other", nk)))
        if mark.block.kind == "refiner":
            return Place(mark.block, "other", geometry.prompt, geometry.prompt)
        return joint(mark, geometry)

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane | None:
        return last_axes(model.pe_embedder)
