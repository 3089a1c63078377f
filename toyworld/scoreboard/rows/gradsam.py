"""Grad-SAM masks (arXiv 2408.16232): the prompt's object on the ground of a reference picture, with a measured mask in place of a drawn one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...scenes import Caption
from ...scenes.grammar import GROUNDS, Ground
from ..graphs import SAMPLER, Graph, Shot, base, wired
from ..row import Arm, Judge, Row
from ..scene_prompts import pictures
from ..worlds import world

CODE = (
    "core/methods/gradsam.py",
    "core/methods/guided.py",
    "core/influence.py",
    "core/subject_mask.py",
    "core/latent.py",
    "core/columns.py",
    "core/concepts.py",
    "core/differentiable.py",
    "nodes/gradsam.py",
    "nodes/prompt.py",
)
JUDGES = (Judge("ground", "ground kept"), Judge("complete", "object seen"), Judge("right", "all right"), Judge("iou", "shape IoU"))
MODELS = {"sd3": "scenes_sd3", "sd15": "scenes_sd15"}
DILATE = 1
"""Cells the mask grows by: 16 cells to a side, where the paper's 3 are meant for 64."""


def subject(shot: Shot) -> str:
    """The object's colour and shape."""
    [thing] = Caption.parse(shot.caption).things
    return f"{thing.colour} {thing.shape}"


def plain(count: int) -> list[tuple[str, int]]:
    """Captions of one object on a plain ground, which a reference can be without any model."""
    drawn = [(Caption.parse(caption), seed) for caption, seed in pictures(1)(count)]
    return [(str(replace(caption, ground=Ground(caption.ground.colour))), seed) for caption, seed in drawn]


def elsewhere(shot: Shot) -> str:
    """The caption with another ground: what the model is told. The ground asked for is known from the reference alone."""
    caption = Caption.parse(shot.caption)
    taken = {caption.ground.colour, *(thing.colour for thing in caption.things)}
    others = [name for name in GROUNDS if name not in taken]
    return str(replace(caption, ground=Ground(others[shot.seed % len(others)])))


def told(shot: Shot) -> Graph:
    """The stock graph with the other ground, and the reference: a picture of the ground alone, through the VAE."""
    nodes, side = base(shot), world(shot.world).bundle.size
    nodes["positive"]["inputs"]["text"] = elsewhere(shot)
    red, green, blue = (round(255 * value) for value in GROUNDS[Caption.parse(shot.caption).ground.colour])
    nodes["ground"] = {"class_type": "EmptyImage", "inputs": {"width": side, "height": side, "batch_size": 1, "color": red << 16 | green << 8 | blue}}
    nodes["reference"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["ground", 0], "vae": ["vae", 0]}}
    return nodes


def from_reference(denoise: float) -> Callable[[Shot], Graph]:
    """The host's own way: the reference as the latent to begin with."""

    def graph(shot: Shot) -> Graph:
        nodes = told(shot)
        nodes[SAMPLER]["inputs"] |= {"latent_image": ["reference", 0], "denoise": denoise}
        return nodes

    return graph


def kept(**settings: Any) -> Callable[[Shot], Graph]:
    """Keep the Background with the reference."""

    def graph(shot: Shot) -> Graph:
        inputs = {"clip": ["clip", 0], "prompt": elsewhere(shot), "subjects": subject(shot), "positive": ["positive", 0], "reference": ["reference", 0]}
        return wired(told(shot), ("LoomGradSAM", {**inputs, "strength": 1.0, "steps": "0.11, 0.4, 0.62", "dilate": DILATE, **settings}))

    return graph


def row(model: str) -> Row:
    """One object, the ground from a reference."""
    rivals = [Arm(f"from the reference, denoise {denoise:g}", from_reference(denoise)) for denoise in (0.9, 0.7)]
    forms = [Arm("Grad-SAM, relu", kept(phi="relu"), CODE), Arm("Grad-SAM, pasted", kept(paste=True), CODE)]
    forms += [Arm("Grad-SAM, fast", kept(method="fast"), CODE)] if model == "sd15" else []
    return Row(
        name=f"gradsam-{model}",
        method="gradsam",
        claim="With a measured mask the ground is the reference's and the object still the prompt's, more often than when sampling begins from the reference.",
        latent_frames=1,
        stock=Arm("stock", told),
        alternatives=(*rivals, *forms),
        ours=Arm("Grad-SAM", kept(), CODE),
        judges=JUDGES,
        notes="The caption shown is what is wanted; the model is told the same object on another ground, and the reference is the wanted ground alone, so stock cannot know it. Steps and "
        f"threshold are the paper's; the mask grows by {DILATE} cell, because the latent has 16 to a side.",
        world=MODELS[model],
        prompts=plain,
    )


ROWS = tuple(row(model) for model in MODELS)
