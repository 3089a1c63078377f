"""Node: Keep Every Subject (A-STAR)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io, ui

from ..core.attach import attach
from ..core.concepts import Located, tagged
from ..core.families import family_of
from ..core.methods.astar import LOSSES, AStar
from . import common
from .prompt import encode, find, positive_input, prompt_inputs


@dataclass(frozen=True)
class Preset:
    """Per-model values. until: share of the sampling after which the layout stands."""

    step_mode: str
    alpha: float
    maps: str
    until: float


PRESETS = {
    "SD 1.5 / SD 2": Preset("paper", 20.0, "sharpened", 1.0),
    "SDXL": Preset("paper", 10.0, "sharpened", 0.6),
    "flow (SD3, FLUX, Qwen-Image, Lumina, Wan)": Preset("normalised", 20.0, "raw", 0.5),
}
SD15, SDXL, FLOW = PRESETS
CUSTOM = "custom"
STEP_MODES = ["from preset", "paper", "normalised"]
MAPS = ["from preset", "sharpened", "raw"]


class LoomAStar(io.ComfyNode):
    """Attaches :class:`core.methods.astar.AStar`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Simple inputs first, expert inputs optional and last."""
        return io.Schema(
            node_id="LoomAStar",
            display_name="Keep Every Subject (A-STAR)",
            category=common.category("image"),
            description=(
                "For prompts with two to five things of which one gets lost or two melt together: before each step the latent is moved so that "
                "the named things hold places of their own in the picture, and keep them. Each step takes a forward and a backward pass more. Gives the "
                "model and the positive prompt it works on. (A-STAR, arXiv 2306.14544)"
            ),
            inputs=[
                common.model_input(),
                *prompt_inputs("concepts", "The things to keep, one per line, in words of the prompt: 'cat', 'red ball'. The node shows which tokens it found."),
                common.strength_input("Factor on the step."),
                io.Combo.Input("loss", options=list(LOSSES), default="a_star",
                               tooltip="a_star: places of their own (seg) and kept from step to step (ret). attend_excite: raise the weakest thing instead (Attend-and-Excite)."),
                io.Combo.Input("preset", options=["auto", *PRESETS, CUSTOM], default="auto",
                               tooltip="Size of the step, preparation of the maps, and up to where: SDXL stops at 0.6 and flow models at 0.5 of the sampling. custom: your values, to the end."),
                positive_input(),
                io.Mask.Input("masks", optional=True,
                              tooltip="Where the first things shall be: a batch of masks in the order of the lines. Things without a mask keep the place they find."),
                *common.window_inputs(),
                *common.advanced(
                io.Combo.Input("step_mode", options=STEP_MODES, default="from preset", optional=True,
                               tooltip="paper: alpha times the gradient, as published for SD 1.5. normalised: a step of fixed size, eta, whatever the model."),
                io.Float.Input("alpha", default=20.0, min=0.0, max=200.0, step=0.5, optional=True,
                               tooltip="With preset custom and step_mode paper: size of the step; falls to 0.7 of it over the run. (paper: alpha)"),
                io.Float.Input("eta", default=0.02, min=0.0, max=0.2, step=0.001, optional=True,
                               tooltip="With step_mode normalised: size of the step as a share of the noise in the latent."),
                io.Float.Input("lambda_seg", default=1.0, min=0.0, max=5.0, step=0.05, optional=True,
                               tooltip="Weight of keeping things apart. (paper: L_seg)"),
                io.Float.Input("lambda_ret", default=1.0, min=0.0, max=5.0, step=0.05, optional=True,
                               tooltip="Weight of keeping things where they were. (paper: L_ret)"),
                io.Float.Input("tau", default=0.5, min=0.1, max=0.9, step=0.05, optional=True,
                               tooltip="From which share of its strongest cell on a place belongs to a thing. Lower keeps larger places."),
                io.Int.Input("repeats", default=1, min=1, max=20, optional=True,
                             tooltip="Updates per step. Models that sample in few steps need more; each costs about three model calls."),
                io.Int.Input("grid", default=0, min=0, max=128, optional=True,
                             tooltip="Longer side of the attention maps in cells. 0: a quarter of the latent on UNets, at most 32 on models with text and picture in one attention; as they are on Wan."),
                io.Combo.Input("maps", options=MAPS, default="from preset", optional=True,
                               tooltip="sharpened: each cell goes to the word it attends to most, then a small blur (as Attend-and-Excite). raw: the attention itself."),
                io.String.Input("blocks", default="", optional=True,
                                tooltip="Blocks whose maps are read; empty takes the usual ones. 7-10 counts all blocks in order, d5 a double block; for UNets d8.0, u3-5. The gradient stops at the last one: earlier is faster."),
                io.Boolean.Input("spare_memory", default=False, optional=True,
                                 tooltip="Keep what the gradient needs in system memory instead of the GPU's: slower, for large models and pictures."),
                ),
            ],
            outputs=[
                common.model_output(),
                io.Conditioning.Output(display_name="positive", tooltip="The positive prompt: connect it to the sampler."),
                io.String.Output(display_name="tokens", tooltip="Which tokens of the prompt each concept was found in."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, clip: Any, prompt: str, concepts: str, strength: float, loss: str, preset: str, **more: Any) -> io.NodeOutput:
        """Encode -> locate -> configure -> attach."""
        given = more.pop("positive", None)
        positive = encode(clip, prompt) if given is None else given
        located = find(clip, prompt, concepts, positive)
        method = configure(model, located, strength, loss, preset, **more)
        return io.NodeOutput(attach(model, method), tagged(positive, prompt), located.text, ui=ui.PreviewText(located.text))


def configure(
    model: Any,
    located: Located,
    strength: float = 1.0,
    loss: str = "a_star",
    preset: str = "auto",
    masks: Any = None,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    step_mode: str = "from preset",
    alpha: float = 20.0,
    eta: float = 0.02,
    lambda_seg: float = 1.0,
    lambda_ret: float = 1.0,
    tau: float = 0.5,
    repeats: int = 1,
    grid: int = 0,
    maps: str = "from preset",
    blocks: str = "",
    spare_memory: bool = False,
) -> AStar:
    """The node's inputs as a method. Raises LoomError."""
    common.choice("preset", preset, ["auto", *PRESETS, CUSTOM])
    custom = preset == CUSTOM
    values = PRESETS[recognise(model) if preset == "auto" or custom else preset]
    common.choice("step_mode", step_mode, STEP_MODES)
    common.choice("maps", maps, MAPS)
    return AStar(
        located,
        strength=strength,
        loss=common.choice("loss", loss, list(LOSSES)),  # type: ignore[arg-type]
        step_mode=values.step_mode if step_mode == "from preset" else step_mode,  # type: ignore[arg-type]
        alpha=alpha if custom else values.alpha,
        eta=eta,
        lambda_seg=lambda_seg,
        lambda_ret=lambda_ret,
        tau=tau,
        repeats=repeats,
        grid=grid,
        maps=values.maps if maps == "from preset" else maps,  # type: ignore[arg-type]
        masks=masks,
        window=common.window(start_percent, end_percent if custom else min(end_percent, values.until)),
        blocks=common.blocks(blocks),
        spare_memory=spare_memory,
    )


def recognise(model: Any) -> str:
    """Which preset belongs to a model."""
    if family_of(model.get_model_object("diffusion_model")).name != "SD 1.5 / SDXL":
        return FLOW
    return SDXL if type(model.model).__name__.startswith("SDXL") else SD15
