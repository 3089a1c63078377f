"""LTX-Video: per block self-attention over the video, then cross-attention to the text.

Guide frames are latent frames at the end of the sequence with positions of their own; they count as references. Later hosts than
0.3.75 drop guide tokens whose noise mask is below zero, and run the self-attention in parts where guides have strengths of their
own: such calls stay stock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..call import Block, Project, Span
from .base import Family, Laid, Mark, Place, RopeAxis, RopePlane, Unclear, grid_span, inside, laid, length, self_then_cross

FRAME_RATE = 25.0
"""Frames per second the host assumes when the conditioning names none."""

SPANS = (20.0, 2048.0, 2048.0)
"""Seconds, pixels and pixels that fill the axes: the host divides positions by them. Later hosts let the model's file say others."""


class LTX(Family):
    """Adapter of ``comfy.ldm.lightricks.model``."""

    name = "LTX"
    classes = ("LTXVModel",)
    video = True
    stacks = {"block": "transformer_blocks"}
    slots = {"block": "double_block"}

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        return self.laid(x.shape, context, extra)

    def laid(self, shape: Sequence[int], context: Tensor | None, extra: dict[str, Any]) -> Laid:
        """The geometry of a video latent of this shape [B, C, T, h, w]."""
        frames, y, w = shape[2], shape[3], shape[4]  # patches of 1 x 1 x 1
        guides, rest = divmod(extra["keyframe_idxs"].shape[2], y * w) if extra.get("keyframe_idxs") is not None else (0, 0)
        if rest or guides >= frames:
            guides = 0  # guides that are no whole frames cannot be told apart
        grid = (frames - guides, y, w)
        still = grid[0] == 1
        reference = guides * y * w
        mask = extra.get("denoise_mask")
        if guides and mask is not None and tuple(mask.shape[2:]) == tuple(shape[2:]):
            reference = int((mask[0, :, -guides:] >= 0).all(0).sum())
        return laid(grid, still, grid_span(grid, still), Span("reference", reference), prompt=Span("text", length(context)))

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        mark = inside(options)
        self.unbroken(mark, geometry, nq, nk)
        return self_then_cross(mark, geometry)

    def unbroken(self, mark: Mark, geometry: Laid, nq: int, nk: int) -> None:
        """Raises Unclear for a part of a self-attention."""
        n = geometry.sequence.length
        if mark.calls == 0 and nq < n and nk == n:
            raise Unclear(f"{mark.block} self: {nq} of {n} queries, as the host runs it in parts where guides have strengths of their own")

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

        The host's angle is ``theta^i * pi/2 * (2 * seconds / 20 - 1)`` with i from 0 to 1; the -1 is a constant. A frame stands where it begins or,
        where the model's file says so, in its middle.
        """
        width, heads, rising = _spread(model)
        middle = bool(getattr(model, "use_middle_indices_grid", False))
        n = len(rising)
        rate = float((extra or {}).get("frame_rate") or FRAME_RATE)
        stride = model.vae_scale_factors[0]
        pair_of = torch.full((width // 2,), -1)
        pair_of[width % 6 // 2 :: 3] = torch.arange(n).flip(0)
        causal = bool(model.causal_temporal_positioning)

        def begins(frames: Tensor) -> Tensor:
            return (frames * stride + 1 - stride).clamp(min=0) / stride if causal else frames

        def times(frames: int) -> Tensor:
            first = torch.arange(frames, dtype=torch.float64)
            return (begins(first) + begins(first + 1)) / 2 if middle else begins(first)

        return RopeAxis(rising.flip(0) * 2 * stride / (rate * _spans(model)[0]), pair_of.view(heads, -1), _pairing(model), times=times)

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane:
        """Positions are pixels of the decoded picture; after the idle pairs every third pair is time, the next height, the next width."""
        width, heads, rising = _spread(model)
        freqs = torch.zeros(2, width // 2, dtype=torch.float64)
        for axis in (0, 1):
            freqs[axis, width % 6 // 2 + 1 + axis :: 3] = rising * 2 * model.vae_scale_factors[1 + axis] / _spans(model)[1 + axis]
        return RopePlane(freqs.view(2, heads, -1), _pairing(model))


def _spread(model: Any) -> tuple[int, int, Tensor]:
    """(channels, heads, fp64 [channels // 6]: what turns a channel pair, rising, the same for each axis)."""
    width, heads = model.inner_dim, model.transformer_blocks[0].attn1.heads
    return width, heads, 10000.0 ** torch.linspace(0, 1, width // 6, dtype=torch.float64) * math.pi / 2


def _spans(model: Any) -> tuple[float, ...]:
    return tuple(getattr(model, "positional_embedding_max_pos", SPANS))


def _pairing(model: Any) -> Literal["interleaved", "halves"]:
    """Later hosts know models whose file asks for pairs of the two halves of a head."""
    kind = getattr(model, "split_positional_embedding", None)
    return "halves" if getattr(kind, "value", kind) == "split" else "interleaved"
