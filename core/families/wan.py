"""Wan 2.1 and 2.2: text-to-video, image-to-video, TI2V, VACE, camera, Phantom-like references, HuMo, Animate; of later hosts SCAIL, WanDancer, S2V.

Per block: self-attention over [reference frames,] video tokens [, appended reference frames] [, what counts time and places for
itself, "other": poses (SCAIL), the clip before (S2V), in-context latents], then cross-attention to the text (image-to-video with a
CLIP picture: first to the picture, then to the text) and in HuMo to the sound, frame by frame. VACE runs blocks of its own between
the main ones, once per control video; they are no part of the numbering. What Animate, S2V and WanDancer do between two blocks
(face, sound, music) is attention no pack can reach; it stays as it is.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..call import Block, Project, Span
from .base import Family, Laid, Place, RopeAxis, RopePlane, grid_span, inside, laid, latent_tokens, layout, length, self_then_cross, tokens
from .rotary import first_axis, stretched_axes

SOUND = 16
"""Tokens of sound that each frame reads in HuMo."""
SHRUNK = ((1, 2, 2), (2, 4, 4), (4, 8, 8))
"""Patches of the last frame, the two and the sixteen before it in which S2V takes in the clip before."""
BEFORE = (1, 2, 16)


class Wan(Family):
    """Adapter of ``comfy.ldm.wan.model``."""

    name = "Wan"
    classes = ("WanModel",)
    video = True
    positions_in_model_dtype = True
    stacks = {"block": "blocks"}
    slots = {"block": "double_block"}
    side_stacks = {"vace": "vace_blocks"}
    refused = {
        "WanModel_S2V": "in this ComfyUI its blocks do not hand on the options by which a pack reaches their attention",
        "WanAnimate2Model": "it attends frame by frame to a second branch, in a way this version does not know",
    }

    def refuses(self, model: Any) -> str | None:
        """Later hosts hand the options on to the blocks of S2V."""
        found = super().refuses(model)
        return None if found == "WanModel_S2V" and _hands_options_on(type(model)) else found

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        pt, py, px = model.patch_size
        grid = (tokens(x.shape[2], pt), tokens(x.shape[3], py), tokens(x.shape[4], px))
        still = x.shape[2] == 1
        before, behind = _beside(model, extra, grid)
        heard = hasattr(model, "audio_proj") and extra.get("audio_embed") is not None
        sound = layout(Span("other", SOUND if heard else 0))
        return laid(grid, still, *before, grid_span(grid, still), *behind, prompt=Span("text", length(context)), sound=sound)

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        mark = inside(options)
        picture = 0 if mark.text is None else mark.text - geometry.text
        if mark.calls == 1 and picture > 0:
            return Place(mark.block, "cross", geometry.sequence, layout(Span("reference", picture)))
        if mark.calls == 2 and geometry.sound.length:
            return Place(mark.block, "other", layout(Span("other", math.prod(geometry.grid[1:]))), geometry.sound)
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
        if axis is None:
            return None
        extra = extra or {}
        if hasattr(model, "music_injector"):
            axis = replace(axis, times=partial(_at_thirty, float(extra.get("fps") or 30)))
        # the host numbers reference frames, video and appended frames through; S2V and SCAIL-2's other mode set references apart
        apart = hasattr(model, "frame_packer") or extra.get("ref_mask_flag", True) is False
        return replace(axis, references_in_line=not apart)

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane | None:
        """The host lets other nodes stretch both axes."""
        return stretched_axes(model.rope_embedder, options.get("rope_options"))


def _beside(model: Any, extra: dict[str, Any], grid: tuple[int, int, int]) -> tuple[list[Span], list[Span]]:
    """What stands before and behind the video in one sequence with it. extra: the keyword conditions."""
    patch = model.patch_size
    before, behind = [], []
    first, appended, motion = extra.get("reference_latent"), extra.get("time_dim_concat"), extra.get("reference_motion")
    poses = hasattr(model, "patch_embedding_pose")
    if appended is not None:
        behind.append(Span("reference", tokens(appended.shape[2], patch[0]) * grid[1] * grid[2]))
    if first is not None and getattr(model, "ref_conv", None) is not None:
        before.append(Span("reference", _whole(first, patch[1:])))
    elif first is not None and poses:
        before.append(Span("reference", latent_tokens(first, patch)))
    elif first is not None and (hasattr(model, "audio_proj") or hasattr(model, "frame_packer")):
        behind.append(Span("reference", _whole(first, patch)))
    if poses and extra.get("pose_latents") is not None:
        behind.append(Span("other", latent_tokens(extra["pose_latents"], patch)))
    if motion is not None and hasattr(model, "frame_packer"):
        behind.append(Span("other", sum(_whole((n, *motion.shape[-2:]), p) for n, p in zip(BEFORE, SHRUNK, strict=True))))
    behind += [Span("other", latent_tokens(latent, patch)) for latent in extra.get("context_latents") or ()]
    return before, behind


def _whole(latent: Tensor | Sequence[int], patch: Sequence[int]) -> int:
    """Tokens of a latent, or of its shape, under a convolution without padding: whole patches only."""
    shape = latent.shape if isinstance(latent, Tensor) else latent
    return math.prod(n // p for n, p in zip(shape[-len(patch) :], patch, strict=True))


def _hands_options_on(model: type) -> bool:
    """Whether a model class gives its blocks the transformer options."""
    forward = getattr(model, "forward_orig", None)
    return forward is not None and 'transformer_options=args["transformer_options"]' in inspect.getsource(forward)


def _at_thirty(rate: float, frames: int) -> Tensor:
    """Temporal positions of WanDancer's frames: in thirtieths of a second; the last is rounded to a whole one where the clip has another rate."""
    times = torch.arange(frames, dtype=torch.float64)
    if int(rate + 0.5) == 30:
        return times
    times = times * (30.0 / rate)
    times[-1] = int(30.0 / rate * frames + 0.5) - 1
    return times
