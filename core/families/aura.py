"""AuraFlow: joint attention over register tokens, text, picture; double blocks, then single blocks in the same order.

The registers are learned tokens in front of every prompt, "other" here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Block, Span
from .base import Family, Laid, Place, grid_span, inside, joint, layout, length, mark_dit, number, tokens


class AuraFlow(Family):
    """Adapter of ``comfy.ldm.aura.mmdit``. The class has the name of a base class of SD3's."""

    name = "AuraFlow"
    classes = ("MMDiT",)
    joint = True

    def matches(self, model: Any) -> bool:
        return super().matches(model) and hasattr(model, "register_tokens")

    def blocks(self, model: Any) -> list[Block]:
        return number({"double": len(model.double_layers), "single": len(model.single_layers)})

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        grid = (1, tokens(x.shape[2], model.patch_size), tokens(x.shape[3], model.patch_size))
        registers, text = Span("other", model.register_tokens.shape[1]), Span("text", length(context))
        return Laid(grid, text.length, 0, True, sequence=layout(registers, text, grid_span(grid, True)), prompt=layout(text))

    def mark(self, options: dict[str, Any], model: Any) -> None:
        mark_dit(options, self.blocks(model), {"double": "double_block", "single": "single_block"})

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        return joint(inside(options), geometry)
