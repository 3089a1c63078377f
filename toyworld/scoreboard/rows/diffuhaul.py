"""DiffUHaul (arXiv 2406.01594): an object of a picture is dragged to another place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...on_drag import measure_drag, perfectly
from ...readings import read
from ...scenes import Caption
from ...scenes.grammar import Ground
from ..footage import Footage
from ..graphs import SAMPLER, SAVE, Graph, Shot, base, encoded, wired
from ..row import Arm, Judge, Row
from ..scene_prompts import pictures
from ..worlds import world

PARTS = ("methods/diffuhaul", "methods/sourced", "source_call", "drag", "drag_request", "drag_grounding", "blob", "nearest", "anchoring", "buckets", "regional", "masked_gligen")
CODE = (*(f"core/{part}.py" for part in PARTS), "nodes/diffuhaul.py")
MODELS = {"sd15": "scenes_sd15", "sd3": "scenes_sd3"}
PLACE = (0.24, 0.5)
"""Where the prompt's object stands, in picture widths, to a twentieth; see `scenes.layout`."""
RADIUS, DOT = 0.24, 0.03
"""Of the disc that holds every object of middle size in that place, and of one inside it: no mask is empty where the model drew something else."""
MARGIN = 8
"""Pixels by which inpainting masks are wider than the object, about what Drag Object adds here."""
GLIGEN = "scenes_sd15_gligen.safetensors"
BOX = 0.18
"""Half a side of the box that GLIGEN gets, in picture widths: it holds every object of middle size."""
DX = 0.5
"""How far it goes to the right, in picture widths: eight latent cells of sixteen."""
JUDGES = (
    Judge("drag_arrived", "arrived"),
    Judge("drag_identity", "identity"),
    Judge("drag_trace", "left behind", "lower"),
    Judge("drag_background", "background change", "lower"),
    Judge("drag_shape", "shape IoU"),
    Judge("drag_error", "distance", "lower"),
)


def patterned(count: int) -> list[tuple[str, int]]:
    """Captions of one patterned object on the left, on a plain ground: its pattern is its identity."""
    found = []
    for i, (caption, seed) in enumerate(pictures(1)(count)):
        given = Caption.parse(caption)
        thing = replace(given.things[0], texture=("striped", "dotted")[i % 2], size="", place="left")
        found.append((str(Caption((thing,), Ground(given.ground.colour))), seed))
    return found


def words(shot: Shot, place: str = "") -> tuple[str, str, str]:
    """The prompt with the object in a place or in none, the object alone, and the ground alone."""
    caption = Caption.parse(shot.caption)
    thing = replace(caption.things[0], place="")
    whole = str(Caption((replace(thing, place=place),), caption.ground))
    return whole, whole.split(" on a ")[0], str(caption.ground)


def drawn(shot: Shot) -> Graph:
    """The picture to edit, through the VAE, and a mask of its object. The sampler's own picture stays to be replaced."""
    nodes, side = base(shot), world(shot.world).bundle.size
    nodes["source"], nodes["picture"] = copy.deepcopy(nodes[SAMPLER]), copy.deepcopy(nodes["decode"])
    nodes["picture"]["inputs"]["samples"] = ["source", 0]
    nodes["encoded"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["picture", 0], "vae": ["vae", 0]}}
    nodes["seen"] = {"class_type": "ToyWorldSegment", "inputs": {"images": ["picture", 0], "captions": shot.caption}}
    nodes["dot"] = _disc(side, DOT)
    if shot.world == MODELS["sd15"]:
        # it does not know left from right; what it drew elsewhere does not count, and would leave the picture
        nodes["near"] = _disc(side, RADIUS)
        nodes["here"] = _both("seen", "near", "multiply")
    nodes["mask"] = _both("here" if "here" in nodes else "seen", "dot")
    nodes["plain"] = encoded(words(shot)[0])
    nodes[SAMPLER]["inputs"] |= {"latent_image": ["encoded", 0], "positive": ["plain", 0], "seed": shot.seed + 1}
    nodes["both"] = {"class_type": "ImageBatch", "inputs": {"image1": ["picture", 0], "image2": ["decode", 0]}}
    nodes[SAVE]["inputs"]["images"] = ["both", 0]
    return nodes


def _disc(side: int, radius: float) -> dict[str, Any]:
    return {"class_type": "LoomPlaceMasks", "inputs": {"places": f"object @ {PLACE[0]}, {PLACE[1]}, {radius}", "width": side, "height": side}}


def _both(first: str, second: str, operation: str = "add", x: int = 0) -> dict[str, Any]:
    """The first mask with the second, moved x pixels to the right, added or subtracted."""
    return {"class_type": "MaskComposite", "inputs": {"destination": [first, 0], "source": [second, 0], "x": x, "y": 0, "operation": operation}}


def _grown(mask: str) -> dict[str, Any]:
    return {"class_type": "GrowMask", "inputs": {"mask": [mask, 0], "expand": MARGIN, "tapered_corners": True}}


def _there(nodes: Graph, side: int) -> None:
    """The object's mask at its new place."""
    nodes["nothing"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": side, "height": side}}
    nodes["there"] = _both("nothing", "mask", x=round(DX * side))


def inpainted(shot: Shot) -> Graph:
    """Old and new place drawn anew, with the prompt saying that the object is on the right."""
    nodes = drawn(shot)
    _there(nodes, world(shot.world).bundle.size)
    nodes["union"] = _both("mask", "there")
    nodes["hole"] = _grown("union")
    nodes["kept"] = {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["encoded", 0], "mask": ["hole", 0]}}
    nodes["elsewhere"] = encoded(words(shot, "right")[0])
    nodes[SAMPLER]["inputs"] |= {"latent_image": ["kept", 0], "positive": ["elsewhere", 0]}
    return nodes


def pasted(shot: Shot) -> Graph:
    """The object cut out and pasted at its new place; the old one drawn anew as ground."""
    nodes, side = drawn(shot), world(shot.world).bundle.size
    nodes["shifted"] = {
        "class_type": "ImageCompositeMasked",
        "inputs": {"destination": ["picture", 0], "source": ["picture", 0], "x": round(DX * side), "y": 0, "resize_source": False, "mask": ["mask", 0]},
    }
    nodes["pasted"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["shifted", 0], "vae": ["vae", 0]}}
    _there(nodes, side)
    nodes["wide"] = _grown("mask")
    nodes["hole"] = _both("wide", "there", "subtract")
    nodes["kept"] = {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["pasted", 0], "mask": ["hole", 0]}}
    nodes["ground"] = encoded(words(shot)[2])
    nodes[SAMPLER]["inputs"] |= {"latent_image": ["kept", 0], "positive": ["ground", 0]}
    return nodes


def dragged(**settings: Any) -> Callable[[Shot], Graph]:
    """Drag Object."""

    def graph(shot: Shot) -> Graph:
        nodes, side = drawn(shot), world(shot.world).bundle.size
        given = {"positive": ["plain", 0], "latent": ["encoded", 0], "mask": ["mask", 0], "clip": ["clip", 0], "caption": words(shot)[1]}
        nodes = wired(nodes, ("LoomDiffUHaul", {**given, "dx": round(DX * side), "dy": 0, "scale": 1.0, "strength": 1.0, "redraw_cells": 1.0, **settings}))
        nodes[SAMPLER]["inputs"] |= {"latent_image": ["method_1", 1], "positive": ["method_1", 2]}
        return nodes

    return graph


def loosely(shot: Shot) -> Graph:
    """Drag Object with a disc around the object in the place of its outline."""
    nodes = dragged()(shot)
    nodes["mask"] = _disc(world(shot.world).bundle.size, RADIUS)
    return nodes


def boxed(**settings: Any) -> Callable[[Shot], Graph]:
    """Drag Object on a prompt that GLIGEN grounds: a box around the object where it is."""
    drag = dragged(**settings)

    def graph(shot: Shot) -> Graph:
        nodes, side = drag(shot), world(shot.world).bundle.size
        edge = round(2 * BOX * side / 8) * 8
        box = {"width": edge, "height": edge, "x": round((PLACE[0] - BOX) * side / 8) * 8, "y": round((PLACE[1] - BOX) * side / 8) * 8}
        nodes["gligen"] = {"class_type": "GLIGENLoader", "inputs": {"gligen_name": GLIGEN}}
        texts = {"conditioning_to": ["plain", 0], "clip": ["clip", 0], "gligen_textbox_model": ["gligen", 0], "text": words(shot)[1]}
        nodes["box"] = {"class_type": "GLIGENTextBoxApply", "inputs": {**texts, **box}}
        nodes["method_1"]["inputs"]["positive"] = ["box", 0]
        return nodes

    return graph


def haul(footage: Footage) -> dict[str, float]:
    """Of the picture and its edit, the first and the last of what was saved; the rendered truth is dragged perfectly first."""
    caption = words(Shot(footage.caption, 0, 1, 0))[0]
    before = read(footage.frames[:1], caption)
    after = footage.frames[-1:] if len(footage.frames) > 1 else perfectly(before, DX, 0.0)
    return measure_drag(before, read(after, caption), DX, 0.0)


def row(model: str) -> Row:
    """One object goes from the left to the right."""
    arms = (
        ("source first", {"anchor_schedule": "source first"}),
        ("anchored everywhere" if model == "sd3" else "anchored outside", {"anchor_scope": "all" if model == "sd3" else "outside moved regions"}),
        ("no captions", {"grounding": "off"}),
        ("no copying", {"copy_blend": 0.0}),
    )
    drawn_by = {"DiffUHaul, GLIGEN": boxed(), "DiffUHaul, GLIGEN, exchange not masked": boxed(masked_exchange=False)} if model == "sd15" else {}
    return Row(
        name=f"diffuhaul-{model}",
        method="diffuhaul",
        claim="A dragged object arrives where it was sent and keeps its pattern, more often than when its old and new place are inpainted.",
        latent_frames=1,
        stock=Arm("inpaint both places", inpainted),
        alternatives=(
            Arm("paste, inpaint the old place", pasted),
            *(Arm(f"DiffUHaul, {name}", dragged(**settings), CODE) for name, settings in arms),
            Arm("DiffUHaul, a disc for a mask", loosely, CODE),
            *(Arm(name, graph, CODE) for name, graph in drawn_by.items()),
        ),
        ours=Arm("DiffUHaul", dragged(), CODE),
        judges=JUDGES,
        notes=f"The picture is one the model drew; the object goes {DX:g} picture widths to the right. Every arm gets the object's outline, read from the "
        "pixels; inpainting masks are 8 pixels wider. Pictures whose object the model did not draw to begin with do not count. Pasting cannot lose a pattern: it is the ceiling of identity, and cannot change light or fit.",
        world=MODELS[model],
        prompts=patterned,
        measure=haul,
        more=((GLIGEN, "gligen"),) if drawn_by else (),
    )


ROWS = tuple(row(model) for model in MODELS)
