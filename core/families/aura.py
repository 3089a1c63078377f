"""AuraFlow: joint attention over register tokens, text, picture; double blocks, then single blocks in the same order.

The registers are learned tokens in front of every prompt, "other" here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Span
from .base import Family, Laid, grid_span, laid, length, tokens


class AuraFlow(Family):
    """Adapter of ``comfy.ldm.aura.mmdit``. The class has the name of a base class of SD3's."""

    name = "AuraFlow"
    classes = ("MMDiT",)
    joint = True
    stacks = {"double": "double_layers", "single": "single_layers"}
    slots = {"double": "double_block", "single": "single_block"}
    word_stacks = ("double", "single")

    def matches(self, model: Any) -> bool:
        return super().matches(model) and hasattr(model, "register_tokens")

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        grid = (1, tokens(x.shape[2], model.patch_size), tokens(x.shape[3], model.patch_size))
        registers, text = Span("other", model.register_tokens.shape[1]), Span("text", length(context))
        return laid(grid, True, registers, text, grid_span(grid, True))
