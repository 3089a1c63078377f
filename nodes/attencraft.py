"""Nodes: Concept Masks and Learn Concepts (AttenCraft)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..core.attencraft import masks, progress, sheet, store
from ..core.attencraft.adapters import KINDS
from ..core.attencraft.layers import DETAILS
from ..core.attencraft.masks import Found, Rule, picture
from ..core.attencraft.plan import Plan
from ..core.attencraft.sketch import Sketcher, rough
from ..core.attencraft.subsets import SCHEMES
from ..core.attencraft.trainer import Lesson, Training
from ..core.attencraft.words import NAME, Prompts, parse
from ..core.concepts import Located
from ..core.errors import LoomError
from . import common

CELL = 8
"""Pixels per latent cell where no image says it."""
PREVIEW = 1100
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
LoraModel, LossMap = io.Custom("LORA_MODEL"), io.Custom("LOSS_MAP")
"""As the host's own training nodes call them."""


class LoomAttenCraftMasks(io.ComfyNode):
    """Runs :func:`core.attencraft.masks.find`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Simple inputs first, expert inputs optional and last."""
        return io.Schema(
            node_id="LoomAttenCraftMasks",
            display_name="Concept Masks (AttenCraft)",
            category=common.category("image"),
            description=(
                "Masks of the things in a picture, named by words, without a segmenter: the model looks at the picture once, and what its words and places look at tells "
                "which place belongs to what. For SD 1.5, SD 2, SDXL, SD3, FLUX, Qwen-Image, Lumina 2, Z-Image, AuraFlow, OmniGen2 and later models of their kind. (AttenCraft, arXiv 2405.17965)"
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that looks; a LoRA on it counts. It is not changed, and nothing of this pack that is on it acts meanwhile."),
                io.Clip.Input("clip", tooltip="The text encoder that goes with the model: it encodes the prompt and tells where its words stand."),
                io.Latent.Input("latent", tooltip="The picture from VAE Encode, one at a time. On U-Nets its sides must be multiples of 32 pixels."),
                io.String.Input("concepts", multiline=True, default="", tooltip="What to find, one per line, one to eight, in words a picture of it would be captioned with: 'cat', 'toy robot'."),
                io.String.Input("prompt", multiline=True, default="", optional=True,
                                tooltip="A caption of the whole picture that holds every concept once. Empty: 'a photo of ... and ...' made from the concepts."),
                io.Image.Input("image", optional=True, tooltip="The picture itself: masks get its size, and the preview shows them over it. Empty: 8 pixels per latent cell."),
                io.Mask.Input("masks_before", optional=True,
                              tooltip="Masks that come before these in the output 'masks': chain one node per portrait to get the masks of all portraits in order."),
                *common.advanced(
                io.Int.Input("timestep", default=150, min=0, max=999, optional=True,
                             tooltip="Noise on the picture while it is looked at, 0 none and 999 nothing else. The paper draws from 0 to 299; models like to find things at 100 to 300."),
                io.Float.Input("threshold", default=0.1, min=0.0, max=0.5, step=0.01, optional=True,
                               tooltip="By how much a concept must lead at a place to have it. Higher leaves more places to nobody; 0 gives every place to its leader. (paper: tau)"),
                io.Int.Input("looks", default=1, min=1, max=16, optional=True, tooltip="How often the model looks, each time with other noise; maps are averaged. More is steadier and takes as many model calls."),
                io.Int.Input("affinity", default=4, min=1, max=8, optional=True, tooltip="How far a concept spreads over places that look at each other: the power of the self-attention map. (paper: 4)"),
                io.Float.Input("sharpness", default=2.0, min=1.0, max=4.0, step=0.5, optional=True, tooltip="Power of the words' maps before they spread: higher begins from fewer, surer places. (paper: 2)"),
                io.Combo.Input("detail", options=list(DETAILS), default="auto", optional=True,
                               tooltip="U-Nets: coarse reads where a cell is 32 and 16 pixels, as the paper does; fine at 16 and 8, finest at 8, for small pictures. auto takes the first with 16 cells a side."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False, optional=True, tooltip="Of the noise that is put over the picture. The same seed gives the same masks."),
                io.String.Input("blocks", default="", optional=True,
                                tooltip="Models with text and picture in one attention: blocks that are read; empty takes the middle third. 7-10 counts all blocks in order, d5 a double block."),
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="masks", tooltip="One mask per concept, in their order, without overlaps; ready for Keep Subjects Consistent and every node that takes masks."),
                io.Mask.Output(display_name="background", tooltip="What the model takes for none of the concepts. Places of nobody are in neither."),
                io.Image.Output(display_name="preview", tooltip="Maps, masks over the picture, and how well the concepts are told apart."),
                io.String.Output(display_name="report", tooltip="The same in numbers, as JSON: tokens, shares of the picture, the confusion matrix."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, clip: Any, latent: Any, concepts: str, prompt: str = "", image: Any = None, masks_before: Any = None, **settings: Any) -> io.NodeOutput:
        """Find -> size -> draw."""
        if clip is None:
            raise LoomError("no text encoder is connected; connect the one that goes with the model to clip.")
        phrases = [line.strip() for line in concepts.splitlines() if line.strip()]
        masks.check_phrases(phrases)
        found, located = masks.find(model, clip, prompt.strip() or caption(phrases), phrases, latent, rule(**settings))
        size = (CELL * latent["samples"].shape[-2], CELL * latent["samples"].shape[-1]) if image is None else (image.shape[1], image.shape[2])
        sized = masks.at_size(found.masks, size)
        page, text = as_image(sheet.draw(found, image)), report(found, located)
        return io.NodeOutput(masks.joined(masks_before, sized[:-1]), sized[-1:], page, text, ui=ui.PreviewImage(page, cls=cls).as_dict() | {"text": (text,)})


def caption(phrases: list[str]) -> str:
    """
    >>> caption(["cat", "dog"])
    'a photo of cat and dog'
    """
    return "a photo of " + " and ".join(phrases)


def rule(timestep: int = 150, threshold: float = 0.1, looks: int = 1, affinity: int = 4, sharpness: float = 2.0, detail: str = "auto", seed: int = 0, blocks: str = "") -> Rule:
    """The node's inputs as a rule. Raises LoomError."""
    return Rule(threshold, affinity, sharpness, timestep, looks, detail, seed, common.blocks(blocks))


def report(found: Found, located: Located) -> str:
    """JSON."""
    matrix = (found.matrix / found.matrix.sum(1, keepdim=True).clamp_min(1e-20)).tolist()
    return json.dumps(
        {
            "concepts": [{"phrase": c.phrase, "tokens": list(c.tokens), "pieces": list(c.pieces)} for c in located.concepts],
            "noise_level": round(found.sigma, 5),
            "cells": list(found.masks.shape[1:]),
            "share_of_picture": dict(zip(found.names, [round(s, 4) for s in found.shares], strict=True)),
            "nobody": round(1 - sum(found.shares), 4),
            "attention": {name: round(s, 6) for name, s in zip(found.names, found.scores, strict=False)},
            "confusion": {"rows": "masks", "columns": "maps", "names": list(found.names), "shares": [[round(v, 4) for v in row] for row in matrix]},
        },
        indent=1,
    )


def as_image(page: Image.Image) -> Tensor:
    """IMAGE [1, H, W, 3]."""
    return torch.from_numpy(np.array(page)).float()[None] / 255


class LoomAttenCraftTrain(io.ComfyNode):
    """Runs :class:`core.attencraft.trainer.Training`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Simple inputs first, expert inputs optional and last."""
        return io.Schema(
            node_id="LoomAttenCraftTrain",
            display_name="Learn Concepts (AttenCraft)",
            category=common.category("image"),
            description=(
                "Learns the things in one picture as new words of the prompt, each by itself: trains how the model reads text, with masks from its own attention, so that the "
                "things do not blend. Gives a LoRA for the host's loaders and an embedding per concept. For SD 1.5, SD 2 and SDXL. (AttenCraft, arXiv 2405.17965)"
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to train on; it stays as it is. A LoRA on it counts as part of it. Nothing of this pack that is on it acts meanwhile."),
                io.Clip.Input("clip", tooltip="The text encoder that goes with the model. It is not trained; new words get vectors of their own."),
                io.Latent.Input("latent", tooltip="The picture that shows all concepts, from VAE Encode."),
                io.String.Input("concepts", multiline=True, default="mycat = cat\nmydog = dog",
                                tooltip="What to learn, one per line, one to eight: a name for the new word = what it is, in words the model knows. The name is what you write in prompts later."),
                io.String.Input("name", default="concepts", tooltip="Of the training: its checkpoints in output/attention_loom/attencraft, and the first part of the names of its embeddings."),
                io.Int.Input("steps", default=500, min=1, max=100000, tooltip="Training steps. 500 as in the paper; watch the preview. More than that soon copies the picture."),
                io.Float.Input("learning_rate", default=1e-4, min=0.0, max=1.0, step=0.000001, tooltip="Of AdamW, for everything that is trained. 1e-4 as in the paper; up to 1e-3 for lora."),
                io.Combo.Input("adapter", options=list(KINDS), default="full", tooltip="full: an addition of every trained weight's own size (77 MB on SD 1.5; the paper). lora: of low rank, for SDXL and small files."),
                io.Float.Input("prior_weight", default=1.0, min=0.0, max=5.0, step=0.05,
                               tooltip="How much the model is held to what it draws anyway, by pictures of its own (prior_latents). 0 does without them."),
                io.Float.Input("attention_weight", default=1.0, min=0.0, max=100.0, step=0.1, tooltip="How much each new word is held to its own mask. 0 turns the attention loss off. (paper: 1)"),
                io.Combo.Input("sampling", options=list(SCHEMES), default="uniform",
                               tooltip="Which concepts a step shows. uniform: every combination alike. reweighted: those the model attends to less are shown more often alone. all: always all."),
                io.Mask.Input("masks", optional=True, tooltip="One mask per concept, in their order, from Concept Masks or painted. Empty: found from the model's own attention."),
                io.Latent.Input("prior_latents", optional=True, tooltip="Pictures of the base model, as many as you like (the paper: 200), for the prior loss. Sample them once with a general prompt and save them."),
                io.Conditioning.Input("prior_positive", optional=True, tooltip="The prompt the prior pictures were made with."),
                io.Vae.Input("vae", optional=True, tooltip="Decodes the last sketches for the preview. Without it they are shown in rough colours."),
                *common.advanced(
                io.Int.Input("rank", default=8, min=1, max=128, optional=True, tooltip="Rank of lora: 8 for SD 1.5, 16 for SDXL."),
                io.Boolean.Input("train_keys", default=True, optional=True, tooltip="Train what keys are made of the text: where in the picture a word is looked for."),
                io.Boolean.Input("train_values", default=True, optional=True, tooltip="Train what values are made of the text: what a word looks like."),
                io.Boolean.Input("new_words", default=True, optional=True, tooltip="Learn a vector per concept, saved as an embedding. Off: concepts are their words alone, and only the model learns."),
                io.String.Input("template", default="a photo of {}", optional=True, tooltip="The training prompt; {} stands for the concepts."),
                io.String.Input("joiner", default=" and ", optional=True, tooltip="What stands between two concepts in the training prompt, blanks included."),
                io.Int.Input("refresh_every", default=20, min=0, max=500, optional=True, tooltip="Steps between looks for better masks; 0 keeps the first ones. (paper: 20)"),
                io.Float.Input("ssim", default=0.8, min=0.0, max=1.0, step=0.01, optional=True, tooltip="New masks are taken if they are at least so similar to the old ones. (paper: 0.8)"),
                io.Combo.Input("precision", options=list(PRECISIONS), default="fp32", optional=True, tooltip="What the model computes in while it is trained. bf16 takes half the memory; what is learned is kept in fp32."),
                io.Boolean.Input("resume", default=True, optional=True, tooltip="Go on from the checkpoint of this name, if there is one. Off: start over and replace it."),
                io.Int.Input("save_every", default=100, min=0, max=10000, optional=True, tooltip="Steps between checkpoints; 0: only at the end and when interrupted."),
                io.Int.Input("preview_every", default=100, min=0, max=10000, optional=True, tooltip="Steps between sketches of every concept alone and of all together; 0: none."),
                io.Int.Input("preview_steps", default=12, min=1, max=100, optional=True, tooltip="Sampling steps of a sketch."),
                io.Float.Input("preview_cfg", default=5.0, min=1.0, max=30.0, step=0.5, optional=True, tooltip="CFG scale of a sketch."),
                io.Int.Input("seed", default=42, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False, optional=True, tooltip="Of everything that is drawn by chance in the training."),
                io.Float.Input("weight_decay", default=0.01, min=0.0, max=1.0, step=0.001, optional=True, tooltip="Of AdamW, on what is learned alone. (paper: 0.01)"),
                io.Boolean.Input("clamp_mask", default=False, optional=True, tooltip="Cut off the few percent by which an enlarged mask overshoots at its edge; the paper's code does not."),
                io.Boolean.Input("spare_memory", default=False, optional=True, tooltip="Keep what gradients need in system memory instead of the GPU's: slower, for large models and pictures."),
                io.Int.Input("timestep", default=150, min=0, max=999, optional=True, tooltip="As in Concept Masks, for the first masks."),
                io.Float.Input("threshold", default=0.1, min=0.0, max=0.5, step=0.01, optional=True, tooltip="As in Concept Masks: by how much a concept must lead at a place."),
                io.Int.Input("affinity", default=4, min=1, max=8, optional=True, tooltip="As in Concept Masks: how far a concept spreads over places that look at each other."),
                io.Combo.Input("detail", options=list(DETAILS), default="auto", optional=True, tooltip="As in Concept Masks: how fine the maps are; also those of the attention loss."),
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with what was learned on it, at full strength."),
                LoraModel.Output(display_name="lora", tooltip="What was learned of the model, for the host's Load LoRA Model and Save LoRA Weights."),
                LossMap.Output(display_name="loss_map", tooltip="The losses, for the host's Plot Loss Graph."),
                io.String.Output(display_name="words", tooltip="The training prompt with all concepts, ready for a text encoder: it shows how to write them."),
                io.Mask.Output(display_name="masks", tooltip="The masks at the end of the training, one per concept."),
                io.Image.Output(display_name="preview", tooltip="Losses, masks and sketches."),
                io.Image.Output(display_name="sketches", tooltip="The last sketches, decoded: every concept alone, then all together. Without a VAE in rough colours."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, clip: Any, latent: Any, concepts: str, name: str, vae: Any = None, **settings: Any) -> io.NodeOutput:
        """Configure -> train -> save -> draw."""
        import comfy.sd
        import comfy.utils

        training = learning(model, clip, latent, concepts, name, **settings)
        form = model.get_model_object("latent_format")
        bar = comfy.utils.ProgressBar(training.plan.steps)
        training.show = lambda t: bar.update_absolute(t.done, t.plan.steps, ("JPEG", progress.draw(t, lambda x: rough(x, form)), PREVIEW) if _worth_showing(t) else None)
        training.run()
        words = _leave_words(training)
        told = "\n".join(words)
        lora = training.lora()
        trained, _ = comfy.sd.load_lora_for_models(model, None, dict(lora), 1.0, 0.0)
        page = as_image(progress.draw(training, lambda x: rough(x, form)))
        found = masks.at_size(training.masks, (CELL * latent["samples"].shape[-2], CELL * latent["samples"].shape[-1]))[:-1]  # type: ignore[arg-type]
        return io.NodeOutput(
            trained, lora, dict(training.history), words[0], found, page, _decoded(training, vae, form), ui=ui.PreviewImage(page, cls=cls).as_dict() | {"text": (told,)}
        )


def learning(
    model: Any,
    clip: Any,
    latent: Any,
    concepts: str,
    name: str,
    steps: int = 500,
    learning_rate: float = 1e-4,
    adapter: str = "full",
    prior_weight: float = 1.0,
    attention_weight: float = 1.0,
    sampling: str = "uniform",
    masks: Any = None,
    prior_latents: Any = None,
    prior_positive: Any = None,
    rank: int = 8,
    train_keys: bool = True,
    train_values: bool = True,
    new_words: bool = True,
    template: str = "a photo of {}",
    joiner: str = " and ",
    refresh_every: int = 20,
    ssim: float = 0.8,
    precision: str = "fp32",
    resume: bool = True,
    save_every: int = 100,
    preview_every: int = 100,
    preview_steps: int = 12,
    preview_cfg: float = 5.0,
    seed: int = 42,
    weight_decay: float = 0.01,
    clamp_mask: bool = False,
    spare_memory: bool = False,
    timestep: int = 150,
    threshold: float = 0.1,
    affinity: int = 4,
    detail: str = "auto",
) -> Training:
    """The node's inputs as a training, ready to run. Raises LoomError."""
    import folder_paths

    if clip is None:
        raise LoomError("no text encoder is connected; connect the one that goes with the model to clip.")
    plan = Plan(
        steps, learning_rate, adapter, rank, train_keys, train_values, new_words, prior_weight, attention_weight, sampling, refresh_every, ssim, seed, weight_decay,  # type: ignore[arg-type]
        save=save_every, preview=preview_every, clamp=clamp_mask, spare=spare_memory,
    )  # fmt: skip
    folder = Path(folder_paths.get_output_directory()) / "attention_loom" / "attencraft" / _clean(name)
    prompts = Prompts(clip, parse(concepts), template, joiner)
    if new_words:
        _check_names(folder.name, prompts)
    samples = picture(latent, model)
    prior = _prior(prior_weight, prior_latents, prior_positive, samples)
    own = precise(model, common.choice("precision", precision, list(PRECISIONS)))
    lesson = Lesson(samples, masks, *prior)
    training = Training(own, prompts, lesson, plan, Rule(threshold, affinity, timestep=timestep, detail=detail, seed=seed), folder, sketch=Sketcher(preview_steps, preview_cfg))
    if resume:
        training.resume()
    return training


def _prior(weight: float, latents: Any, positive: Any, like: Tensor) -> tuple[Tensor | None, tuple[Any, ...]]:
    """Prior pictures and a conditioning for each, or one for all. Raises LoomError."""
    if weight == 0:
        return None, ()
    if latents is None or positive is None:
        raise LoomError(f"prior_weight {weight:g} needs pictures of the base model; connect prior_latents and prior_positive, or set prior_weight to 0.")
    samples = latents["samples"]
    if samples.shape[1] != like.shape[1]:
        raise LoomError(f"prior_latents have {samples.shape[1]} channels and the picture {like.shape[1]}; sample them with this model.")
    if len(positive) not in (1, len(samples)):
        raise LoomError(f"{len(samples)} prior pictures and {len(positive)} prior prompts were given; connect one prompt, or one for each picture.")
    return samples, tuple([entry] for entry in positive)


def precise(model: Any, precision: str) -> Any:
    """A clone that computes in this precision, or the model itself where it does already."""
    wanted = PRECISIONS[precision]
    if (model.model.manual_cast_dtype or model.model.get_dtype()) == wanted:
        return model
    clone = model.clone()
    clone.set_model_compute_dtype(wanted)
    return clone


def _clean(name: str) -> str:
    if not NAME.fullmatch(name.strip()):
        raise LoomError(f"'{name}' is not a name for a training; use letters, digits, - and _, without folders.")
    return name.strip()


def _file(training: str, concept: str) -> str:
    return f"{training}_{concept}"


def _embeddings() -> Path:
    import folder_paths

    return Path(folder_paths.get_folder_paths("embeddings")[0])


def _check_names(training: str, prompts: Prompts) -> None:
    """Before hours of training: every new word's file can be written."""
    for concept in prompts.concepts:
        if store.taken(_embeddings(), _file(training, concept.name), training):
            raise LoomError(f"there is an embedding '{_file(training, concept.name)}' already, made by something else; choose another name for the training or the concept.")


def _leave_words(training: Training) -> list[str]:
    """Write the new words' files. Returns the prompt of all concepts, then how to write each."""
    prompts, name = training.prompts, training.folder.name
    if not prompts.vectors:
        return [prompts.template.replace("{}", prompts.joiner.join(c.words for c in prompts.concepts))]
    for concept, tensors in zip(prompts.concepts, prompts.files(), strict=True):
        store.embedding(_embeddings(), _file(name, concept.name), tensors, name)
    written = [f"embedding:{_file(name, c.name)} {c.words}" for c in prompts.concepts]
    return [prompts.template.replace("{}", prompts.joiner.join(written)), *written]


def _worth_showing(training: Training) -> bool:
    """A picture now and then: drawing takes longer than a small step."""
    return training.done % max(1, training.plan.steps // 25) == 0 or training.done == training.plan.steps


def _decoded(training: Training, vae: Any, form: Any) -> Tensor:
    """IMAGE of the last sketches; a blank one without any."""
    last = [x for at, _, x in training.sketches if at == training.sketches[-1][0]] if training.sketches else []
    if not last:
        return torch.ones(1, 64, 64, 3)
    if vae is not None:
        images = vae.decode(torch.cat([form.process_out(x) for x in last]))
        return images.reshape(-1, *images.shape[-3:])[..., :3]  # type: ignore[no-any-return]
    drawn = [rough(x, form) for x in last]
    return torch.cat([as_image(p.convert("RGB")) for p in drawn]) if all(p is not None for p in drawn) else torch.ones(1, 64, 64, 3)
