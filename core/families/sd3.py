"""Stable Diffusion 3 and 3.5: joint attention over text, picture; in 3.5 medium the first blocks add one over the picture alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Span
from .base import Family, Laid, Place, grid_span, inside, joint, laid, layout, length, tokens


class SD3(Family):
    """Adapter of ``comfy.ldm.modules.diffusionmodules.mmdit``."""

    name = "SD3"
    classes = ("OpenAISignatureMMDITWrapper",)
    joint = True
    # Marked not by block replace: on that way the host runs each block under gradient checkpointing, which saves the random
    # state at every block and runs the attention a second time in a backward pass.
    stacks = {"double": "joint_blocks"}
    word_stacks = ("double",)

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        grid = (1, tokens(x.shape[2], model.patch_size), tokens(x.shape[3], model.patch_size))
        text = Span("text", length(context))
        return laid(grid, True, text, grid_span(grid, True))

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        mark = inside(options)
        if mark.calls == 0:
            return joint(mark, geometry)
        picture = layout(grid_span(geometry.grid, True))
        return Place(mark.block, "self", picture, picture)
