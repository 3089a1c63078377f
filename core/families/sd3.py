"""Stable Diffusion 3 and 3.5: joint attention over text, picture; in 3.5 medium the first blocks add one over the picture alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Block, Span
from .base import Family, Laid, Place, grid_span, inside, joint, layout, length, mark_forward, number, tokens


class SD3(Family):
    """Adapter of ``comfy.ldm.modules.diffusionmodules.mmdit``."""

    name = "SD3"
    classes = ("OpenAISignatureMMDITWrapper",)
    joint = True

    def blocks(self, model: Any) -> list[Block]:
        return number({"double": len(model.joint_blocks)})

    def install(self, patcher: Any) -> None:
        # Not by block replace: on that way the host runs each block under gradient checkpointing, which saves the random
        # state at every block and runs the attention a second time in a backward pass.
        for block in self.blocks(patcher.get_model_object("diffusion_model")):
            mark_forward(patcher, f"diffusion_model.joint_blocks.{block.index}", block)

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        grid = (1, tokens(x.shape[2], model.patch_size), tokens(x.shape[3], model.patch_size))
        text = Span("text", length(context))
        return Laid(grid, text.length, 0, True, sequence=layout(text, grid_span(grid, True)), prompt=layout(text))

    def mark(self, options: dict[str, Any], model: Any) -> None:
        """Done by :meth:`install`."""

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        mark = inside(options)
        if mark.calls == 0:
            return joint(mark, geometry)
        picture = layout(grid_span(geometry.grid, True))
        return Place(mark.block, "self", picture, picture)
