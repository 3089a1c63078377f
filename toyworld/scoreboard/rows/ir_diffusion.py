"""IR-Diffusion (arXiv 2411.19261): two subjects that look like their portraits, against stock and plain sharing of keys and values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from ...scenes import Caption
from ..graphs import SAMPLER, Graph, Shot, base, encoded, wired
from ..portraits import SUBJECTS, portrait, scene
from ..row import Arm, Judge, Row

CODE = (
    "core/methods/ir_diffusion.py",
    "core/isolation.py",
    "core/parted.py",
    "core/places.py",
    "core/reposition.py",
    "core/subject_batch.py",
    "kernels/aside.py",
    "nodes/ir_diffusion.py",
    "toyworld/segment_node/__init__.py",
)
JUDGES = (
    Judge("own_likeness", "likeness to its portrait"),
    Judge("cross_likeness", "likeness to the other's", "lower"),
    Judge("pattern_likeness", "pattern of its portrait"),
    Judge("complete", "both seen"),
    Judge("binding", "binding"),
    Judge("leakage", "leakage", "lower"),
)
SHARING = {"isolation": False, "references": "in place", "cross_lambda": 0.0}
WHAT = (
    "Each picture is a batch: both portraits, then the scene; the portraits are the same in all arms. The scene's prompt names colour, shape and place; patterns stand in the portraits' prompts "
    "alone. As in the paper, subjects are found in a first run of the plain model with the same seed: here from their pixels, by the reader of the toy world in place of a detector and a "
    "segmenter. A subject that the first run lacks is left alone. All other settings are the node's own. Seconds are of the second run; the first takes "
    "as long as stock. Likeness is that of mean colour and outline (`toyworld/likeness.py`); measures and prompts were fixed before the first picture was drawn."
)


def drawn(shot: Shot) -> Graph:
    """Portraits and scene in one batch by the plain model."""
    nodes, caption = base(shot), Caption.parse(shot.caption)
    nodes["positive"] = encoded(scene(caption))
    inputs = {"scene": ["positive", 0], "negative": ["negative", 0], "latent": ["latent", 0]}
    for i, thing in enumerate(caption.things, 1):
        nodes[f"portrait_{i}"] = encoded(portrait(thing))
        inputs[f"portrait_{i}"] = [f"portrait_{i}", 0]
    nodes["batch"] = {"class_type": "LoomSubjectBatch", "inputs": inputs}
    nodes[SAMPLER]["inputs"] |= {"positive": ["batch", 0], "negative": ["batch", 1], "latent_image": ["batch", 2]}
    return nodes


def kept(**settings: Any) -> Callable[[Shot], Graph]:
    """Keep Subjects Consistent with the masks of a first run."""

    def graph(shot: Shot) -> Graph:
        nodes = _rehearsed(shot)
        caption = Caption.parse(shot.caption)
        captions = {"portraits": "\n".join(map(portrait, caption.things)), "scene": str(caption)}
        nodes["first_decode"] = {"class_type": "VAEDecode", "inputs": {"samples": ["first", 0], "vae": ["vae", 0]}}
        for part, start, length in (("portraits", 0, SUBJECTS), ("scene", SUBJECTS, 1)):
            nodes[f"first_{part}"] = {"class_type": "ImageFromBatch", "inputs": {"image": ["first_decode", 0], "batch_index": start, "length": length}}
            nodes[f"masks_{part}"] = {"class_type": "ToyWorldSegment", "inputs": {"images": [f"first_{part}", 0], "captions": captions[part]}}
        return _with(nodes, ["masks_scene", 0], ["masks_portraits", 0], **settings)

    return graph


def hidden(**settings: Any) -> Callable[[Shot], Graph]:
    """The subjects' words hidden from each other as well."""

    def graph(shot: Shot) -> Graph:
        caption = Caption.parse(shot.caption)
        return kept(clip=["clip", 0], scene_prompt=scene(caption), subject_words="\n".join(_words(caption)), **settings)(shot)

    return graph


def _words(caption: Caption) -> list[str]:
    return [f"{thing.colour} {thing.shape}" for thing in caption.things]


def _rehearsed(shot: Shot) -> Graph:
    """The stock graph with its sampler a second time, in front of itself."""
    nodes = drawn(shot)
    nodes["first"] = copy.deepcopy(nodes[SAMPLER])
    return nodes


def _with(nodes: Graph, scenes: list[Any], portraits: list[Any], **settings: Any) -> Graph:
    masks = {"scene_masks": scenes, "reference_masks": portraits, "overlap": "smaller wins", "allow_missing": True}
    told = {"strength": 1.0, "isolation": True, "references": "reposition", "cross_lambda": 0.9}
    return wired(nodes, ("LoomIRDiffusion", {**masks, **told, **settings}))


def row(model: str, parts: tuple[Arm, ...]) -> Row:
    """One model."""
    return Row(
        name=f"ir-{model}-two",
        method="ir_diffusion",
        claim="Two subjects of a scene look more like their portraits, and less like each other's, than with the stock model or plain sharing of keys and values, and both are there as before.",
        latent_frames=1,
        stock=Arm("stock", drawn),
        alternatives=(
            Arm("K/V sharing", kept(**SHARING), CODE),
            Arm("isolation alone", kept(references="off", cross_lambda=0.0), CODE),
            *parts,
        ),
        ours=Arm("IR-Diffusion", kept(), CODE),
        judges=JUDGES,
        notes=WHAT,
        world=f"subjects_{model}",
    )


ROWS = (
    row("sd3", (Arm("words hidden", hidden(), CODE), Arm("words hidden, no references", hidden(references="off"), CODE))),
    row("sd15", (Arm("texts alone", kept(references="off", isolation=False), CODE),)),
)
