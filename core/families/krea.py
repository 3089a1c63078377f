"""Krea 2: one joint attention per block over text, picture [, reference pictures]. In hosts later than ComfyUI 0.3.75; tried with 0.33.

Before the blocks the text is fused: twice each of its tokens attends over the layers of the text encoder it was taken from, a batch
element per token, and twice the tokens over each other.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Block, Span
from .base import Family, Laid, Place, RopePlane, grid_span, inside, joint, layout, length, mark_forward, number, picture_tokens, tokens
from .wan import last_axes

LAYERS = "layer_refiner"
"""Kind of the blocks over the layers of the text encoder."""
FUSION = {LAYERS: "layerwise_blocks", "refiner": "refiner_blocks"}


class Krea(Family):
    """Adapter of ``comfy.ldm.krea2.model``."""

    name = "Krea 2"
    classes = ("SingleStreamDiT",)
    joint = True

    def blocks(self, model: Any) -> list[Block]:
        return number({"single": len(model.blocks)})

    def install(self, patcher: Any) -> None:
        model = patcher.get_model_object("diffusion_model")
        for block in self.blocks(model):
            mark_forward(patcher, f"diffusion_model.blocks.{block.index}", block)
        for kind, stack in FUSION.items():
            for index, _ in enumerate(getattr(model.txtfusion, stack)):
                mark_forward(patcher, f"diffusion_model.txtfusion.{stack}.{index}", Block(kind, index))

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        # [B, C, h, w] or [B, C, 1, h, w]
        grid = (1, tokens(x.shape[-2], model.patch), tokens(x.shape[-1], model.patch))
        if x.ndim not in (4, 5):
            raise IndexError(f"the latent has {x.ndim} axes, the model takes 4 or 5")
        heeded = extra.get("ref_latents_method", model.default_ref_method) is not None
        reference = picture_tokens(extra.get("ref_latents"), model.patch) if heeded else 0
        text = Span("text", length(context))
        sequence = layout(text, grid_span(grid, True), Span("reference", reference))
        return Laid(grid, text.length, reference, True, sequence=sequence, prompt=layout(text))

    def mark(self, options: dict[str, Any], model: Any) -> None:
        """Done by :meth:`install`: the host has no block replace here."""

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        mark = inside(options)
        if mark.block.kind == LAYERS:
            return Place(mark.block, "other", layout(Span("other", nq)), layout(Span("other", nk)))
        if mark.block.kind == "refiner":
            return Place(mark.block, "other", geometry.prompt, geometry.prompt)
        return joint(mark, geometry)

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane | None:
        return last_axes(model.pe_embedder)
