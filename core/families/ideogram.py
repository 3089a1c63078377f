"""Ideogram 4: one joint attention per block over text, picture. In hosts later than ComfyUI 0.3.75; tried with 0.33.

A token is one place of the latent. Padding inside the text is masked, pair by pair of tokens. Without a text the picture runs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..call import Block, Span
from .base import Family, Laid, Place, RopePlane, grid_span, inside, joint, layout, length, mark_forward, number


class Ideogram(Family):
    """Adapter of ``comfy.ldm.ideogram4.model``."""

    name = "Ideogram 4"
    classes = ("Ideogram4Transformer2DModel",)
    joint = True

    def blocks(self, model: Any) -> list[Block]:
        return number({"single": len(model.layers)})

    def install(self, patcher: Any) -> None:
        for block in self.blocks(patcher.get_model_object("diffusion_model")):
            mark_forward(patcher, f"diffusion_model.layers.{block.index}", block)

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        grid = (1, x.shape[2], x.shape[3])
        text = Span("text", length(context))
        return Laid(grid, text.length, 0, True, sequence=layout(text, grid_span(grid, True)), prompt=layout(text))

    def mark(self, options: dict[str, Any], model: Any) -> None:
        """Done by :meth:`install`: the host has no block replace here."""

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        return joint(inside(options), geometry)

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane:
        return interleaved_axes(model.head_dim, model.rope_theta, model.mrope_section)


def interleaved_axes(width: int, theta: float, sections: Sequence[int]) -> RopePlane:
    """Height and width as Qwen3-VL rotates by them: every third frequency each, as many as ``sections`` (time, height, width) says."""
    every = float(theta) ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    freqs = torch.zeros(2, 1, len(every), dtype=torch.float64)
    for axis in (0, 1):
        own = slice(axis + 1, 3 * sections[axis + 1], 3)
        freqs[axis, 0, own] = every[own]
    return RopePlane(freqs, pairing="halves")
