"""Nodes: Steer Object Along Path (DiTraj), and the texts it needs from one line."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.attach import attach
from ..core.errors import LoomError
from ..core.families import family_of
from ..core.methods.ditraj import DiTraj
from ..core.texts import joined, text_of
from ..core.tracks import Tracks
from ..core.trained import token_stride
from . import common
from .track_editor import LOOM_TRACK

RESAMPLE = ["nearest", "linear"]
MORE = 3
"""Objects beyond the first that have an input."""
EXAMPLE = "a red panda with a striped tail | a mossy forest floor in morning light"


class LoomDiTraj(io.ComfyNode):
    """Attaches :class:`core.methods.ditraj.DiTraj`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Simple inputs first, expert inputs optional and last."""
        return io.Schema(
            node_id="LoomDiTraj",
            display_name="Steer Object Along Path (DiTraj)",
            category=common.category("video"),
            description=(
                "Makes the object of a text-to-video prompt follow the boxes you draw: where it is, and by their size how near. The rest of the picture follows a text of its own. "
                "No training, next to no extra time. For Wan, HunyuanVideo, CogVideoX, LTX and Cosmos Predict2. (DiTraj, arXiv 2509.21839)"
            ),
            inputs=[
                common.model_input(),
                io.Conditioning.Input("base", tooltip="The full prompt. It takes over when the region texts have done their work."),
                io.Conditioning.Input("foreground", tooltip="The object alone, described as a close-up that fills the frame. Read inside its box."),
                io.Conditioning.Input("background", tooltip="The scene alone, without a word about the object. Read outside of all boxes."),
                LOOM_TRACK.Input("track", tooltip="The path, from Draw Path. It must be drawn for the length of the video."),
                common.strength_input("How far the region texts and the moved positions act. On HunyuanVideo and CogVideoX the texts, and everywhere what r_mask keeps apart, know only on and off: use mask_end and rope_end there."),
                io.Float.Input("mask_end", default=0.6, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the steps in which box and background read texts of their own (paper: mask_steps, 30 of 50). More holds the path harder, less lets the picture blend."),
                io.Float.Input("rope_end", default=0.1, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the steps in which the object's tokens take positions of one still box, so that it stays one object while it moves (paper: rope_steps, 5 of 50). Too much freezes the object's pose."),
                *common.advanced(
                io.Combo.Input("resample", options=RESAMPLE, default="nearest", optional=True,
                               tooltip="How positions are spread where the box changes its size. nearest is the paper's; linear places tokens between positions."),
                io.Boolean.Input("r_mask", default=True, optional=True,
                                 tooltip="Keep background that now shares positions with the object from seeing it. Off can show a ghost of the object at the place of its smallest box."),
                io.Boolean.Input("edge_compat", default=False, optional=True,
                                 tooltip="Leave the last row and column of each box where they are, as the released code does."),
                *(io.Conditioning.Input(f"foreground_{i}", optional=True,
                                        tooltip=f"The text of object {i} of the track. One for every object; boxes of two objects must not overlap.") for i in range(2, 2 + MORE)),
                ),
                *common.place_inputs(),
            ],
            outputs=[
                common.model_output(),
                io.Conditioning.Output(display_name="positive", tooltip="The positive prompt for the sampler. For models that keep text and video in one attention (HunyuanVideo, CogVideoX) it begins with the texts of the regions."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, base: Any, foreground: Any, background: Any, track: Tracks, **settings: Any) -> io.NodeOutput:
        """One clone with the method on it, and the prompt to sample with."""
        method = configure(model, base, [foreground, *(settings.pop(f"foreground_{i}", None) for i in range(2, 2 + MORE))], background, track, **settings)
        patched = attach(model, method)
        family = family_of(model.get_model_object("diffusion_model"))
        if method.off or method.mask_end == 0.0 or not family.joint:
            return io.NodeOutput(patched, base)
        return io.NodeOutput(patched, joined(base, list(method.texts), method.mask_end))


def configure(
    model: Any,
    base: Any,
    foregrounds: list[Any],
    background: Any,
    track: Tracks,
    strength: float = 1.0,
    mask_end: float = 0.6,
    rope_end: float = 0.1,
    resample: str = "nearest",
    r_mask: bool = True,
    edge_compat: bool = False,
    blocks: str = "",
    backend: str = "auto",
) -> DiTraj:
    """The node's inputs as a method. Raises LoomError."""
    if not isinstance(track, Tracks):
        raise LoomError(f"the track is a {type(track).__name__}; connect the track output of Draw Path.")
    texts = [text_of(c, f"foreground {i}") for i, c in enumerate(foregrounds, 1) if c is not None]
    for text in texts if base else ():
        if text.shape[-1] != base[0][0].shape[-1]:
            raise LoomError(
                f"a foreground text has the width {text.shape[-1]} and the positive prompt {base[0][0].shape[-1]}; encode both with the CLIP that belongs to this model."
            )
    if len(texts) != len(track.objects):
        raise LoomError(f"the track has {len(track.objects)} objects and {len(texts)} foreground texts are connected; connect one text per object, in their order.")
    return DiTraj(
        boxes=track.boxes()[:, :: token_stride(model)],
        background=text_of(background, "background"),
        foregrounds=tuple(texts),
        strength=strength,
        mask_end=mask_end,
        rope_end=rope_end,
        resample=common.choice("resample", resample, RESAMPLE),  # type: ignore[arg-type]
        twins=r_mask,
        inclusive=edge_compat,
        prompt_tokens=base[0][0].shape[1] if base else 0,
        blocks=common.blocks(blocks),
        backend=common.choice("backend", backend, common.BACKENDS),
    )


class LoomSplitPrompt(io.ComfyNode):
    """Three texts from one line, without a language model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """One line in, the texts of DiTraj out."""
        return io.Schema(
            node_id="LoomSplitPrompt",
            display_name="Subject | Scene Texts",
            category=common.category("video"),
            description="Writes the three texts that Steer Object Along Path needs from one line: subject | scene. With several objects: subject | subject | scene. For the best result write the three texts yourself, in 80 to 100 words each.",
            inputs=[
                io.String.Input("text", multiline=True, default=EXAMPLE, tooltip="The object, a bar, the scene. The last part is always the scene."),
                io.String.Input("template", default="a close-up of {subject}, filling the frame", optional=True,
                                tooltip="How the text of the object alone is written; {subject} is its part of the line."),
            ],
            outputs=[
                io.String.Output(display_name="base", tooltip="All parts in one prompt."),
                io.String.Output(display_name="foreground", tooltip="The first object, in close-up."),
                io.String.Output(display_name="background", tooltip="The scene alone."),
                *(io.String.Output(display_name=f"foreground_{i}", tooltip=f"Object {i}, empty if there is none.") for i in range(2, 2 + MORE)),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, text: str, template: str = "a close-up of {subject}, filling the frame") -> io.NodeOutput:
        """The texts."""
        return io.NodeOutput(*split(text, template))


def split(text: str, template: str) -> tuple[str, ...]:
    """(base, foreground, background, foreground 2, ...) of ``subject | ... | scene``. Raises LoomError."""
    parts = [" ".join(part.split()) for part in text.split("|")]
    if len(parts) < 2 or not all(parts):
        raise LoomError(f"'{text.strip()}' has no subject and scene; write the object, a bar and the scene, for instance: {EXAMPLE}")
    *subjects, scene = parts
    if len(subjects) > 1 + MORE:
        raise LoomError(f"{len(subjects)} subjects were given and {1 + MORE} fit; take some out.")
    if "{subject}" not in template:
        raise LoomError(f"the template '{template}' has no {{subject}}; put it where the object's words belong.")
    fronts = [template.replace("{subject}", subject) for subject in subjects] + [""] * (1 + MORE - len(subjects))
    return (f"{' and '.join(subjects)}, {scene}", fronts[0], scene, *fronts[1:])
