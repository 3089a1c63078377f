"""JoyImage: one joint attention per block over picture [, reference pictures], text. In hosts later than ComfyUI 0.3.75; tried with 0.33."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from ..call import Block, Span
from .base import Family, Laid, Place, RopePlane, grid_span, inside, joint, layout, length, mark_dit, number, tokens
from .wan import last_axes


class JoyImage(Family):
    """Adapter of ``comfy.ldm.joyimage.model``."""

    name = "JoyImage"
    classes = ("JoyImageTransformer3DModel",)
    joint = True

    def blocks(self, model: Any) -> list[Block]:
        return number({"double": len(model.double_blocks)})

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        # [B, C, T, h, w]
        t, h, w = (tokens(x.shape[axis], patch) for axis, patch in zip((2, 3, 4), model.patch_size, strict=True))
        grid, still = (t, h, w), x.shape[2] == 1
        reference = sum(math.prod(tokens(n, p) for n, p in zip(y.shape[-3:], model.patch_size, strict=True)) for y in extra.get("ref_latents") or ())
        text = Span("text", length(context))
        sequence = layout(grid_span(grid, still), Span("reference", reference), text)
        return Laid(grid, text.length, reference, still, sequence=sequence, prompt=layout(text))

    def mark(self, options: dict[str, Any], model: Any) -> None:
        mark_dit(options, self.blocks(model), {"double": "double_block"})

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        return joint(inside(options), geometry)

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane | None:
        """The host rotates by a table of its own making, of the usual axes."""
        return last_axes(SimpleNamespace(axes_dim=model.rope_dim_list, theta=model.theta))
