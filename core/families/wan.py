"""Wan 2.1 and 2.2: text-to-video, image-to-video, TI2V, VACE, camera, Phantom-like references.

Per block: self-attention over [reference frame,] video tokens, then cross-attention to the text (image-to-video with a
CLIP picture: first to the picture, then to the text). VACE runs blocks of its own between the main ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..call import Block, Geometry, Span
from .base import Family, Place, RopeAxis, Unclear, grid_span, layout, mark_dit, number, running, tokens

CLIP_PICTURE = 257
"""Keys of the CLIP picture in image-to-video models."""


class Wan(Family):
    """Adapter of ``comfy.ldm.wan.model``."""

    name = "Wan"
    classes = ("WanModel",)
    video = True
    positions_in_model_dtype = True
    refused = {
        "WanModel_S2V": "its speech-to-video blocks do not hand on the options a pack needs to reach their attention",
        "HumoWanModel": "its audio blocks lay out tokens in a way this version does not know",
        "AnimateWanModel": "its face adapter runs attention outside the blocks",
    }

    def blocks(self, model: Any) -> list[Block]:
        return number({"block": len(model.blocks)})

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Geometry:
        pt, py, px = model.patch_size
        frames = tokens(x.shape[2], pt)
        concat = extra.get("time_dim_concat")
        if concat is not None:
            frames += tokens(concat.shape[2], pt)
        y, w = tokens(x.shape[3], py), tokens(x.shape[4], px)
        reference = extra.get("reference_latent")
        with_reference = reference is not None and getattr(model, "ref_conv", None) is not None
        return Geometry(
            (frames, y, w),
            text=0 if context is None else context.shape[1],
            reference=y * w if with_reference else 0,
            still=x.shape[2] == 1 and concat is None,
        )

    def mark(self, options: dict[str, Any], model: Any) -> None:
        mark_dit(options, self.blocks(model), {"block": "double_block"})

    def place(self, options: dict[str, Any], geometry: Geometry, nq: int, nk: int) -> Place:
        mark = running(options)
        video = layout(Span("reference", geometry.reference), grid_span(geometry))
        block = mark.block if mark is not None else Block("vace", -1)
        if nq != video.length:
            raise Unclear(f"the call has {nq} queries, the video grid {geometry.grid} and its reference make {video.length}")
        first = mark is None or mark.calls == 0
        if first and nk == nq:
            return Place(block, "self", video, video)
        kind = "reference" if nk == CLIP_PICTURE and nk != geometry.text else "text"
        return Place(block, "cross", video, layout(Span(kind, nk)))

    def rope(self, model: Any) -> RopeAxis:
        embedder = model.rope_embedder
        axes = list(embedder.axes_dim)
        n = axes[0] // 2
        per_frame = embedder.theta ** (-torch.arange(n, dtype=torch.float64) / n)
        pair_of = torch.full((1, sum(axes) // 2), -1)
        pair_of[0, :n] = torch.arange(n)
        return RopeAxis(per_frame, pair_of)
