"""Nodes: Concept Masks and Learn Concepts (AttenCraft)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..core.attencraft import masks, sheet
from ..core.attencraft.layers import DETAILS
from ..core.attencraft.masks import Found, Rule
from ..core.concepts import Located
from ..core.errors import LoomError
from . import common

CELL = 8
"""Pixels per latent cell where no image says it."""


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
                "which place belongs to what. For SD 1.5, SD 2, SDXL, SD3, FLUX, Qwen-Image, Lumina 2 and Z-Image. (AttenCraft, arXiv 2405.17965)"
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
                                tooltip="SD3, FLUX, Qwen-Image, Lumina 2, Z-Image: blocks that are read; empty takes the middle third. 7-10 counts all blocks in order, d5 a double block."),
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
