"""Qwen-Image and Qwen-Image-Edit: one joint attention per block over text, picture [, reference pictures]."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Block, Span
from .base import Family, Laid, Place, RopePlane, grid_span, inside, joint, layout, length, mark_dit, number, picture_tokens, tokens
from .wan import last_axes


class QwenImage(Family):
    """Adapter of ``comfy.ldm.qwen_image.model``."""

    name = "Qwen-Image"
    classes = ("QwenImageTransformer2DModel",)
    joint = True

    def blocks(self, model: Any) -> list[Block]:
        return number({"double": len(model.transformer_blocks)})

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        # [B, C, 1, h, w]
        grid = (x.shape[2], tokens(x.shape[3], model.patch_size), tokens(x.shape[4], model.patch_size))
        reference = picture_tokens(extra.get("ref_latents"), model.patch_size)
        text = Span("text", length(context))
        sequence = layout(text, grid_span(grid, True), Span("reference", reference))
        return Laid(grid, text.length, reference, True, sequence=sequence, prompt=layout(text))

    def mark(self, options: dict[str, Any], model: Any) -> None:
        mark_dit(options, self.blocks(model), {"double": "double_block"})

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane | None:
        return last_axes(model.pe_embedder)

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        return joint(inside(options), geometry)
