"""Node: Longer Video (RIFLEx)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..core.attach import attach
from ..core.errors import LoomError
from ..core.families import family_of
from ..core.methods.riflex import RIFLEx
from . import common


@dataclass(frozen=True)
class Preset:
    """k as published, or the distance of the first repetition where k must be found."""

    k: int = 0
    repeat: float = 0.0


PRESETS = {"Wan": Preset(k=6), "HunyuanVideo": Preset(k=4), "CogVideoX": Preset(k=2), "LTX": Preset(repeat=33.0)}
CUSTOM = "custom"


class LoomRIFLEx(io.ComfyNode):
    """Attaches :class:`core.methods.riflex.RIFLEx`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Simple inputs first, expert inputs optional and last."""
        return io.Schema(
            node_id="LoomRIFLEx",
            display_name="Longer Video (RIFLEx)",
            category=common.category("video"),
            description=(
                "Keeps a video up to about twice the trained length from starting over, by slowing the one rotary frequency of time that "
                "makes it loop. Costs nothing. For more than that use Longer Video (UltraViCo). (RIFLEx, arXiv 2502.15894)"
            ),
            inputs=[
                common.model_input(),
                io.Combo.Input("preset", options=["auto", *PRESETS, CUSTOM], default="auto",
                               tooltip="Which frequency to slow for your model. auto recognises Wan, HunyuanVideo, CogVideoX and LTX."),
                common.strength_input("How far the frequency is slowed."),
                io.Int.Input("k", default=0, min=0, max=64, optional=True,
                             tooltip="Number of the frequency, from 1 (fastest). 0 takes the preset's, or with custom the one nearest to repeat_frames. (paper: k)"),
                io.Float.Input("repeat_frames", default=0.0, min=0.0, max=1024.0, step=0.5, optional=True,
                               tooltip="With custom and k = 0: latent frames after which the stock video first repeats. (paper: N)"),
                *common.window_inputs(),
                *common.place_inputs()[:1],
            ],
            outputs=[common.model_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, preset: str, strength: float, **expert: Any) -> io.NodeOutput:
        """validate -> configure -> attach."""
        return io.NodeOutput(attach(model, configure(model, preset, strength, **expert)))


def configure(
    model: Any, preset: str = "auto", strength: float = 1.0, k: int = 0, repeat_frames: float = 0.0, start_percent: float = 0.0, end_percent: float = 1.0, blocks: str = ""
) -> RIFLEx:
    """The node's inputs as a method. Raises LoomError."""
    common.choice("preset", preset, ["auto", *PRESETS, CUSTOM])
    if preset == "auto":
        family = family_of(model.get_model_object("diffusion_model")).name
        preset = next((name for name in PRESETS if family.startswith(name)), CUSTOM)
    values = PRESETS.get(preset, Preset())
    k, repeat = k or values.k, repeat_frames or values.repeat
    if not k and not repeat:
        raise LoomError("no frequency was chosen; set k, or repeat_frames to the number of latent frames after which the stock video first repeats.")
    return RIFLEx(k=k, repeat=repeat, strength=strength, window=common.window(start_percent, end_percent), blocks=common.blocks(blocks))
