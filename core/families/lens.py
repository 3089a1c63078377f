"""Lens: one joint attention per block over picture, text. In hosts later than ComfyUI 0.3.75; tried with 0.33.

A token is one place of the latent. The host masks the text's padding by an additive mask, which is there even if nothing is padded.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Span
from .base import Family, Laid, RopePlane, grid_span, laid, length
from .rotary import last_axes


class Lens(Family):
    """Adapter of ``comfy.ldm.lens.model``."""

    name = "Lens"
    classes = ("LensTransformer2DModel",)
    joint = True
    stacks = {"double": "transformer_blocks"}
    slots = {"double": "double_block"}

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        grid = (1, x.shape[2], x.shape[3])
        text = Span("text", length(context))
        return laid(grid, True, grid_span(grid, True), text)

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane | None:
        return last_axes(model.pos_embed)
