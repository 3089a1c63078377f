"""JoyImage: one joint attention per block over picture [, reference pictures], text. In hosts later than ComfyUI 0.3.75; tried with 0.33."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Span
from .base import Family, Laid, RopePlane, grid_span, laid, latent_tokens, length, tokens
from .rotary import Axes, last_axes


class JoyImage(Family):
    """Adapter of ``comfy.ldm.joyimage.model``."""

    name = "JoyImage"
    classes = ("JoyImageTransformer3DModel",)
    joint = True
    stacks = {"double": "double_blocks"}
    slots = {"double": "double_block"}
    word_stacks = ("double",)

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        # [B, C, T, h, w]
        t, h, w = (tokens(x.shape[axis], patch) for axis, patch in zip((2, 3, 4), model.patch_size, strict=True))
        grid, still = (t, h, w), x.shape[2] == 1
        reference = sum(latent_tokens(y, model.patch_size) for y in extra.get("ref_latents") or ())
        text = Span("text", length(context))
        return laid(grid, still, grid_span(grid, still), Span("reference", reference), text)

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane | None:
        """The host rotates by a table of its own making, of the usual axes."""
        return last_axes(Axes(model.rope_dim_list, model.theta))
