"""PixelDiT and PiD, in the space of pixels. In hosts later than ComfyUI 0.3.75; tried with 0.33.

First blocks of one joint attention over text, picture patches; then blocks on pixels, which squeeze every patch into one token for
a self-attention over the patches alone, with heads of their own. The text is cut to the model's longest. PiD is the same with a
smaller latent picture added between the blocks.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Block, Span, TokenLayout
from .base import Family, Laid, Place, grid_span, inside, joint, layout, length, mark_forward, number, tokens


class PixelDiT(Family):
    """Adapter of ``comfy.ldm.pixeldit``. Positions of the picture patches depend on its size, so there is no rotary plane to tell."""

    name = "PixelDiT / PiD"
    classes = ("PixDiT_T2I",)
    joint = True

    def blocks(self, model: Any) -> list[Block]:
        return number({"patch": len(model.patch_blocks), "pixel": len(model.pixel_blocks)})

    def heads(self, model: Any, block: Block) -> int:
        return int(model.pixel_num_groups if block.kind == "pixel" else model.num_groups)

    def install(self, patcher: Any) -> None:
        for block in self.blocks(patcher.get_model_object("diffusion_model")):
            # what a block on pixels gives has a batch of patches
            mark_forward(patcher, f"diffusion_model.{block.kind}_blocks.{block.index}", block, whole=block.kind == "patch")

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        grid = (1, tokens(x.shape[2], model.patch_size), tokens(x.shape[3], model.patch_size))
        text = Span("text", min(length(context), model.txt_max_length))
        return Laid(grid, text.length, 0, True, sequence=layout(text, grid_span(grid, True)), prompt=layout(text))

    def mark(self, options: dict[str, Any], model: Any) -> None:
        """Done by :meth:`install`: the host has no block replace here."""

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        mark = inside(options)
        if mark.block.kind == "pixel":
            picture = TokenLayout(tuple(s for s in geometry.sequence.spans if s.kind != "text"))
            return Place(mark.block, "self", picture, picture)
        return joint(mark, geometry)
