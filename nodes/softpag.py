"""Node: Head Guidance (SoftPAG)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..core.attach import attach
from ..core.call import Block
from ..core.errors import LoomError
from ..core.families import family_of
from ..core.guidance import RESCALE_MODES, Guidance
from ..core.heads import HeadSet
from ..core.methods.softpag import LOOM_HEADS, ROWS, TARGETS, SoftPAG
from . import common


@dataclass(frozen=True)
class Preset:
    """Heads or blocks with an effect shown in the paper's figures, and the model they belong to."""

    heads: str
    model: str


PRESETS = {
    "SD3: layers 7-10 (structure)": Preset("7-10", "SD3 medium"),
    "SD3: shear": Preset("L11H15", "SD3 medium"),
    "SD3: darker": Preset("L1H10, L1H2", "SD3 medium"),
    "SD3: brighter": Preset("L0H15, L1H19", "SD3 medium"),
    "SD3: red": Preset("L0H3", "SD3 medium"),
    "SD3: horizontal bands": Preset("L16H3", "SD3 medium"),
    "SD3: golden hour": Preset("L18H11, L0H17, L2H3", "SD3 medium"),
    "SD3: fine detail, neon": Preset("L14H7, L14H17", "SD3 medium"),
    "FLUX: vintage film": Preset("L51H23", "FLUX.1 dev"),
    "FLUX: warm red": Preset("L52H22", "FLUX.1 dev"),
    "FLUX: bokeh, detail": Preset("L34H0", "FLUX.1 dev"),
    "FLUX: cool tone": Preset("L52H6", "FLUX.1 dev"),
    "FLUX: golden hour": Preset("L38H18", "FLUX.1 dev"),
    "FLUX: green": Preset("L52H12", "FLUX.1 dev"),
    "FLUX: glossy": Preset("L43H17", "FLUX.1 dev"),
}
"""arXiv 2506.10978, figures; some labels there are ambiguous, so they are examples and no promise."""

MODELS = {"SD3 medium": ("SD3", 24, 24), "FLUX.1 dev": ("FLUX", 57, 24)}
"""(family, blocks, heads of each) the presets were found on."""

AUTO = "auto"
FIRST, LAST, OF = 7, 10, 24
"""The paper's start on SD3 medium, blocks 7 to 10 of 24; other depths take the same share."""


class LoomSoftPAG(io.ComfyNode):
    """Attaches :class:`core.methods.softpag.SoftPAG`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Simple inputs first, expert inputs optional and last."""
        return io.Schema(
            node_id="LoomSoftPAG",
            display_name="Head Guidance (SoftPAG)",
            category=common.category("guidance"),
            description=(
                "Cleaner structure, or a steady look, without a higher CFG: each step also predicts the picture with some attention heads weakened, and "
                "the sampling is pushed away from that. Works on pictures and video, with and without CFG. Costs one more evaluation of the model per "
                "guided step. Several of these nodes add up. (arXiv 2506.10978)"
            ),
            inputs=[
                common.model_input(),
                io.Combo.Input("preset", options=[AUTO, *PRESETS], default=AUTO,
                               tooltip="Which heads are weakened. auto: the middle block of a U-Net, or the blocks that give structure in a transformer, unless heads are given below. The others are examples from the paper for that model alone; given heads are added to them."),
                io.Float.Input("scale", default=3.0, min=0.0, max=20.0, step=0.1,
                               tooltip="How strongly the sampling is pushed away. 2 to 5 is usual; 0 turns the node off: the result is then exactly that of the graph without it. (paper: w)"),
                io.Float.Input("u", default=0.5, min=0.0, max=1.0, step=0.01,
                               tooltip="How far the heads are weakened. 1 is perturbed-attention guidance: strongest, and prone to smooth and saturate; 0.3 to 0.6 keeps more of the picture. For video start at 0.3."),
                io.String.Input("heads", default="", optional=True,
                                tooltip="Heads by hand, or the text of a heads file. 7-10: whole blocks; 9:0,3,5: heads of block 9; L9H3@0.3: one head with a u of its own; d5, s12: double and single blocks; U-Nets: d0-d5, m0, u0.4."),
                io.Custom(LOOM_HEADS).Input("found_heads", optional=True,
                                            tooltip="Heads found by the Attention Inspector or HeadHunter. They are used together with heads written above."),
                *common.window_inputs(),
                *common.advanced(
                io.Combo.Input("target", options=list(TARGETS), default="identity", optional=True,
                               tooltip="What weakened heads do: identity: each token keeps to itself; uniform: all tokens alike; query mean: all read what the average token reads (smoothed-energy guidance); max: each reads one token only (slow)."),
                io.Combo.Input("rows", options=list(ROWS), default="all", optional=True,
                               tooltip="Which tokens of joint attention are weakened. all: picture and text, as in the paper; image_rows: the text keeps its attention; image_image: picture tokens see themselves and the text (identity only)."),
                io.Float.Input("rescale", default=0.0, min=0.0, max=1.0, step=0.01, optional=True,
                               tooltip="Shrinks the push where it would raise contrast: 1 fully. Against saturated, burnt pictures at a high scale."),
                io.Combo.Input("rescale_mode", options=list(RESCALE_MODES), default="full", optional=True,
                               tooltip="full: measured on the result with CFG; partial: on the conditional prediction alone; snf: place by place the stronger of CFG and this guidance wins (ignores rescale)."),
                io.Float.Input("adaptive_scale", default=0.0, min=0.0, max=1.0, step=0.01, optional=True,
                               tooltip="Lowers the scale towards the end of the sampling and stops it early, which saves time. 0.2 stops after about 60 % of the timesteps."),
                io.Float.Input("sigma_start", default=-1.0, min=-1.0, max=10000.0, step=0.01, optional=True,
                               tooltip="Acts only at noise levels up to this one. Negative: no limit."),
                io.Float.Input("sigma_end", default=-1.0, min=-1.0, max=10000.0, step=0.01, optional=True,
                               tooltip="Acts only at noise levels above this one. Negative: no limit."),
                ),
                *common.place_inputs()[1:],
                *common.advanced(
                io.Boolean.Input("reuse_prefix", default=False, optional=True,
                                 tooltip="Faster: the extra evaluation takes the blocks before the first chosen one over from the normal one, which computed the same. Up to rounding the same picture. Transformers only; keeps one layer's activations."),
                ),
            ],
            outputs=[common.model_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, preset: str, scale: float, u: float, **expert: Any) -> io.NodeOutput:
        """validate -> configure -> attach."""
        return io.NodeOutput(attach(model, configure(model, preset, scale, u, **expert)))


def configure(
    model: Any,
    preset: str = AUTO,
    scale: float = 3.0,
    u: float = 0.5,
    heads: str = "",
    found_heads: str | None = None,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    target: str = "identity",
    rows: str = "all",
    rescale: float = 0.0,
    rescale_mode: str = "full",
    adaptive_scale: float = 0.0,
    sigma_start: float = -1.0,
    sigma_end: float = -1.0,
    backend: str = "auto",
    reuse_prefix: bool = False,
) -> SoftPAG:
    """The node's inputs as a method. Raises LoomError."""
    return SoftPAG(
        _heads(model, preset, heads, found_heads),
        u,
        common.choice("target", target, list(TARGETS)),
        common.choice("rows", rows, list(ROWS)),
        guidance=Guidance(scale, rescale, common.choice("rescale_mode", rescale_mode, list(RESCALE_MODES)), adaptive_scale, sigma_start, sigma_end),  # type: ignore[arg-type]
        reuse=reuse_prefix,
        window=common.window(start_percent, end_percent),
        backend=common.choice("backend", backend, common.BACKENDS),
    )


def _heads(model: Any, preset: str, typed: str, found: str | None) -> HeadSet:
    """Everything that was given together; auto only where nothing was. An empty connected selection is an error, not auto."""
    common.choice("preset", preset, [AUTO, *PRESETS])
    if found is not None and not isinstance(found, str):
        raise LoomError(f"found_heads holds a {type(found).__name__}; connect the heads of the Attention Inspector or of HeadHunter.")
    if found is not None and not found.strip():
        raise LoomError("found_heads is connected and names no head; loosen what the node before looks for, or disconnect it.")
    given = HeadSet.parse(typed) + HeadSet.parse(found or "")
    if preset != AUTO:
        return _published(model, preset) + given
    if given.items:
        return given
    diffusion = model.get_model_object("diffusion_model")
    return HeadSet.parse(start_point(family_of(diffusion).blocks(diffusion)))


def _published(model: Any, name: str) -> HeadSet:
    """A preset's heads, on the model they were found on only."""
    diffusion, preset = model.get_model_object("diffusion_model"), PRESETS[name]
    family = family_of(diffusion)
    blocks = family.blocks(diffusion)
    is_35 = any(getattr(module, "x_block_self_attn", False) for module in diffusion.modules())
    relative = preset.model.startswith("FLUX") and type(diffusion).__name__ != "Flux"  # Chroma has as many blocks and heads
    if (family.name, len(blocks), family.heads(diffusion, blocks[0])) != MODELS[preset.model] or is_35 or relative:
        raise LoomError(f"preset '{name}' names heads of {preset.model}, and this is another model; choose auto, or write heads of this one.")
    return HeadSet.parse(preset.heads)


def start_point(blocks: list[Block]) -> str:
    """Where to start on a model without published heads: the middle of a U-Net, else the share of the depth that works on SD3."""
    middle = [b for b in blocks if b.kind == "middle"]
    if middle:
        return f"m{middle[0].index}"
    first = len(blocks) * FIRST // OF
    return f"{first}-{max(first, math.ceil(len(blocks) * (LAST + 1) / OF) - 1)}"
