"""Cosmos 1 and Cosmos Predict2: per block self-attention over the video, then cross-attention to the text."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..call import Block, Project, Span
from .base import Family, Laid, RopeAxis, RopePlane, grid_span, laid, length, mark_forward, number, tokens


class Cosmos(Family):
    """Adapter of ``comfy.ldm.cosmos.model`` (blocks in a dict) and ``comfy.ldm.cosmos.predict2`` (blocks in a list)."""

    name = "Cosmos"
    classes: ClassVar[tuple[str, ...]] = ("GeneralDIT", "MiniTrainDIT")
    video = True

    def blocks(self, model: Any) -> list[Block]:
        return number({"block": len(model.blocks)})

    def batch_axis(self, model: Any) -> int:
        """Cosmos 1 puts time and space first."""
        return 3 if getattr(model, "block_x_format", "") == "THWBD" else 0

    def frames_per_token(self, model: Any) -> int:
        return int(model.patch_temporal)

    def install(self, patcher: Any) -> None:
        model = patcher.get_model_object("diffusion_model")
        names = [name for name, _ in model.blocks.named_children()]
        for block, name in zip(self.blocks(model), names, strict=True):
            mark_forward(patcher, f"diffusion_model.blocks.{name}", block)

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        return self.laid(model, x, length(context))

    def laid(self, model: Any, x: Tensor, words: int) -> Laid:
        """The geometry with that many text tokens."""
        side = model.patch_spatial
        grid = (tokens(x.shape[2], self.frames_per_token(model)), tokens(x.shape[3], side), tokens(x.shape[4], side))
        still = x.shape[2] == 1
        return laid(grid, still, grid_span(grid, still), prompt=Span("text", words))

    def text_width(self, model: Any) -> int | None:
        return model.blocks[0].cross_attn.k_proj.in_features if predict2(model) else None

    def text_reader(self, model: Any, block: Block, turn: int) -> Project | None:
        if not predict2(model):
            return None
        layer = model.blocks[block.index].cross_attn

        def project(text: Tensor) -> tuple[Tensor, Tensor]:
            k = layer.k_norm(layer.k_proj(text).unflatten(-1, (layer.n_heads, -1)))
            return k.flatten(2), layer.v_proj(text)

        return project

    def rope(self, model: Any, extra: dict[str, Any] | None = None) -> RopeAxis:
        """Channel pairs lie half a width apart, in the order time, height, width."""
        embedder = model.pos_embedder
        spread = embedder.dim_temporal_range.detach().cpu().double()
        n = len(spread)
        per_frame = (10000.0 * embedder.t_ntk_factor) ** -spread
        rate = (extra or {}).get("fps")
        if rate and embedder.enable_fps_modulation:
            per_frame = per_frame * embedder.base_fps / float(rate)
        pair_of = torch.full((1, n + 2 * len(embedder.dim_spatial_range)), -1)
        pair_of[0, :n] = torch.arange(n)
        return RopeAxis(per_frame, pair_of, pairing="halves")

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane:
        embedder = model.pos_embedder
        spread, n = embedder.dim_spatial_range.detach().cpu().double(), len(embedder.dim_temporal_range)
        freqs = torch.zeros(2, 1, n + 2 * len(spread), dtype=torch.float64)
        for axis, factor in enumerate((embedder.h_ntk_factor, embedder.w_ntk_factor)):
            first = n + axis * len(spread)
            freqs[axis, 0, first : first + len(spread)] = (10000.0 * factor) ** -spread
        return RopePlane(freqs, pairing="halves")


def predict2(model: Any) -> bool:
    """Whether a model is of Cosmos Predict2's class, whose blocks are a list."""
    return type(model).__name__ != "GeneralDIT" and hasattr(model.blocks[0], "cross_attn")
