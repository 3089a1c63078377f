"""Nodes: Keep the Background (Grad-SAM), and Subject Mask, which shows afterwards what it found."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui
from torch import Tensor

from ..core.attach import attach
from ..core.concepts import Located, tagged
from ..core.errors import LoomError
from ..core.inspect.draw.maps import overlay
from ..core.methods.gradsam import HOW, PHI, SCALARS, STEPS, Findings, GradSAM, Look
from ..core.subject_mask import MaskRule
from . import common
from .prompt import encode, find, positive_input, prompt_inputs

Subject = io.Custom("LOOM_SUBJECT")
DEFAULT_STEPS = ", ".join(f"{s:g}" for s in STEPS)
CELL = 8
"""Pixels per latent cell where no image says it."""


class LoomGradSAM(io.ComfyNode):
    """Attaches :class:`core.methods.gradsam.GradSAM`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Simple inputs first, expert inputs optional and last."""
        return io.Schema(
            node_id="LoomGradSAM",
            display_name="Keep the Background (Grad-SAM)",
            category=common.category("image"),
            description=(
                "A new subject in the surroundings of a reference picture, without a mask drawn by hand: at a few steps it is measured which cells of "
                "the latent depend on the subject's word, and all others are taken from the reference. Without a reference it only measures; Subject Mask "
                "shows the result. (Grad-SAM masks, arXiv 2408.16232)"
            ),
            inputs=[
                common.model_input(),
                *prompt_inputs("subjects", "What comes from the prompt, one per line, in its words: 'deer', 'red ball'. Everything else comes from the reference. The node shows which tokens it found."),
                common.strength_input("How much of the reference comes in outside the mask."),
                io.String.Input("steps", default=DEFAULT_STEPS,
                                tooltip="Points of the sampling at which the reference comes in, 0 the start and 1 the end; at most 10. Later points keep it more closely."),
                io.Latent.Input("reference", optional=True,
                                tooltip="The reference picture through VAE Encode, at the size of the picture to make. Empty: only masks are measured, the picture stays as it is."),
                positive_input(),
                *common.advanced(
                io.Combo.Input("method", options=list(HOW), default="auto", optional=True,
                               tooltip="exact: every output element by itself, through the end of SD 1.5 and SD 2. fast: one gradient through the whole model. auto: exact where it can be."),
                io.Combo.Input("phi", options=list(PHI), default="abs", optional=True,
                               tooltip="abs: every dependence counts. relu: only where more attention to the word gives more."),
                io.Combo.Input("scalar", options=list(SCALARS), default="text_effect", optional=True,
                               tooltip="With fast: the number that is differentiated. text_effect: what the prompt changes against the negative prompt; energy and sum need no negative prompt."),
                io.Float.Input("threshold", default=0.5, min=-1.0, max=3.0, step=0.05, optional=True,
                               tooltip="The mask holds what is above mean + threshold x standard deviation. Higher makes it smaller. (paper: k)"),
                io.Int.Input("dilate", default=3, min=0, max=16, optional=True, tooltip="Cells of the latent (8 pixels each) by which the mask grows."),
                io.Int.Input("blur", default=3, min=0, max=15, optional=True, tooltip="Side of the blur before the threshold, in cells; odd; 0 is none."),
                io.Float.Input("blur_sigma", default=6.0, min=0.5, max=10.0, step=0.1, optional=True, tooltip="Width of the blur in cells; at 6 a blur of 3 cells is nearly a plain mean."),
                io.Boolean.Input("tidy", default=False, optional=True, tooltip="Fill holes of the mask and drop parts of less than 1 % of the picture."),
                io.Boolean.Input("soft", default=False, optional=True, tooltip="Fall off gradually below the threshold instead of a step. Noise is a little weaker in between."),
                io.Boolean.Input("per_channel", default=False, optional=True, tooltip="With exact: a mask of its own for every latent channel, as in the paper's code."),
                io.Boolean.Input("invert", default=False, optional=True, tooltip="Take the subject's place from the reference and the rest from the prompt."),
                io.Boolean.Input("lock", default=False, optional=True, tooltip="Keep the first mask for all later steps."),
                io.Boolean.Input("paste", default=False, optional=True, tooltip="At the end, put the reference itself outside the mask: its pixels up to the VAE, with an edge you may see."),
                io.Int.Input("noise_seed", default=0, min=0, max=2**63 - 1, control_after_generate=False, optional=True, tooltip="Seed of the noise on the reference."),
                io.String.Input("blocks", default="", optional=True,
                                tooltip="With fast: blocks that are read; empty takes the usual ones. 7-10 counts all blocks in order, d5 a double block; for UNets d8.0, u3-5."),
                io.Boolean.Input("spare_memory", default=False, optional=True,
                                 tooltip="Keep what the gradient needs in system memory instead of the GPU's: slower, for large models and pictures."),
                ),
            ],
            outputs=[
                common.model_output(),
                io.Conditioning.Output(display_name="positive", tooltip="The positive prompt: connect it to the sampler."),
                io.String.Output(display_name="tokens", tooltip="Which tokens of the prompt each subject was found in."),
                Subject.Output(display_name="subject", tooltip="What is measured; connect it to Subject Mask."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, clip: Any, prompt: str, subjects: str, strength: float, steps: str, **more: Any) -> io.NodeOutput:
        """Encode -> locate -> configure -> attach."""
        given = more.pop("positive", None)
        positive = encode(clip, prompt) if given is None else given
        located = find(clip, prompt, subjects, positive, "subject")
        method = configure(located, strength, steps, **more)
        return io.NodeOutput(attach(model, method), tagged(positive, prompt), located.text, method.into, ui=ui.PreviewText(located.text))


def configure(
    located: Located,
    strength: float = 1.0,
    steps: str = DEFAULT_STEPS,
    reference: Any = None,
    method: str = "auto",
    phi: str = "abs",
    scalar: str = "text_effect",
    threshold: float = 0.5,
    dilate: int = 3,
    blur: int = 3,
    blur_sigma: float = 6.0,
    tidy: bool = False,
    soft: bool = False,
    per_channel: bool = False,
    invert: bool = False,
    lock: bool = False,
    paste: bool = False,
    noise_seed: int = 0,
    blocks: str = "",
    spare_memory: bool = False,
) -> GradSAM:
    """The node's inputs as a method. Raises LoomError."""
    if reference is not None and reference.get("noise_mask") is not None:
        raise LoomError("the reference carries a mask for inpainting; this node finds its own: take the mask off the reference.")
    return GradSAM(
        located,
        reference=None if reference is None else reference["samples"],
        strength=strength,
        at=_points(steps),
        how=common.choice("method", method, list(HOW)),  # type: ignore[arg-type]
        phi=common.choice("phi", phi, list(PHI)),  # type: ignore[arg-type]
        scalar=common.choice("scalar", scalar, list(SCALARS)),  # type: ignore[arg-type]
        rule=MaskRule(threshold, blur, blur_sigma, dilate, per_channel, tidy, soft),
        invert=invert,
        lock=lock,
        paste=paste,
        noise_seed=noise_seed,
        into=Findings(),
        blocks=common.blocks(blocks),
        spare_memory=spare_memory,
    )


def _points(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in re.split(r"[\s,;]+", text.strip()) if part)
    except ValueError:
        raise LoomError(f"steps '{text}' cannot be read; write numbers from 0 to 1, for instance {DEFAULT_STEPS}.") from None


class LoomSubjectMask(io.ComfyNode):
    """Shows what a Keep the Background node measured in its last sampling run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """An output node, so it runs without anything behind it."""
        return io.Schema(
            node_id="LoomSubjectMask",
            display_name="Subject Mask",
            category=common.category("analysis"),
            description="After sampling: the mask that Keep the Background (Grad-SAM) measured, for other nodes, and heat maps of which places of the picture depend on the subject's words.",
            inputs=[
                Subject.Input("subject", tooltip="From Keep the Background (Grad-SAM)."),
                io.AnyType.Input("after", tooltip="The sampler's latent, or anything made from it: the mask is read once this is there."),
                io.Int.Input("number", default=0, min=0, max=10, tooltip="Which of the measured steps: 1 is the first, 0 the last."),
                io.Image.Input("image", optional=True, tooltip="The decoded picture: masks get its size, and heat maps are laid over it."),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="1 on the subject; one mask for each picture of the batch."),
                io.Image.Output(display_name="heat", is_output_list=True, tooltip="Heat maps, a picture for each of the batch."),
                io.String.Output(display_name="report", tooltip="When was measured, and how much of the picture each mask covers."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        """Findings change without their socket changing: always look again."""
        return time.time()

    @classmethod
    def execute(cls, subject: Findings, after: Any, number: int, image: Any = None) -> io.NodeOutput:
        """Reads the last run's looks."""
        look = choose(subject, number)
        size = (look.mask.shape[1] * CELL, look.mask.shape[2] * CELL) if image is None else tuple(image.shape[1:3])
        mask = F.interpolate(look.mask[:, None], size, mode="bilinear" if image is not None else "nearest")[:, 0]
        text = report(subject)
        drawn = [picture(subject, look, i, image) for i in range(len(look.heat))]
        shown = [saved for p in drawn for saved in ui.PreviewImage(p, cls=cls).as_dict()["images"]]
        return io.NodeOutput(mask, drawn, text, ui={"images": shown, "text": (text,)})


def choose(found: Findings, number: int) -> Look:
    """The look with this number, 0 = last. Raises LoomError."""
    if not found.looks:
        raise LoomError("nothing was measured yet; connect the sampler's result to 'after', and its model to the one from Keep the Background (Grad-SAM).")
    if number > len(found.looks):
        raise LoomError(f"number {number} was given and {len(found.looks)} steps were measured; choose 1 to {len(found.looks)}, or 0 for the last.")
    return found.looks[number - 1]


def report(found: Findings) -> str:
    """A line for each measured step."""
    lines = [
        f"step {look.step + 1} of {look.steps}, sigma {look.sigma:.3g}: the mask covers {', '.join(f'{100 * float(m.mean()):.0f}%' for m in look.mask)}" for look in found.looks
    ]
    return "\n".join([f"subjects: {', '.join(found.subjects)}", *lines])


def picture(found: Findings, look: Look, sample: int, image: Any) -> Tensor:
    """Heat maps of one picture of the batch, and its mask, as IMAGE [1, H, W, 3]."""
    heat = look.heat[sample] - look.heat[sample].amin((1, 2), keepdim=True)
    maps = torch.cat([heat, look.mask[sample][None]])[:, None].numpy()
    under = None if image is None else image[min(sample, len(image) - 1)][None].cpu().float().numpy()
    drawn = overlay(
        "What the picture owes to its subjects",
        f"step {look.step + 1} of {look.steps}; the last line is the mask with growth and threshold",
        [*found.subjects, "mask"],
        maps,
        under,
    )
    return torch.from_numpy(np.asarray(drawn)).float()[None] / 255
