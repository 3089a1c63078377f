"""MiniMax H3: video and sound in one model. In hosts later than ComfyUI 0.3.75; tried with 0.33.

One joint attention per block over text [, given frames or references, each with its sound], sound, video. The host knows the order
and hands it on with the conditioning. Both latents come packed into one row of numbers, with their shapes beside it. Sound is "other";
pictures that the text encoder read count as text. The text is refined before sampling, out of reach, and in front of the blocks only
where that was left out.

It turns 3/4 of each head, in pairs of the two halves of that part, which the pack cannot describe: so there is no rotary axis here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Span, SpanKind
from .base import Family, Laid, Place, grid_span, inside, joint, laid, length, mark_outside, refined, tokens

KINDS: dict[str, SpanKind] = {"text": "text", "cond": "reference", "ref_img": "reference"}
"""What the host calls the parts of its sequence; the others are sound."""


class MiniMaxH3(Family):
    """Adapter of ``comfy.ldm.minimax.model``."""

    name = "MiniMax H3"
    classes = ("MiniMaxH3Model",)
    joint = True
    video = True
    whole_blocks = False
    """Blocks write into what they are given, and that has no axis of the batch: the host runs one prompt at a time."""
    stacks = {"double": "blocks"}
    slots = {"double": "double_block"}

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        shape, *sound = extra.get("latent_shapes") or [x.shape]
        pt, py, px = model.patch_size
        grid = (tokens(shape[2], pt), tokens(shape[3], py), tokens(shape[4], px))
        still, steps, text = shape[2] == 1, sound[0][-1] if sound else 0, length(context)
        parts = _parts(extra.get("minimax_payload") or {}, (text, grid[0] * pt, grid[1] * py, grid[2] * px, steps))
        video = grid_span(grid, still)
        spans = [video if kind == "video" else Span(KINDS.get(kind, "other"), n) for kind, n in parts or (("text", text), ("audio", 2 * steps), ("video", 0))]
        return laid(grid, still, *spans, prompt=Span("text", text))

    def mark(self, options: dict[str, Any], model: Any) -> None:
        mark_outside(options, "refiner")
        super().mark(options, model)

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        mark = inside(options)
        return refined(mark, geometry, nq, nk) if mark.block.kind == "refiner" else joint(mark, geometry)


def _parts(payload: dict[str, Any], size: tuple[int, ...]) -> list[tuple[str, int]]:
    """(the host's word, tokens) of each part of the sequence; empty before the first step. size: tokens of the text, the padded video, steps of sound."""
    order = payload.get("layout")
    if order is None:
        return []
    if order.signature != size:  # a window of the video: the host, too, makes the order anew
        order = type(order)(*size, keyframes=payload.get("keyframes"), refs=payload.get("refs"))
    return [(kind, stop - start) for start, stop, kind in order.segments]
