"""LTX-Video: per block self-attention over the video, then cross-attention to the text.

Guide frames are latent frames at the end of the sequence with positions of their own; they count as references.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..call import Block, Project, Span
from .base import Family, Laid, Place, RopeAxis, RopePlane, grid_span, inside, layout, length, mark_dit, number, self_then_cross

FRAME_RATE = 25.0
"""Frames per second the host assumes when the conditioning names none."""

TIME_SPAN = 20.0
"""Seconds that fill the temporal axis: the host divides positions by it."""

SIDE_SPAN = 2048.0
"""Pixels that fill an axis of the picture."""


class LTX(Family):
    """Adapter of ``comfy.ldm.lightricks.model``."""

    name = "LTX"
    classes = ("LTXVModel",)
    video = True

    def blocks(self, model: Any) -> list[Block]:
        return number({"block": len(model.transformer_blocks)})

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        frames, y, w = x.shape[2], x.shape[3], x.shape[4]  # patches of 1 x 1 x 1
        guides, rest = divmod(extra["keyframe_idxs"].shape[2], y * w) if extra.get("keyframe_idxs") is not None else (0, 0)
        if rest or guides >= frames:
            guides = 0  # guides that are no whole frames cannot be told apart
        grid = (frames - guides, y, w)
        still = grid[0] == 1
        text = length(context)
        sequence = layout(grid_span(grid, still), Span("reference", guides * y * w))
        return Laid(grid, text, guides * y * w, still, sequence=sequence, prompt=layout(Span("text", text)))

    def mark(self, options: dict[str, Any], model: Any) -> None:
        mark_dit(options, self.blocks(model), {"block": "double_block"})

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        return self_then_cross(inside(options), geometry)

    def text_width(self, model: Any) -> int | None:
        return None if model.caption_projection is None else model.caption_projection.linear_1.in_features

    def text_reader(self, model: Any, block: Block, turn: int) -> Project | None:
        if model.caption_projection is None:
            return None
        layer = model.transformer_blocks[block.index].attn2

        def project(text: Tensor) -> tuple[Tensor, Tensor]:
            text = model.caption_projection(text)
            return layer.k_norm(layer.to_k(text)), layer.to_v(text)

        return project

    def rope(self, model: Any, extra: dict[str, Any] | None = None) -> RopeAxis:
        """Frequencies are spread over all heads: after a few idle pairs, every third pair of the whole width is temporal.

        The host's angle is ``theta^i * pi/2 * (2 * seconds / 20 - 1)`` with i from 0 to 1; the -1 is a constant.
        """
        width, heads, rising = _spread(model)
        n = len(rising)
        rate = float((extra or {}).get("frame_rate") or FRAME_RATE)
        stride = model.vae_scale_factors[0]
        pair_of = torch.full((width // 2,), -1)
        pair_of[width % 6 // 2 :: 3] = torch.arange(n).flip(0)
        causal = bool(model.causal_temporal_positioning)

        def times(frames: int) -> Tensor:
            first = torch.arange(frames, dtype=torch.float64) * stride
            return ((first + 1 - stride).clamp(min=0) if causal else first) / stride

        return RopeAxis(rising.flip(0) * 2 * stride / (rate * TIME_SPAN), pair_of.view(heads, -1), times=times)

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane:
        """Positions are pixels of the decoded picture; after the idle pairs every third pair is time, the next height, the next width."""
        width, heads, rising = _spread(model)
        freqs = torch.zeros(2, width // 2, dtype=torch.float64)
        for axis in (0, 1):
            freqs[axis, width % 6 // 2 + 1 + axis :: 3] = rising * 2 * model.vae_scale_factors[1 + axis] / SIDE_SPAN
        return RopePlane(freqs.view(2, heads, -1))


def _spread(model: Any) -> tuple[int, int, Tensor]:
    """(channels, heads, fp64 [channels // 6]: what turns a channel pair, rising, the same for each axis)."""
    width, heads = model.inner_dim, model.transformer_blocks[0].attn1.heads
    return width, heads, 10000.0 ** torch.linspace(0, 1, width // 6, dtype=torch.float64) * math.pi / 2
