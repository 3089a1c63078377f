"""Qwen-Image and Qwen-Image-Edit: one joint attention per block over text, picture [, reference pictures]."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Span
from .base import Family, Laid, RopePlane, grid_span, laid, length, picture_tokens, tokens
from .rotary import last_axes


class QwenImage(Family):
    """Adapter of ``comfy.ldm.qwen_image.model``."""

    name = "Qwen-Image"
    classes = ("QwenImageTransformer2DModel",)
    joint = True
    stacks = {"double": "transformer_blocks"}
    slots = {"double": "double_block"}
    word_stacks = ("double",)

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        # [B, C, 1, h, w]
        grid = (x.shape[2], tokens(x.shape[3], model.patch_size), tokens(x.shape[4], model.patch_size))
        reference = picture_tokens(extra.get("ref_latents"), model.patch_size)
        text = Span("text", length(context))
        return laid(grid, True, text, grid_span(grid, True), Span("reference", reference))

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane | None:
        return last_axes(model.pe_embedder)
