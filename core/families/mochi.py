"""Mochi: one joint attention per block over video, text. The text is cut to the prompt's own number of tokens.

Its rotary frequencies are learned, per head, and mix time with both spatial axes, so there is no temporal axis to change.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Span
from .base import Family, Laid, grid_span, laid, length, tokens

TEXT_TOKENS = 256
"""Text tokens when the conditioning carries no mask to count."""


class Mochi(Family):
    """Adapter of ``comfy.ldm.genmo.joint_model``."""

    name = "Mochi"
    classes = ("AsymmDiTJoint",)
    joint = True
    video = True
    positions_in_model_dtype = True
    stacks = {"double": "blocks"}
    slots = {"double": "double_block"}

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        grid = (x.shape[2], tokens(x.shape[3], model.patch_size), tokens(x.shape[4], model.patch_size))
        still = grid[0] == 1
        text = Span("text", min(length(context), int(extra.get("num_tokens", TEXT_TOKENS))))
        return laid(grid, still, grid_span(grid, still), text)
