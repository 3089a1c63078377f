"""What the host itself offers for two objects side by side: area and mask conditioning, as graphs. For captions of two things, the first on the left."""

from __future__ import annotations

from dataclasses import replace

from ..scenes import Caption
from .graphs import SAMPLER, Graph, Shot, base, encoded
from .row import Arm
from .worlds import world


def halves(shot: Shot) -> tuple[str, str]:
    """Captions of the left and the right half: one object each, without its place, on the whole picture's ground."""
    caption = Caption.parse(shot.caption)
    if len(caption.things) != 2:
        raise ValueError(f"Areas are a half for each of two objects; {shot.caption!r} names {len(caption.things)}.")
    left, right = (str(Caption((replace(thing, place=""),), caption.ground)) for thing in caption.things)
    return left, right


def areas(shot: Shot, whole: bool) -> Graph:
    """ConditioningSetArea: half a picture for each object; with `whole`, the whole caption everywhere besides."""
    nodes, side = base(shot), world(shot.world).bundle.size
    for n, text in enumerate(halves(shot)):
        nodes[f"text_{n}"] = encoded(text)
        size = {"width": side // 2, "height": side, "x": n * side // 2, "y": 0, "strength": 1.0}
        nodes[f"half_{n}"] = {"class_type": "ConditioningSetArea", "inputs": {"conditioning": [f"text_{n}", 0], **size}}
    return _combined(nodes, whole)


def masks(shot: Shot) -> Graph:
    """ConditioningSetMask: each object's caption sees the whole picture and counts in its half only."""
    nodes, side = base(shot), world(shot.world).bundle.size
    nodes["nothing"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": side, "height": side}}
    nodes["solid"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": side // 2, "height": side}}
    for n, text in enumerate(halves(shot)):
        nodes[f"text_{n}"] = encoded(text)
        place = {"x": n * side // 2, "y": 0, "operation": "add"}
        nodes[f"mask_{n}"] = {"class_type": "MaskComposite", "inputs": {"destination": ["nothing", 0], "source": ["solid", 0], **place}}
        how = {"strength": 1.0, "set_cond_area": "default"}
        nodes[f"half_{n}"] = {"class_type": "ConditioningSetMask", "inputs": {"conditioning": [f"text_{n}", 0], "mask": [f"mask_{n}", 0], **how}}
    return _combined(nodes, whole=False)


def _combined(nodes: Graph, whole: bool) -> Graph:
    nodes["both"] = {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["half_0", 0], "conditioning_2": ["half_1", 0]}}
    if whole:
        nodes["all"] = {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["positive", 0], "conditioning_2": ["both", 0]}}
    nodes[SAMPLER]["inputs"]["positive"] = ["all" if whole else "both", 0]
    return nodes


SIDE_BY_SIDE = (
    Arm("areas", lambda shot: areas(shot, whole=False)),
    Arm("areas and whole caption", lambda shot: areas(shot, whole=True)),
    Arm("masks", masks),
)
"""Alternatives of every row on two objects with places."""
