"""Ideogram 4: one joint attention per block over text, picture. In hosts later than ComfyUI 0.3.75; tried with 0.33.

A token is one place of the latent. Padding inside the text is masked, pair by pair of tokens. Without a text the picture runs alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Span
from .base import Family, Laid, RopePlane, grid_span, laid, length
from .rotary import interleaved_axes


class Ideogram(Family):
    """Adapter of ``comfy.ldm.ideogram4.model``."""

    name = "Ideogram 4"
    classes = ("Ideogram4Transformer2DModel",)
    joint = True
    stacks = {"single": "layers"}
    word_stacks = ("single",)

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        grid = (1, x.shape[2], x.shape[3])
        text = Span("text", length(context))
        return laid(grid, True, text, grid_span(grid, True))

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane:
        return interleaved_axes(model.head_dim, model.rope_theta, model.mrope_section)
