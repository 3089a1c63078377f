"""Node: Any Size (entropy scaling)."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.attach import attach
from ..core.methods.entropy_scale import EntropyScale
from ..core.trained import trained_grids
from . import common

APPLY = ["both", "smaller", "larger"]
MODES = ["paper", "measured"]
MANY_TOLERANCE = 0.15
"""Models trained on many sizes are left alone within this share of the trained number of tokens (our choice)."""


class LoomEntropyScale(io.ComfyNode):
    """Attaches :class:`core.methods.entropy_scale.EntropyScale`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Simple inputs first, expert inputs optional and last."""
        return io.Schema(
            node_id="LoomEntropyScale",
            display_name="Any Size (entropy scaling)",
            category=common.category("image"),
            description=(
                "Helps a model at sizes it was not trained on: smaller pictures lose fewer parts of objects, moderately larger ones (to about 1.5x per side) "
                "repeat less. One factor on the attention, at no cost. It does not cure 2x and more per side: use a second pass there. "
                "(Variable-sized synthesis, arXiv 2306.08645)"
            ),
            inputs=[
                common.model_input(),
                io.Float.Input("strength", default=1.0, min=0.0, max=3.0, step=0.01,
                               tooltip="How strongly attention follows the size. 1 is the paper's rule, 2 the one of long-text models; 0 turns the node off: the result is then exactly that of the graph without it. (exponent p/2)"),
                io.Int.Input("train_width", default=0, min=0, max=8192, optional=True,
                             tooltip="Width in pixels the model was trained at. 0 takes it from a table (SD 1.5 and 2: 512 or 768, SDXL, SVD: 1024 x 576, SD3, FLUX.1, LongCat-Image, Lumina 2, Z-Image, HiDream-I1, OmniGen2, AuraFlow: 1024, Qwen-Image: 1328, Wan 2.1 and 2.2 of 1.3B and 14B: 832 x 480 or 1280 x 720)."),
                io.Int.Input("train_height", default=0, min=0, max=8192, optional=True,
                             tooltip="Height in pixels the model was trained at. 0 takes it from the table; set both or neither."),
                io.Int.Input("train_frames", default=0, min=0, max=4096, optional=True,
                             tooltip="Pixel frames of a clip in training (Wan: 81). 0 takes it from the table. Picture models do not need it."),
                *common.window_inputs(),
                *common.advanced(
                io.Combo.Input("apply", options=APPLY, default="both", optional=True,
                               tooltip="At which sizes to act: both, only smaller than trained (softer attention), or only larger (sharper attention)."),
                io.Combo.Input("mode", options=MODES, default="paper", optional=True,
                               tooltip="paper: one factor from the two sizes. measured (experimental, not in the paper): a much stronger factor per head, from how far its own logits spread in this very call."),
                ),
                *common.place_inputs(),
            ],
            outputs=[common.model_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, strength: float, **expert: Any) -> io.NodeOutput:
        """validate -> configure -> attach."""
        return io.NodeOutput(attach(model, configure(model, strength, **expert)))


def configure(
    model: Any,
    strength: float = 1.0,
    train_width: int = 0,
    train_height: int = 0,
    train_frames: int = 0,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    apply: str = "both",
    mode: str = "paper",
    blocks: str = "",
    backend: str = "auto",
) -> EntropyScale:
    """The node's inputs as a method. Raises LoomError."""
    grids, many = trained_grids(model, train_width, train_height, train_frames)
    return EntropyScale(
        trained=grids,
        strength=strength,
        mode=common.choice("mode", mode, MODES),  # type: ignore[arg-type]
        apply=common.choice("apply", apply, APPLY),  # type: ignore[arg-type]
        tolerance=MANY_TOLERANCE if many else 0.0,
        window=common.window(start_percent, end_percent),
        blocks=common.blocks(blocks),
        backend=common.choice("backend", backend, common.BACKENDS),
    )
