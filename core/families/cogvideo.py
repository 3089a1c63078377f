"""CogVideoX 1.0 and 1.5: text-to-video, image-to-video, inpaint. In hosts later than ComfyUI 0.3.75; tried with 0.33.

One joint attention per block over text, video. A start picture and what is to be painted over come as channels of the latent and
add no tokens. 1.5 packs two latent frames into one token. Only the video is rotated, and not in models with learned positions.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Span
from .base import Family, Laid, RopeAxis, RopePlane, grid_span, laid, length, tokens
from .rotary import Axes, first_axis, last_axes


class CogVideoX(Family):
    """Adapter of ``comfy.ldm.cogvideo.model``."""

    name = "CogVideoX"
    classes = ("CogVideoXTransformer3DModel",)
    joint = True
    video = True
    stacks = {"block": "blocks"}

    def frames_per_token(self, model: Any) -> int:
        return int(model.patch_size_t or 1)

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        side = model.patch_size
        grid = (tokens(x.shape[2], self.frames_per_token(model)), tokens(x.shape[3], side), tokens(x.shape[4], side))
        still = x.shape[2] == 1
        text = Span("text", length(context))
        return laid(grid, still, text, grid_span(grid, still))

    def rope(self, model: Any, extra: dict[str, Any] | None = None) -> RopeAxis | None:
        """Time counts tokens: latent frames, in 1.5 pairs of them."""
        return first_axis(_axes(model)) if model.use_rotary_positional_embeddings else None

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane | None:
        """1.0 stretches both axes."""
        if not model.use_rotary_positional_embeddings:
            return None
        stretch = float(model.spatial_interpolation_scale) if model.patch_size_t is None else 1.0
        return last_axes(_axes(model), stretch, stretch)


def _axes(model: Any) -> Axes:
    eighth = model.attention_head_dim // 8
    return Axes((model.attention_head_dim // 4, 3 * eighth, 3 * eighth), 10000.0)
