"""Entropy scaling (arXiv 2306.08645): pictures of half and of one and a half times the trained size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..graphs import SAMPLER, SAVE, SECOND, Graph, Shot, base, wired
from ..row import Arm, Judge, Row
from ..scene_prompts import pictures
from ..worlds import world

CODE = ("core/methods/entropy_scale.py", "core/trained.py", "nodes/entropy_scale.py")
JUDGES = (Judge("iou", "shape IoU"), Judge("right", "all right"), Judge("complete", "all seen"), Judge("count", "count right"), Judge("sharpness", "sharpness"))
MODELS = {"sd3": "scenes_sd3", "sd15": "scenes_sd15"}
NATIVE = 128


def entropy(**settings: Any) -> tuple[str, dict[str, Any]]:
    """The Any Size node: the toy models are in no table, so they are told their size."""
    return "LoomEntropyScale", {"strength": 1.0, "train_width": NATIVE, "train_height": NATIVE, **settings}


def at_size(side: int, *chain: tuple[str, dict[str, Any]]) -> Callable[[Shot], Graph]:
    """Graph builder for square pictures of another size with nodes between model and sampler."""

    def graph(shot: Shot) -> Graph:
        nodes = wired(base(shot), *chain)
        nodes["latent"]["inputs"] |= {"width": side, "height": side}
        return nodes

    return graph


def scaled(side: int) -> Callable[[Shot], Graph]:
    """Drawn at the native size, then the picture is scaled."""

    def graph(shot: Shot) -> Graph:
        nodes = base(shot)
        nodes["scale"] = {"class_type": "ImageScale", "inputs": {"image": ["decode", 0], "upscale_method": "lanczos", "width": side, "height": side, "crop": "disabled"}}
        nodes[SAVE]["inputs"]["images"] = ["scale", 0]
        return nodes

    return graph


def second_pass(side: int) -> Callable[[Shot], Graph]:
    """Drawn at the native size, the latent scaled, half of the noise put back and taken out again: the usual way to larger pictures."""

    def graph(shot: Shot) -> Graph:
        nodes = base(shot)
        # changes nothing, but without it the host would take the first pass from another arm and not draw it, so it would have no time
        nodes["once"] = {"class_type": "RepeatLatentBatch", "inputs": {"samples": ["latent", 0], "amount": 1}}
        nodes[SAMPLER]["inputs"]["latent_image"] = ["once", 0]
        nodes["larger"] = {"class_type": "LatentUpscale", "inputs": {"samples": [SAMPLER, 0], "upscale_method": "bislerp", "width": side, "height": side, "crop": "disabled"}}
        nodes[SECOND] = {"class_type": "KSampler", "inputs": {**nodes[SAMPLER]["inputs"], "latent_image": ["larger", 0], "denoise": 0.5}}
        nodes["decode"]["inputs"]["samples"] = [SECOND, 0]
        return nodes

    return graph


def row(model: str, name: str, side: int, claim: str, *alternatives: Arm) -> Row:
    """A model at one size."""
    return Row(
        name=f"entropy-{model}-{name}",
        method="entropy_scale",
        claim=claim,
        latent_frames=1,
        stock=Arm("stock", at_size(side)),
        alternatives=(
            *alternatives,
            Arm("Any Size, strength 2", at_size(side, entropy(strength=2.0)), CODE),
            Arm("Any Size, measured", at_size(side, entropy(mode="measured")), CODE),
        ),
        ours=Arm("Any Size", at_size(side, entropy()), CODE),
        judges=JUDGES,
        notes=(
            f"Trained at {world(MODELS[model]).bundle.size} pixels only, so this size is new to the model. Strength 1 is the paper's rule; the other two forms of the node are shown "
            "beside it. The rendered truth is of the native size. What is drawn natively and scaled never leaves the trained size."
        ),
        world=MODELS[model],
        prompts=pictures(1),
        side=side,
    )


def of(model: str) -> tuple[Row, Row]:
    """Half and one and a half times the size."""
    small, large = NATIVE // 2, NATIVE * 3 // 2
    return (
        row(
            model,
            "half",
            small,
            "At half the trained size per side objects are more often whole than with the stock model.",
            Arm("native size, scaled down", scaled(small)),
        ),
        row(
            model,
            "larger",
            large,
            "At one and a half times the trained size per side objects are less often doubled or torn than with the stock model.",
            Arm("native size, scaled up", scaled(large)),
            Arm("second pass", second_pass(large)),
        ),
    )


ROWS = tuple(made for model in MODELS for made in of(model))
