"""HiDream-O1: a language model that draws, in the space of pixels. In hosts later than ComfyUI 0.3.75; tried with 0.33.

Tokens are [template,] [reference pictures as the language model sees them,] prompt, picture [, reference pictures in patches]; the
last token of the prompt is the one for the time. The prompt attends to what stands before it, out of reach of any pack, and the host
keeps its keys from step to step. What comes here is the rest: the token for the time and the pictures read all tokens. So a call has
fewer queries than keys, and methods for square attention (sparse attention, SoftPAG) find none.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Block, Span, TokenLayout
from .base import Family, Laid, Place, RopePlane, Unclear, grid_span, layout
from .rotary import interleaved_axes

FRONT = 3
"""Tokens of the template before the reference pictures."""
AROUND = 2
"""Marks around each of them."""
TIME = Span("text", 1)
MERGED = 4
"""Patches of a reference picture that make one token for the language model."""


class HiDreamO1(Family):
    """Adapter of ``comfy.ldm.hidream_o1.model``."""

    name = "HiDream-O1"
    classes = ("HiDreamO1Transformer",)
    joint = True
    whole_blocks = False
    stacks = {"block": "language_model.layers"}

    def heads(self, model: Any, block: Block) -> int:
        return int(model.text_config.num_attention_heads)

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        grid = (1, x.shape[2] // model.patch_size, x.shape[3] // model.patch_size)
        ids, seen, patches = extra.get("input_ids"), extra.get("ref_pixel_values"), extra.get("ref_patches")
        text = 0 if ids is None else ids.shape[1]
        shown = 0 if seen is None else seen.shape[-2] // MERGED + AROUND * extra["ref_image_grid_thw"].shape[-2]
        reference = 0 if patches is None else patches.shape[1]
        front = FRONT if shown else 0
        prompt = layout(Span("text", front), Span("reference", shown), Span("text", text - shown - front))
        picture = layout(grid_span(grid, True), Span("reference", reference))
        sequence = TokenLayout(prompt.spans + picture.spans)
        return Laid(grid, text - shown, shown + reference, True, sequence=sequence, prompt=prompt)

    def install(self, patcher: Any) -> None:
        """Nothing to do: the host writes the running block into the options its attention gets, and to its blocks hands none."""

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        index, total = options.get("block_index"), options.get("total_blocks")
        if index is None or total is None:
            raise Unclear("attention outside of the known blocks")
        picture = geometry.sequence.spans[len(geometry.prompt.spans) :]
        return Place(Block("block", index, index, total), "joint", layout(TIME, *picture), geometry.sequence)

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane:
        facts = model.text_config
        return interleaved_axes(facts.head_dim, facts.rope_theta, facts.rope_dims)
