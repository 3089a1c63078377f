"""Anima: Cosmos Predict2 for pictures. In hosts later than ComfyUI 0.3.75; tried with 0.33.

Per block self-attention over the picture, then cross-attention to the text. What the blocks read as text is not the conditioning: an
adapter of the model's own turns it into one row per T5 token of the prompt and fills up to 512 rows with zeros. The host runs the
adapter before the model call, or inside of it where gradients are wanted; its own attention is out of reach.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Block, Project
from .base import Laid, length
from .cosmos import Cosmos

LEAST_TEXT = 512
"""Rows of text the blocks read at least."""


class Anima(Cosmos):
    """Adapter of ``comfy.ldm.anima.model``."""

    name = "Anima"
    classes = ("Anima",)
    video = False

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        ids = extra.get("t5xxl_ids")  # the adapter has yet to run
        return self.laid(model, x, length(context) if ids is None else max(ids.shape[-1], LEAST_TEXT))

    def text_width(self, model: Any) -> int | None:
        """A conditioning is as wide as what the blocks read and yet another thing."""
        return None

    def text_reader(self, model: Any, block: Block, turn: int) -> Project | None:
        return None
