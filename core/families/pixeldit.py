"""PixelDiT and PiD, in the space of pixels. In hosts later than ComfyUI 0.3.75; tried with 0.33.

First blocks of one joint attention over text, picture patches; then blocks on pixels, which squeeze every patch into one token for
a self-attention over the patches alone, with heads of their own. The text is cut to the model's longest. PiD is the same with a
smaller latent picture added between the blocks.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Block, Span, TokenLayout
from .base import Family, Laid, Place, grid_span, inside, joint, laid, length, tokens


class PixelDiT(Family):
    """Adapter of ``comfy.ldm.pixeldit``. Positions of the picture patches depend on its size, so there is no rotary plane to tell."""

    name = "PixelDiT / PiD"
    classes = ("PixDiT_T2I",)
    joint = True
    stacks = {"patch": "patch_blocks", "pixel": "pixel_blocks"}

    def whole(self, block: Block) -> bool:
        """What a block on pixels gives has a batch of patches."""
        return block.kind == "patch"

    def heads(self, model: Any, block: Block) -> int:
        return int(model.pixel_num_groups if block.kind == "pixel" else model.num_groups)

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        grid = (1, tokens(x.shape[2], model.patch_size), tokens(x.shape[3], model.patch_size))
        text = Span("text", min(length(context), model.txt_max_length))
        return laid(grid, True, text, grid_span(grid, True))

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        mark = inside(options)
        if mark.block.kind == "pixel":
            picture = TokenLayout(tuple(s for s in geometry.sequence.spans if s.kind != "text"))
            return Place(mark.block, "self", picture, picture)
        return joint(mark, geometry)
