"""Kandinsky 5: Lite and Pro video, text- and image-to-video, and the picture model. In hosts later than ComfyUI 0.3.75; tried with 0.33.

A few text blocks attend to the text alone; what they make of it depends on the noise level. Then per block self-attention over the
video and cross-attention to the text. Frames that are given replace noisy ones in place and add no tokens.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..call import Span
from .base import Family, Laid, Place, RopeAxis, RopePlane, grid_span, inside, laid, length, self_then_cross, tokens
from .rotary import first_axis, last_axes, stretched_axes

PRO = 4096
"""Channels of the Pro video model, whose places count in steps that depend on the size of the picture."""


class Kandinsky5(Family):
    """Adapter of ``comfy.ldm.kandinsky5.model``."""

    name = "Kandinsky 5"
    classes = ("Kandinsky5",)
    video = True
    positions_in_model_dtype = True
    # marked not by block replace: there the host calls the block with arguments it does not have
    stacks = {"block": "visual_transformer_blocks"}
    side_stacks = {"refiner": "text_transformer_blocks"}

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        if x.ndim not in (4, 5):
            raise IndexError(f"the latent has {x.ndim} axes, the model takes 4 or 5")
        pt, py, px = model.patch_size
        frames = x.shape[2] if x.ndim == 5 else 1
        grid = (tokens(frames, pt), tokens(x.shape[-2], py), tokens(x.shape[-1], px))
        still = frames == 1
        return laid(grid, still, grid_span(grid, still), prompt=Span("text", length(context)))

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        mark = inside(options)
        if mark.block.kind == "refiner":
            return Place(mark.block, "other", geometry.prompt, geometry.prompt)
        return self_then_cross(mark, geometry)

    def rope(self, model: Any, extra: dict[str, Any] | None = None) -> RopeAxis | None:
        axis = None if _makes_pictures(model) else first_axis(model.rope_embedder_3d)
        return None if axis is None else replace(axis, per_frame=axis.per_frame / model.rope_scale_factor[0])

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane | None:
        """The host lets other nodes stretch both axes, in place of the steps the model was made for."""
        stretch = options.get("rope_options")
        if stretch is not None:
            return stretched_axes(model.rope_embedder_3d, stretch)
        if model.model_dim == PRO:
            return None
        _, down, right = model.rope_scale_factor
        return last_axes(model.rope_embedder_3d, 1 / down, 1 / right)


def _makes_pictures(model: Any) -> bool:
    """Video models take channels beside the latent's own, for given frames."""
    return bool(model.visual_embed_dim == model.in_visual_dim * math.prod(model.patch_size))
