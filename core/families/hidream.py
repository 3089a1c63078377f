"""HiDream-I1: one joint attention per block over picture, prompt, Llama tokens twice; double blocks, then single blocks.

The prompt comes as the T5 encoding, which is the conditioning, and as one Llama encoding per layer of Llama beside it. Every block
reads the T5 tokens, those of Llama's last chosen layer and those of the layer that is this block's own. Only the T5 tokens are "text"
here, as words are found in the conditioning; Llama's are "other".

HiDream-E1 lays the picture to be edited to the right of the generated one, so that rows of both alternate: its calls stay as they are.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Span
from .base import Family, Laid, Place, RopePlane, Unclear, grid_span, inside, joint, laid, length, tokens
from .rotary import last_axes


class HiDream(Family):
    """Adapter of ``comfy.ldm.hidream.model``."""

    name = "HiDream-I1"
    classes = ("HiDreamImageTransformer2DModel",)
    joint = True
    stacks = {"double": "double_stream_blocks", "single": "single_stream_blocks"}

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        grid = (1, tokens(x.shape[2], model.patch_size), tokens(x.shape[3], model.patch_size))
        text = Span("text", length(context))
        llama = extra.get("encoder_hidden_states_llama3")  # [B, layers, N, C]
        again = Span("other", 0 if llama is None else 2 * llama.shape[2])
        beside = extra.get("image_cond")
        wide = 0 if beside is None else tokens(x.shape[3] + beside.shape[3], model.patch_size)
        note = f"the picture to be edited lies beside the generated one, in the same rows of {wide} tokens" if wide else ""
        return laid(grid, True, grid_span(grid, True), text, again, note=note)

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        if geometry.note:
            raise Unclear(geometry.note)
        return joint(inside(options), geometry)

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane | None:
        return last_axes(model.pe_embedder)
