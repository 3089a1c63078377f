"""Lens: one joint attention per block over picture, text. In hosts later than ComfyUI 0.3.75; tried with 0.33.

A token is one place of the latent. The host masks the text's padding by an additive mask, which is there even if nothing is padded.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Block, Span
from .base import Family, Laid, Place, RopePlane, grid_span, inside, joint, layout, length, mark_dit, number
from .wan import last_axes


class Lens(Family):
    """Adapter of ``comfy.ldm.lens.model``."""

    name = "Lens"
    classes = ("LensTransformer2DModel",)
    joint = True

    def blocks(self, model: Any) -> list[Block]:
        return number({"double": len(model.transformer_blocks)})

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        grid = (1, x.shape[2], x.shape[3])
        text = Span("text", length(context))
        return Laid(grid, text.length, 0, True, sequence=layout(grid_span(grid, True), text), prompt=layout(text))

    def mark(self, options: dict[str, Any], model: Any) -> None:
        mark_dit(options, self.blocks(model), {"double": "double_block"})

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        return joint(inside(options), geometry)

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane | None:
        return last_axes(model.pos_embed)
