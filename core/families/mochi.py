"""Mochi: one joint attention per block over video, text. The text is cut to the prompt's own number of tokens.

Its rotary frequencies are learned, per head, and mix time with both spatial axes, so there is no temporal axis to change.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Block, Span
from .base import Family, Laid, Place, grid_span, inside, joint, layout, length, mark_dit, number, tokens

TEXT_TOKENS = 256
"""Text tokens when the conditioning carries no mask to count."""


class Mochi(Family):
    """Adapter of ``comfy.ldm.genmo.joint_model``."""

    name = "Mochi"
    classes = ("AsymmDiTJoint",)
    joint = True
    video = True
    positions_in_model_dtype = True

    def blocks(self, model: Any) -> list[Block]:
        return number({"double": len(model.blocks)})

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        grid = (x.shape[2], tokens(x.shape[3], model.patch_size), tokens(x.shape[4], model.patch_size))
        still = grid[0] == 1
        text = Span("text", min(length(context), int(extra.get("num_tokens", TEXT_TOKENS))))
        return Laid(grid, text.length, 0, still, sequence=layout(grid_span(grid, still), text), prompt=layout(text))

    def mark(self, options: dict[str, Any], model: Any) -> None:
        mark_dit(options, self.blocks(model), {"double": "double_block"})

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        return joint(inside(options), geometry)
