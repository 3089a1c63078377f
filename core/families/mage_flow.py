"""Mage-Flow: Qwen-Image's blocks over text, picture [, reference pictures]. In hosts later than ComfyUI 0.3.75; tried with 0.33.

A token is one place of the latent, which has no time axis.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Span
from .base import Laid, grid_span, laid, length, picture_tokens
from .qwen_image import QwenImage


class MageFlow(QwenImage):
    """Adapter of ``comfy.ldm.mage_flow.model``."""

    name = "Mage-Flow"
    classes = ("MageFlowTransformer2DModel",)

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        grid = (1, x.shape[2], x.shape[3])
        reference = picture_tokens(extra.get("ref_latents"), model.patch_size)
        text = Span("text", length(context))
        return laid(grid, True, text, grid_span(grid, True), Span("reference", reference))
