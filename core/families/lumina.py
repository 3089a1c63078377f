"""Lumina 2 and Z-Image: text refiner, picture refiner, then joint attention over text, picture.

Z-Image pads text and picture each to whole multiples of 32 tokens with learned padding tokens, behind the real ones.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Block, Span, TokenLayout
from .base import Family, Laid, Place, grid_span, inside, joint, layout, length, mark_forward, number, tokens


class Lumina(Family):
    """Adapter of ``comfy.ldm.lumina.model``."""

    name = "Lumina 2 / Z-Image"
    classes = ("NextDiT",)
    joint = True

    def blocks(self, model: Any) -> list[Block]:
        return number({"block": len(model.layers)})

    def install(self, patcher: Any) -> None:
        model = patcher.get_model_object("diffusion_model")
        for block in self.blocks(model):
            mark_forward(patcher, f"diffusion_model.layers.{block.index}", block)
        for kind in ("context_refiner", "noise_refiner"):
            for index, _ in enumerate(getattr(model, kind)):
                mark_forward(patcher, f"diffusion_model.{kind}.{index}", Block(kind, index))

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        grid = (1, tokens(x.shape[2], model.patch_size), tokens(x.shape[3], model.patch_size))
        text = length(context)
        multiple = getattr(model, "pad_tokens_multiple", None) or 1
        words = layout(Span("text", text), Span("other", -text % multiple))
        picture = layout(grid_span(grid, True), Span("other", -(grid[1] * grid[2]) % multiple))
        return Laid(grid, text, 0, True, sequence=TokenLayout(words.spans + picture.spans), prompt=words)

    def mark(self, options: dict[str, Any], model: Any) -> None:
        """Done by :meth:`install`: this host has no block replace here."""

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        mark = inside(options)
        if mark.block.kind == "context_refiner":
            return Place(mark.block, "other", geometry.prompt, geometry.prompt)
        if mark.block.kind == "noise_refiner":
            picture = TokenLayout(geometry.sequence.spans[len(geometry.prompt.spans) :])
            return Place(mark.block, "self", picture, picture)
        return joint(mark, geometry)
