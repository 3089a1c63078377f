"""Nodes: Keep Subjects Consistent (IR-Diffusion), the batch it works on, and masks from words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..core import places, regions, subject_batch
from ..core.attach import attach
from ..core.beside import Beside
from ..core.concepts import Located, locate
from ..core.errors import LoomError
from ..core.methods.ir_diffusion import AUTO, READINGS, IRDiffusion
from ..core.reposition import pasted
from . import common

LOOM_SUBJECTS = io.Custom("LOOM_SUBJECTS")
"""References sampled aside: :class:`core.beside.Beside`."""
PORTRAITS = 6
"""Portraits that have an input on one node; nodes in a chain take more."""
LEVELS = ("tokens", "latent")
EXAMPLE = "the fox @ left\nthe owl @ right"


class LoomIRDiffusion(io.ComfyNode):
    """Attaches :class:`core.methods.ir_diffusion.IRDiffusion`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Simple inputs first, expert inputs optional and last."""
        return io.Schema(
            node_id="LoomIRDiffusion",
            display_name="Keep Subjects Consistent (IR-Diffusion)",
            category=common.category("image"),
            description=(
                "Makes several subjects of a scene look like their portraits and keeps them from blending into each other, without training. Portraits are "
                "generated in one batch with the scene (Subjects and Scene in One Batch) or are pictures of yours (Reference Pictures); masks say where each subject is. For SD 1.5, SDXL, SD3, FLUX.1 and Qwen-Image. (IR-Diffusion, arXiv 2411.19261)"
            ),
            inputs=[
                common.model_input(),
                io.Mask.Input("scene_masks", tooltip="Where each subject is in the scene: one mask per subject, in the order of the portraits. For several scenes all masks of the first, then of the second."),
                io.Mask.Input("reference_masks", tooltip="Where each subject is in its own portrait: one mask per subject, in the same order."),
                common.strength_input("Weight of the portraits beside the scene's own tokens, and of the portraits' texts. Isolation is whole above 0."),
                io.Boolean.Input("isolation", default=True,
                                 tooltip="Keep the tokens of one subject from attending to those of another, so that subjects do not take on each other's looks."),
                io.Combo.Input("references", options=list(READINGS), default="reposition",
                               tooltip="How a subject reads its portrait. reposition: cropped, resized and moved to its place in the scene (the paper). in place: as it stands in the portrait. off: not."),
                io.Float.Input("cross_lambda", default=0.9, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of its portrait's prompt in what a subject's place reads of the text. SD 1.5 and SDXL; models with text and picture in one attention leave it out. 0 turns it off. (DreamStory: lambda)"),
                *common.advanced(
                io.Int.Input("start_layer", default=AUTO, min=AUTO, max=200, optional=True,
                             tooltip="First layer that reads portraits; -1 takes SDXL's 36 of 70 (the paper), SD 1.5's 8 of 16, and a choice after them for other models. Isolation acts in all layers."),
                io.Float.Input("reference_start", default=0.0, min=0.0, max=1.0, step=0.01, optional=True,
                               tooltip="From which part of the steps on portraits are read. Isolation and texts act in all steps."),
                io.Float.Input("reference_end", default=1.0, min=0.0, max=1.0, step=0.01, optional=True,
                               tooltip="Up to which part of the steps portraits are read."),
                io.Float.Input("query_dropout", default=0.5, min=0.0, max=0.95, step=0.05, optional=True,
                               tooltip="Share of a subject's tokens that do not read its portrait, drawn anew at each step; keeps the scene from copying the portrait. 0 lets all read."),
                io.Float.Input("reference_bias", default=0.0, min=-5.0, max=5.0, step=0.1, optional=True,
                               tooltip="Added to the logits of the portraits' keys: above 0 they count more."),
                io.Float.Input("mask_threshold", default=0.5, min=0.0, max=0.95, step=0.05, optional=True,
                               tooltip="From which cover on a token belongs to a mask. 0 finds a threshold for each mask (Otsu, the paper)."),
                io.Float.Input("min_mask", default=0.26, min=0.0, max=0.5, step=0.01, optional=True,
                               tooltip="Least side of a subject in the scene, in parts of the picture's (0.26 is 256 pixels at 1280 x 768, the paper); smaller masks become a box, and gaps half as large are closed. 0 takes masks as they are."),
                io.Float.Input("trim_reference_bottom", default=0.0, min=0.0, max=0.5, step=0.01, optional=True,
                               tooltip="Share of each portrait's mask cleared at the bottom, for masks from a segmenter that holds the ground for the subject (the paper: 1/6). 0 for masks you painted."),
                io.Combo.Input("overlap", options=list(places.OVERLAPS), default="refuse", optional=True,
                               tooltip="Whose a place is that two scene masks claim. refuse says so if it is more than a tenth of the smaller mask; below that the smaller subject has it."),
                io.Boolean.Input("allow_missing", default=False, optional=True,
                                 tooltip="Take an empty mask for a subject that is not in the picture and leave it uncontrolled, and leave a portrait's subject unread in layers where it is a single token wide, instead of an error."),
                io.Int.Input("seed", default=0, min=0, max=2**32 - 1, optional=True,
                             tooltip="Of the dropped tokens alone. The same seed drops the same ones."),
                LOOM_SUBJECTS.Input("subjects", optional=True,
                                    tooltip="From Reference Pictures: portraits that are pictures, seen by the model beside the scene. The sampler then gets the scene's own prompts and latent, not the batch."),
                io.Combo.Input("backend", options=common.BACKENDS, default="auto", optional=True,
                               tooltip="What computes the changed attention. auto takes the fastest that can; any other choice fails loudly if it cannot run."),
                io.Combo.Input("reposition_level", options=list(LEVELS), default="tokens", optional=True,
                               tooltip="What is moved. tokens: what attention reads (the paper). latent: with Reference Pictures, the pictures themselves are cropped, resized and put where the subjects are in the scene."),
                io.Clip.Input("clip", optional=True, tooltip="For subject_words: the text encoder that the scene's prompt went through; it tells where the words stand."),
                io.String.Input("scene_prompt", multiline=True, default="", optional=True, tooltip="For subject_words: the scene's prompt, written exactly as in its text encoder."),
                io.String.Input("subject_words", multiline=True, default="", optional=True,
                                tooltip="SD3, FLUX, Qwen-Image: one line per subject in the order of the masks, in words of the scene's prompt ('red fox'). Other subjects then do not see these words. Empty: text is open to all."),
                ),
            ],
            outputs=[common.model_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, scene_masks: Any, reference_masks: Any, **settings: Any) -> io.NodeOutput:
        """One clone with the method on it."""
        return io.NodeOutput(attach(model, configure(scene_masks, reference_masks, **settings)))


def configure(
    scene_masks: Any,
    reference_masks: Any,
    strength: float = 1.0,
    isolation: bool = True,
    references: str = "reposition",
    cross_lambda: float = 0.9,
    start_layer: int = AUTO,
    reference_start: float = 0.0,
    reference_end: float = 1.0,
    query_dropout: float = 0.5,
    reference_bias: float = 0.0,
    mask_threshold: float = 0.5,
    min_mask: float = 0.26,
    trim_reference_bottom: float = 0.0,
    overlap: str = "refuse",
    allow_missing: bool = False,
    seed: int = 0,
    subjects: Beside | None = None,
    reposition_level: str = "tokens",
    clip: Any = None,
    scene_prompt: str = "",
    subject_words: str = "",
    backend: str = "auto",
) -> IRDiffusion:
    """The node's inputs as a method. Raises LoomError."""
    own = places.stack(reference_masks, "reference_masks")
    scene = places.stack(scene_masks, "scene_masks")
    if len(scene) % len(own):
        raise LoomError(f"{len(scene)} scene masks and {len(own)} reference masks were given; connect one of each per subject, and for several scenes the same number for each.")
    rule = common.choice("overlap", overlap, list(places.OVERLAPS))
    each = torch.stack([places.refined(places.disjoint(masks, rule), min_mask) for masks in scene.unflatten(0, (-1, len(own)))])  # type: ignore[arg-type]
    own = places.without_bottom(own, trim_reference_bottom)
    reading = common.choice("references", references, list(READINGS))
    if common.choice("reposition_level", reposition_level, list(LEVELS)) == "latent":
        subjects, own = _moved(subjects, own, each, reading)
    return IRDiffusion(
        scene=each,
        references=own,
        strength=strength,
        isolation=isolation,
        reading=reading,  # type: ignore[arg-type]
        start_layer=start_layer,
        read_from=reference_start,
        read_to=reference_end,
        dropout=query_dropout,
        cross=cross_lambda,
        bias=reference_bias,
        threshold=mask_threshold,
        seed=seed,
        allow_missing=allow_missing,
        words=_words(clip, scene_prompt, subject_words),
        beside=subjects,
        backend=common.choice("backend", backend, common.BACKENDS),
    )


def _words(clip: Any, prompt: str, lines: str) -> Located | None:
    """Where the subjects stand in the scene's prompt; None if no words are given."""
    phrases = [line.strip() for line in lines.splitlines() if line.strip()]
    if not phrases:
        return None
    if clip is None:
        raise LoomError("subject_words needs the text encoder of the scene's prompt; connect it to clip.")
    return locate(clip, prompt, phrases)


def _moved(subjects: Beside | None, own: Tensor, scenes: Tensor, reading: str) -> tuple[Beside, Tensor]:
    """References that stand where their subjects are in the scene, and their masks [S, h, w] there."""
    if subjects is None or reading != "reposition":
        raise LoomError(
            "reposition_level 'latent' moves pictures of yours and needs Reference Pictures at subjects and references on 'reposition'; connect them, or choose 'tokens'."
        )
    if len(scenes) > 1:
        raise LoomError(f"reposition_level 'latent' moves every picture to one place, and masks of {len(scenes)} scenes were given; connect those of one, or choose 'tokens'.")
    if len(subjects.latents) != len(own):
        raise LoomError(f"{len(own)} subjects have masks and {len(subjects.latents)} references were given; connect one of each per subject, in the same order.")
    size = subjects.latents.shape[-2:]
    made = [pasted(*each) for each in zip(subjects.latents, places.on_grid(own, *size), places.apart_on_grid(scenes[0], *size), strict=True)]
    return replace(subjects, latents=torch.stack([picture for picture, _ in made])), torch.stack([mask for _, mask in made]).float()


def _portraits(tooltip: str) -> list[Any]:
    """One input per subject, the first required. tooltip: with {} for the subject's number."""
    return [io.Conditioning.Input(f"portrait_{i}", optional=i > 1, tooltip=tooltip.format(i)) for i in range(1, PORTRAITS + 1)]


def _connected(portraits: dict[str, Any]) -> list[Any]:
    """The prompts that are there, in their order. Raises LoomError for a gap, in which the order of the masks would be lost."""
    given = [portraits.get(f"portrait_{i}") for i in range(1, PORTRAITS + 1)]
    count = sum(prompt is not None for prompt in given)
    gap = next((i for i, prompt in enumerate(given[:count], 1) if prompt is None), None)
    if gap is not None:
        raise LoomError(f"portrait_{gap} is not connected and a later one is; connect portraits without gaps, in the order of the masks.")
    return given[:count]


class LoomSubjectBatch(io.ComfyNode):
    """References and scene as one batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Prompts and a latent in, the same three of the whole batch out."""
        return io.Schema(
            node_id="LoomSubjectBatch",
            display_name="Subjects and Scene in One Batch",
            category=common.category("image"),
            description=(
                "Puts the portraits of all subjects and the scene into one batch, portraits first, each picture with its own prompt. Sample it once with the plain model to see where "
                "every subject is, then with Keep Subjects Consistent and the same seed: the portraits come out the same. Latent From Batch takes the scene out again."
            ),
            inputs=[
                io.Conditioning.Input("scene", tooltip="The prompt of the scene, with all subjects in it."),
                io.Conditioning.Input("negative", tooltip="The negative prompt, for portraits and scene alike."),
                io.Latent.Input("latent", tooltip="The scene's empty latent. Several pictures in it are several scenes with the same subjects. For more than six subjects connect the three outputs of another node of this kind here; its portraits come first."),
                *_portraits("Subject {} alone, described as in the scene."),
                *common.advanced(
                io.Latent.Input("reference_latent", optional=True,
                                tooltip="Latents for the portraits to start from, one per subject, for a second pass with denoise below 1. Without it they start empty like the scene."),
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompts of all pictures of the batch."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt for all of them."),
                io.Latent.Output(display_name="latent", tooltip="Portraits first, then the scenes. All portraits share one noise; the scene keeps the noise it has alone with this seed."),
                io.Int.Output(display_name="subjects", tooltip="Number of portraits: the place of the scene in the batch, for Latent From Batch."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, scene: Any, negative: Any, latent: Any, reference_latent: Any = None, **portraits: Any) -> io.NodeOutput:
        """Prompts by row, latents by row."""
        given, before = _connected(portraits), subject_batch.before(latent)
        made = subject_batch.latents(latent, len(given), reference_latent)
        size = len(latent["samples"])
        positive = subject_batch.prompts(scene, given, size, before)
        return io.NodeOutput(positive, subject_batch.prompts(negative, [negative] * len(given), size, before), made, before + len(given))


class LoomReferencePictures(io.ComfyNode):
    """References sampled aside."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Latents and prompts in, references out."""
        return io.Schema(
            node_id="LoomReferencePictures",
            display_name="Reference Pictures",
            category=common.category("image"),
            description=(
                "Portraits for Keep Subjects Consistent that are pictures: at every step the model sees each of them once, with as much noise as the scene has, beside the sampler's own "
                "batch. Prompts may have any length. Costs a picture per portrait, one after the other, with the negative prompt as well unless CFG is 1."
            ),
            inputs=[
                io.Latent.Input("latents", tooltip="The portraits from VAE Encode, one per subject, in the order of the masks and of the size of the scene."),
                io.Conditioning.Input("negative", tooltip="The negative prompt, as for the scene."),
                *_portraits("What portrait {} shows."),
                *common.advanced(
                io.Int.Input("seed", default=0, min=0, max=2**32 - 1, optional=True, tooltip="Of the noise that is put over the pictures; one noise for all and for every step."),
                LOOM_SUBJECTS.Input("before", optional=True, tooltip="From another Reference Pictures: its portraits come before these. So more than six have room, 16 in all."),
                ),
            ],
            outputs=[LOOM_SUBJECTS.Output(display_name="subjects", tooltip="For the input subjects of Keep Subjects Consistent.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, latents: Any, negative: Any, seed: int = 0, before: Beside | None = None, **portraits: Any) -> io.NodeOutput:
        """One reference per prompt."""
        own = Beside(latents["samples"], tuple(_connected(portraits)), negative, seed)
        return io.NodeOutput(own if before is None else before.joined(own))


class LoomPlaceMasks(io.ComfyNode):
    """Masks from words and numbers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Lines in, a stack of masks out."""
        return io.Schema(
            node_id="LoomPlaceMasks",
            display_name="Masks From Places",
            category=common.category("image"),
            description="Makes one mask per line from places written as words, discs or boxes, for nodes that want to know where each subject is. For exact shapes paint masks or use a segmenter.",
            inputs=[
                io.String.Input("places", multiline=True, default=EXAMPLE,
                                tooltip="One subject per line: name @ place. A place is x, y or x, y, radius (0 to 1, y downwards), a box left, top, right, bottom, or a word (left, right, top, bottom, center)."),
                io.Int.Input("width", default=1024, min=16, max=16384, step=8, tooltip="Width of the masks in pixels: that of the picture."),
                io.Int.Input("height", default=1024, min=16, max=16384, step=8, tooltip="Height of the masks in pixels: that of the picture."),
                *common.advanced(
                io.Float.Input("radius", default=0.25, min=0.05, max=0.5, step=0.01, optional=True,
                               tooltip="Size of places given as a word or a point, in parts of the shorter side of the picture."),
                ),
            ],
            outputs=[io.Mask.Output(display_name="masks", tooltip="One mask per line, in their order.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, places: str, width: int, height: int, radius: float = 0.25) -> io.NodeOutput:
        """[lines, height, width] of 0 and 1."""
        found = regions.parse(places, None, radius)
        if not found:
            raise LoomError(f"no place was given; write one line per subject, for instance: {EXAMPLE.splitlines()[0]}")
        return io.NodeOutput(torch.stack([regions.cover(region.place, height, width) for region in found]))
