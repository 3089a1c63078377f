"""FLUX.1, FLUX.2, Chroma and Chroma Radiance; LongCat-Image and Ovis-Image, which later hosts run as FLUX.

Joint attention over text, picture [, reference pictures]; double blocks, then single blocks in the same order. FLUX.2 pads
the prompt in front to 512 tokens before the model is called, so its text span holds the padding too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..call import Span, TokenLayout
from .base import Family, Laid, Place, RopePlane, Unclear, grid_span, inside, joint, laid, length, picture_tokens, tokens
from .rotary import stretched_axes


class Flux(Family):
    """Adapter of ``comfy.ldm.flux.model`` and ``comfy.ldm.chroma``."""

    name = "FLUX"
    classes = ("Flux", "Chroma")
    joint = True
    stacks = {"double": "double_blocks", "single": "single_blocks"}
    slots = {"double": "double_block", "single": "single_block"}
    word_stacks = ("double",)

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        grid = (1, tokens(x.shape[2], model.patch_size), tokens(x.shape[3], model.patch_size))
        reference = picture_tokens(extra.get("ref_latents"), model.patch_size) if _is_flux(model) else 0
        text = Span("text", length(context))
        return laid(grid, True, text, grid_span(grid, True), Span("reference", reference))

    def plane(self, model: Any, options: dict[str, Any]) -> RopePlane | None:
        """FLUX.2 has four axes, which are not read. The host lets other nodes stretch both axes."""
        return stretched_axes(model.pe_embedder, options.get("rope_options") if _is_flux(model) else None)

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        mark = inside(options)
        added = 0 if mark.text is None else mark.text - geometry.text
        if added < 0:
            raise Unclear(f"{mark.block}: the prompt has {geometry.text} tokens, the block {mark.text}")
        if added:
            # the host's style reference puts its picture tokens in front of the prompt
            geometry = replace(geometry, sequence=TokenLayout((Span("other", added), *geometry.sequence.spans)))
        return joint(mark, geometry)


def _is_flux(model: Any) -> bool:
    """Whether it is no Chroma, which drops the reference pictures and the stretch of its axes that the host hands it."""
    return any(c.__name__ == "Flux" for c in type(model).__mro__)
