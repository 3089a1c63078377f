"""HunyuanVideo, HunyuanVideo 1.5 and HunyuanImage 2.1.

Joint attention over [reference frames,] video and text; double blocks, then single blocks. The text stands behind the video in ComfyUI
0.3.75 and in front of it in later hosts. It is refined by two attention calls before the blocks. Glyph (byT5) and picture (vision)
tokens join it after that: the vision tokens in front, the glyph tokens in front of the prompt in 1.5 and behind it otherwise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..call import Span
from .base import Family, Laid, Place, RopeAxis, RopePlane, grid_span, inside, joint, laid, length, mark_outside, refined, tokens
from .rotary import first_axis, last_axes


class HunyuanVideo(Family):
    """Adapter of ``comfy.ldm.hunyuan_video.model``."""

    name = "HunyuanVideo"
    classes = ("HunyuanVideo",)
    joint = True
    video = True
    positions_in_model_dtype = True
    stacks = {"double": "double_blocks", "single": "single_blocks"}
    slots = {"double": "double_block", "single": "single_block"}

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        *pt, py, px = model.patch_size  # the picture models have two numbers
        frames = tokens(x.shape[2], pt[0]) if pt else 1
        grid = (frames, tokens(x.shape[-2], py), tokens(x.shape[-1], px))
        still = not pt or x.shape[2] == 1
        if x.ndim != len(model.patch_size) + 2:
            raise IndexError(f"the latent has {x.ndim} axes, the model takes {len(model.patch_size) + 2}")
        reference = 0
        if extra.get("ref_latent") is not None:
            ref = extra["ref_latent"]
            reference = (tokens(ref.shape[2], pt[0]) if pt else 1) * tokens(ref.shape[-2], py) * tokens(ref.shape[-1], px)
        text = length(context)
        prompt = Span("text", text)
        glyphs = Span("other", length(extra.get("txt_byt5")) if getattr(model, "byt5_in", None) is not None else 0)
        vision = Span("reference", length(extra.get("clip_fea")))
        words = (glyphs, prompt) if getattr(model, "cond_type_embedding", None) is not None else (prompt, glyphs)
        picture, prompts = (Span("reference", reference), grid_span(grid, still)), (vision, *words)
        sequence = (*picture, *prompts) if _picture_first(model) else (*prompts, *picture)
        return replace(laid(grid, still, *sequence), reference=reference)

    def mark(self, options: dict[str, Any], model: Any) -> None:
        mark_outside(options, "refiner")
        super().mark(options, model)

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        mark = inside(options)
        return refined(mark, geometry, nq, nk) if mark.block.kind == "refiner" else joint(mark, geometry)

    def rope(self, model: Any, extra: dict[str, Any] | None = None) -> RopeAxis | None:
        return first_axis(model.pe_embedder) if len(model.patch_size) == 3 else None

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane | None:
        return last_axes(model.pe_embedder) if len(model.patch_size) == 3 else None


def _picture_first(model: Any) -> bool:
    """Whether the host joins text and picture in this order: it has blocks with a switch for that, which later hosts dropped with the order."""
    return bool(getattr(model.double_blocks[0], "flipped_img_txt", False))
