"""Node: Longer Video (UltraViCo)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..core.attach import attach
from ..core.errors import LoomError
from ..core.families import family_of
from ..core.methods.ultravico import UltraViCo
from . import common


@dataclass(frozen=True)
class Preset:
    """Per-model values of the paper and its release; ``[N]`` in the docs marks our own choices."""

    train_frames: int
    period: float | None = None
    gamma: int = 4
    first_frame: bool = False


PRESETS = {
    "Wan 2.1 / 2.2 14B": Preset(21, first_frame=True),
    "Wan 2.2 TI2V 5B": Preset(31, first_frame=True),
    "HunyuanVideo": Preset(33, period=50.0),
    "CogVideoX": Preset(13, period=20.0, gamma=2),
    "CogVideoX 1.5": Preset(11),
}
CUSTOM = "custom"
REPETITION = ["from preset", "off", "auto", "custom period"]
FIRST_FRAME = ["from preset", "mask", "off"]
GRANULARITY = ["frame", "token"]


class LoomUltraViCo(io.ComfyNode):
    """Attaches :class:`core.methods.ultravico.UltraViCo`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Simple inputs first, expert inputs optional and last."""
        return io.Schema(
            node_id="LoomUltraViCo",
            display_name="Longer Video (UltraViCo)",
            category=common.category("video"),
            description=(
                "Makes one continuous shot 2 to 4 times longer than the model was trained for, without looping, freezing or blur, by "
                "letting frames that are far apart attend to each other less. Nothing changes up to the trained length. Costs the "
                "full attention over the whole clip. (UltraViCo, arXiv 2511.20123)"
            ),
            inputs=[
                common.model_input(),
                io.Combo.Input("preset", options=["auto", *PRESETS, CUSTOM], default="auto",
                               tooltip="Values for your model. auto recognises Wan, HunyuanVideo and CogVideoX; with custom you set train_frames yourself."),
                io.Float.Input("alpha", default=0.9, min=0.05, max=1.0, step=0.01,
                               tooltip="How much attention to far frames keeps. 0.9 suits large models; lower is sharper and moves more but forgets more. 1 = no decay. (paper: alpha)"),
                common.strength_input("How much of the decay is used; it moves alpha and beta towards 1."),
                io.Int.Input("train_frames", default=0, min=0, max=512, optional=True,
                             tooltip="Native length of the model in latent frames, which is (pixel frames - 1) / 4 + 1 for Wan and HunyuanVideo: 81 -> 21, 129 -> 33; / 8 for LTX and Cosmos 1, / 6 for Mochi; CogVideoX 1.5 counts pairs of them. 0 takes the preset's. (paper: L)"),
                *common.window_inputs(),
                *common.advanced(
                io.Combo.Input("repetition", options=REPETITION, default="from preset", optional=True,
                               tooltip="Distances at which the model's positions repeat and the video would loop are decayed more. auto finds them from the model; most models need none. (paper: harmonic bands)"),
                io.Float.Input("period", default=50.0, min=1.0, max=512.0, step=0.5, optional=True,
                               tooltip="With 'custom period': latent frames after which the video repeats. HunyuanVideo: 50. (paper: T')"),
                io.Int.Input("gamma", default=4, min=0, max=16, optional=True,
                             tooltip="Half width of each repetition band in latent frames. (paper: gamma)"),
                io.Float.Input("beta", default=0.6, min=0.0, max=1.0, step=0.01, optional=True,
                               tooltip="What attention inside a repetition band keeps; at most alpha. 0.6 at 3x, 0.8 at 4x for HunyuanVideo. (paper: beta)"),
                io.Combo.Input("first_frame", options=FIRST_FRAME, default="from preset", optional=True,
                               tooltip="mask: the first frame does not see frames beyond the trained length, which keeps it from blurring (Wan)."),
                io.Int.Input("sink_frames", default=0, min=0, max=8, optional=True,
                             tooltip="The first n frames are never decayed, so the start is remembered longer. Not part of the paper."),
                io.Combo.Input("granularity", options=GRANULARITY, default="frame", optional=True,
                               tooltip="Measure distance in whole frames (fast), or in single tokens as the paper's own code does."),
                io.Boolean.Input("center_keys", default=True, optional=True,
                                 tooltip="Read 'positive' as 'above this token's average'. The published results were made this way."),
                ),
                *common.place_inputs(),
            ],
            outputs=[common.model_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, preset: str, alpha: float, strength: float, **expert: Any) -> io.NodeOutput:
        """validate -> configure -> attach."""
        return io.NodeOutput(attach(model, configure(model, preset, alpha, strength, **expert)))


def configure(
    model: Any,
    preset: str = "auto",
    alpha: float = 0.9,
    strength: float = 1.0,
    train_frames: int = 0,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    repetition: str = "from preset",
    period: float = 50.0,
    gamma: int = 4,
    beta: float = 0.6,
    first_frame: str = "from preset",
    sink_frames: int = 0,
    granularity: str = "frame",
    center_keys: bool = True,
    blocks: str = "",
    backend: str = "auto",
) -> UltraViCo:
    """The node's inputs as a method. Raises LoomError."""
    values = _preset(model, preset, train_frames)
    if not 0.0 < alpha <= 1.0:
        raise LoomError(f"alpha {alpha:g} was given; it lies above 0 and at most at 1 (1 = off, the paper uses 0.9).")
    common.choice("repetition", repetition, REPETITION)
    common.choice("first_frame", first_frame, FIRST_FRAME)
    bands = {"from preset": values.period, "off": None, "auto": "auto", "custom period": period}[repetition]
    soften = lambda x: 1.0 - strength * (1.0 - x)  # noqa: E731
    return UltraViCo(
        train_frames=values.train_frames,
        alpha=soften(alpha),
        beta=soften(beta),
        period=bands if strength > 0 else None,  # type: ignore[arg-type]
        gamma=values.gamma if repetition == "from preset" and values.period is not None else gamma,
        first_frame=strength > 0 and (values.first_frame if first_frame == "from preset" else first_frame == "mask"),
        sink_frames=sink_frames,
        granularity=common.choice("granularity", granularity, GRANULARITY),  # type: ignore[arg-type]
        center_keys=center_keys,
        window=common.window(start_percent, end_percent),
        blocks=common.blocks(blocks),
        backend=common.choice("backend", backend, common.BACKENDS),
    )


def _preset(model: Any, name: str, train_frames: int) -> Preset:
    """The named preset with the user's own training length, if given."""
    common.choice("preset", name, ["auto", *PRESETS, CUSTOM])
    if name == "auto":
        found = _recognise(model)
        if found is None and not train_frames:
            raise LoomError("preset auto does not know the trained length of this model; set train_frames to its native length in latent frames.")
        values = PRESETS[found] if found else Preset(train_frames)
    elif name == CUSTOM:
        if not train_frames:
            raise LoomError("preset custom needs train_frames: the model's native length in latent frames (Wan 2.1: 21, HunyuanVideo: 33).")
        values = Preset(train_frames)
    else:
        values = PRESETS[name]
    return Preset(train_frames or values.train_frames, values.period, values.gamma, values.first_frame)


def _recognise(model: Any) -> str | None:
    """Which preset belongs to the model's family and latent."""
    diffusion = model.get_model_object("diffusion_model")
    family = family_of(diffusion).name
    if family == "Wan":
        return "Wan 2.2 TI2V 5B" if getattr(diffusion, "in_dim", 16) == 48 else "Wan 2.1 / 2.2 14B"
    if family == "CogVideoX":
        return "CogVideoX" if diffusion.patch_size_t is None else "CogVideoX 1.5"
    return "HunyuanVideo" if family == "HunyuanVideo" else None
