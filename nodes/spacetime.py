"""Node: Place Subjects (space-time attention)."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.attach import attach
from ..core.errors import LoomError
from ..core.fade import NAMES, Fade, keyframes
from ..core.methods.spacetime import Local, SpaceTime, auto_weight
from ..core.regions import parse
from ..core.texts import text_of
from . import common

MODES = ["contrast", "affine", "convex"]
EXAMPLE = "a red fox @ left\na snowy owl @ right"


class LoomSpaceTime(io.ComfyNode):
    """Attaches :class:`core.methods.spacetime.SpaceTime`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Simple inputs first, expert inputs optional and last."""
        return io.Schema(
            node_id="LoomSpaceTime",
            display_name="Place Subjects (space-time attention)",
            category=common.category("image"),
            description=(
                "Puts each subject where you want it, with the look you describe: the pixels of a place read a description of their own beside the prompt. "
                "Costs a few percent per region instead of a model evaluation per region. For 2 to 5 subjects on SD 1.5, SD 2, SDXL, Wan, LTX and Cosmos Predict2. "
                "(Space-time attention, arXiv 2304.03869)"
            ),
            inputs=[
                common.model_input(),
                io.Clip.Input("clip", tooltip="The text encoder of this model. It reads the description of each region."),
                io.String.Input("regions", multiline=True, default=EXAMPLE,
                                tooltip="One subject per line: description @ place. A place is x, y or x, y, radius (0 to 1, y downwards), a box left, top, right, bottom, a word (left, right, top, bottom, center), or mask. Behind it * 0.5 makes a line weaker."),
                common.strength_input("How strongly the descriptions act in their places."),
                io.Combo.Input("mode", options=MODES, default="contrast", optional=True,
                               tooltip="contrast: the paper's code, sets each description against the negative prompt, strong. affine: against the prompt itself; works at CFG 1 and with strong negative prompts. convex: gently blends prompt and description."),
                io.Mask.Input("masks", optional=True,
                              tooltip="One mask per line that says '@ mask', stacked in their order."),
                *common.window_inputs(),
                *common.advanced(
                io.Float.Input("weight", default=0.0, min=0.0, max=10.0, step=0.05, optional=True,
                               tooltip="Weight of each description. 0 chooses: 5 divided by the number of regions (2 on SDXL), 0.6 with convex. (paper: c)"),
                io.Float.Input("radius", default=0.2, min=0.05, max=0.5, step=0.01, optional=True,
                               tooltip="Size of places given as a point, in parts of the shorter side of the picture."),
                io.Combo.Input("schedule", options=list(NAMES), default="constant", optional=True,
                               tooltip="How the weight changes over the sampling: constant (the paper), early until a moment, linear or cosine down to 0, or by keyframes."),
                io.Float.Input("until", default=0.4, min=0.0, max=1.0, step=0.01, optional=True,
                               tooltip="With schedule early: the part of the sampling after which the descriptions stop. The layout is settled in about the first 0.4."),
                io.String.Input("keyframes", default="0:1, 0.5:0.5, 1:0", optional=True,
                                tooltip="With schedule keyframes: moment:weight pairs in order, moments from 0 (start) to 1 (end)."),
                io.Boolean.Input("split_overlap", default=False, optional=True,
                                 tooltip="Where regions overlap, divide their weights by how many there are. Off adds them up, as the paper's code does."),
                io.Float.Input("softness", default=0.0, min=0.0, max=0.2, step=0.005, optional=True,
                               tooltip="Blurs the edge of each place, in parts of the picture's width. 0 is a hard edge."),
                io.String.Input("prefix", default="a photo of ", optional=True,
                                tooltip="Put in front of each description before it is encoded. For drawings write for instance 'a drawing of '."),
                io.Boolean.Input("legacy_discs", default=False, optional=True,
                                 tooltip="Discs exactly as the paper's code marks them: measured from token corners, and oval in pictures that are not square."),
                ),
                *common.place_inputs(),
            ],
            outputs=[common.model_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, clip: Any, regions: str, strength: float, **expert: Any) -> io.NodeOutput:
        """validate -> configure -> attach."""
        return io.NodeOutput(attach(model, configure(clip, regions, strength, **expert)))


def configure(
    clip: Any,
    regions: str,
    strength: float = 1.0,
    mode: str = "contrast",
    masks: Any = None,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    weight: float = 0.0,
    radius: float = 0.2,
    schedule: str = "constant",
    until: float = 0.4,
    keyframes: str = "",
    split_overlap: bool = False,
    softness: float = 0.0,
    prefix: str = "a photo of ",
    legacy_discs: bool = False,
    blocks: str = "",
    backend: str = "auto",
) -> SpaceTime:
    """The node's inputs as a method. Raises LoomError."""
    common.choice("mode", mode, MODES)
    fade = Fade(schedule, until, _points(schedule, keyframes))
    found = parse(regions, masks, radius)
    locals_ = tuple(Local(region, encode(clip, prefix + region.text)) for region in found) if strength > 0 else ()
    width = locals_[0].context.shape[-1] if locals_ else 0
    return SpaceTime(
        locals=locals_,
        weight=strength * (weight or auto_weight(mode, len(found), width)),  # type: ignore[arg-type]
        mode=mode,  # type: ignore[arg-type]
        fade=fade,
        split=split_overlap,
        softness=softness,
        legacy=legacy_discs,
        window=common.window(start_percent, end_percent),
        blocks=common.blocks(blocks),
        backend=common.choice("backend", backend, common.BACKENDS),
    )


def _points(schedule: str, text: str) -> tuple[tuple[float, float], ...]:
    return keyframes(text) if schedule == "keyframes" else ()


def encode(clip: Any, text: str) -> Any:
    """Context [1, M, C] of a text, as CLIP Text Encode makes it. Raises LoomError without a text encoder."""
    if clip is None:
        raise LoomError("no text encoder is connected; connect the CLIP of this model's checkpoint or loader.")
    return text_of(clip.encode_from_tokens_scheduled(clip.tokenize(text)), "description")
