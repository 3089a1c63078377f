"""Wan 2.1 and 2.2: text-to-video, image-to-video, TI2V, VACE, camera, Phantom-like references.

Per block: self-attention over [reference frame,] video tokens [, appended reference frames] [, in-context latents of later hosts,
which are "other": they count time and places for themselves], then cross-attention to the text (image-to-video with a CLIP
picture: first to the picture, then to the text). VACE runs blocks of its own between the main ones, once per control video; they
are no part of the numbering.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..call import Block, Project, Span
from .base import Family, Laid, Place, RopeAxis, RopePlane, grid_span, inside, layout, length, mark_dit, mark_forward, number, self_then_cross, tokens


class Wan(Family):
    """Adapter of ``comfy.ldm.wan.model``."""

    name = "Wan"
    classes = ("WanModel",)
    video = True
    positions_in_model_dtype = True
    refused = {
        "WanModel_S2V": "its blocks do not hand on the options by which a pack reaches their attention",
        "HumoWanModel": "its audio blocks lay out tokens in a way this version does not know",
        "AnimateWanModel": "its face adapter runs attention that no pack can reach",
    }

    def blocks(self, model: Any) -> list[Block]:
        return number({"block": len(model.blocks)})

    def install(self, patcher: Any) -> None:
        # the host's block replace covers the main blocks only
        for index, _ in enumerate(getattr(patcher.get_model_object("diffusion_model"), "vace_blocks", ())):
            mark_forward(patcher, f"diffusion_model.vace_blocks.{index}", Block("vace", index))

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        pt, py, px = model.patch_size
        grid = (tokens(x.shape[2], pt), tokens(x.shape[3], py), tokens(x.shape[4], px))
        still = x.shape[2] == 1
        before = after = 0
        first, appended = extra.get("reference_latent"), extra.get("time_dim_concat")
        if first is not None and getattr(model, "ref_conv", None) is not None:
            before = (first.shape[-2] // py) * (first.shape[-1] // px)  # a convolution without padding
        if appended is not None:
            after = tokens(appended.shape[2], pt) * grid[1] * grid[2]
        text = length(context)
        beside = sum(math.prod(tokens(n, p) for n, p in zip(y.shape[-3:], model.patch_size, strict=True)) for y in extra.get("context_latents") or ())
        sequence = layout(Span("reference", before), grid_span(grid, still), Span("reference", after), Span("other", beside))
        return Laid(grid, text, before + after, still, sequence=sequence, prompt=layout(Span("text", text)))

    def mark(self, options: dict[str, Any], model: Any) -> None:
        mark_dit(options, self.blocks(model), {"block": "double_block"})

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        mark = inside(options)
        picture = 0 if mark.text is None else mark.text - geometry.text
        if mark.calls == 1 and picture > 0:
            return Place(mark.block, "cross", geometry.sequence, layout(Span("reference", picture)))
        return self_then_cross(mark, geometry)

    def text_width(self, model: Any) -> int | None:
        return model.text_embedding[0].in_features

    def text_reader(self, model: Any, block: Block, turn: int) -> Project | None:
        layer = (model.vace_blocks if block.kind == "vace" else model.blocks)[block.index].cross_attn
        if hasattr(layer, "k_img") and turn == 0:
            return None  # the first of two reads the picture, or the prompt by the picture's projections

        def project(text: Tensor) -> tuple[Tensor, Tensor]:
            text = model.text_embedding(text)
            return layer.norm_k(layer.k(text)), layer.v(text)

        return project

    def rope(self, model: Any, extra: dict[str, Any] | None = None) -> RopeAxis | None:
        axis = first_axis(model.rope_embedder)
        # the host numbers reference frame, video and appended frames through
        return None if axis is None else replace(axis, references_in_line=True)

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane | None:
        """The host lets other nodes stretch both axes."""
        stretch = options.get("rope_options") or {}
        return last_axes(model.rope_embedder, float(stretch.get("scale_y", 1.0)), float(stretch.get("scale_x", 1.0)))


def first_axis(embedder: Any) -> RopeAxis | None:
    """The temporal axis of the host's multi-axis embedder: the first of ``axes_dim``, frequencies ``theta^(-i/n)``.

    None if the frequencies cannot be read.
    """
    found = _readable(embedder)
    if found is None:
        return None
    n = found.axes_dim[0] // 2
    pair_of = torch.full((1, sum(found.axes_dim) // 2), -1)
    pair_of[0, :n] = torch.arange(n)
    return RopeAxis(float(found.theta) ** (-torch.arange(n, dtype=torch.float64) / n), pair_of)


def last_axes(embedder: Any, scale_y: float = 1.0, scale_x: float = 1.0) -> RopePlane | None:
    """Height and width in the host's multi-axis embedder, the second and third of ``axes_dim``; None if they cannot be read."""
    found = _readable(embedder)
    if found is None or len(found.axes_dim) != 3:
        return None
    freqs = torch.zeros(2, 1, sum(found.axes_dim) // 2, dtype=torch.float64)
    at = found.axes_dim[0] // 2
    for axis, (dim, scale) in enumerate(zip(found.axes_dim[1:], (scale_y, scale_x), strict=True)):
        freqs[axis, 0, at : at + dim // 2] = scale * float(found.theta) ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
        at += dim // 2
    return RopePlane(freqs)


def _readable(embedder: Any) -> Any:
    """The embedder, or the one inside a module that another pack has put around it (one level is looked through), or None."""
    around = [embedder, *vars(embedder).values(), *getattr(embedder, "_modules", {}).values()]
    return next((x for x in around if hasattr(x, "axes_dim") and hasattr(x, "theta")), None)
