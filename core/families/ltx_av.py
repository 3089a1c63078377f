"""LTX-2: video and sound in one model. In hosts later than ComfyUI 0.3.75; tried with 0.33.

Per block, in this order: the video's self-attention and its cross-attention to the text, the same two for the sound, then the
video reads the sound and the sound the video. Both latents come packed into one row of numbers, with their shapes beside it. What
the sound takes part in is "other": no method reaches it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..call import Block, Kind, Project, Span, TokenLayout
from .base import Laid, Place, Unclear, inside, layout, length
from .ltx import LTX


class LTXAV(LTX):
    """Adapter of ``comfy.ldm.lightricks.av_model``."""

    name = "LTX-2"
    classes = ("LTXAVModel",)

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        video, *sound = extra.get("latent_shapes") or [x.shape]
        laid = self.laid(video, context, extra)
        steps = sound[0][2] if sound else 0  # [B, channels, time, frequencies]
        before = extra.get("ref_audio")
        # reference sound in front
        spans = Span("other", 0 if before is None else length(before["tokens"])), Span("other", steps)
        return replace(laid, sound=layout(*spans))

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        mark = inside(options)
        self.unbroken(mark, geometry, nq, nk)
        expected = _calls(options, geometry.sequence, geometry.prompt, geometry.sound)
        if mark.calls >= len(expected):
            raise Unclear(f"{mark.block}: attention call number {mark.calls + 1} of {len(expected)}")
        return Place(mark.block, *expected[mark.calls])

    def text_width(self, model: Any) -> int | None:
        """Video and sound read halves of one text of their own making."""
        return None

    def text_reader(self, model: Any, block: Block, turn: int) -> Project | None:
        return None


def _calls(options: dict[str, Any], video: TokenLayout, text: TokenLayout, sound: TokenLayout) -> list[tuple[Kind, TokenLayout, TokenLayout]]:
    """The attention calls of one block. options: its transformer options, by which the host and other nodes leave some out."""
    with_video = options.get("run_vx", True)
    with_sound = options.get("run_ax", True) and sound.length > 0
    own = not options.get("stg_skip_self_attn", False)
    every: tuple[tuple[bool, Kind, TokenLayout, TokenLayout], ...] = (
        (with_video and own, "self", video, video),
        (with_video, "cross", video, text),
        (with_sound and own, "other", sound, sound),
        (with_sound, "other", sound, text),
        (with_video and sound.length > 0 and options.get("a2v_cross_attn", True), "other", video, sound),
        (with_sound and options.get("v2a_cross_attn", True), "other", sound, video),
    )
    return [(kind, q, k) for runs, kind, q, k in every if runs]
