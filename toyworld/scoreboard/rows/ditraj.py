"""DiTraj (arXiv 2509.21839): an object follows a path of boxes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ....core.tracks import KeyFrame, Track, Tracks
from ...on_path import follow
from ...readings import read
from ...scenes import Caption
from ..footage import Footage
from ..graphs import SAMPLER, Graph, Shot, base, encoded, through, wired
from ..row import Arm, Judge, Row
from ..scene_footage import measure_scene
from ..scene_prompts import clips

SCENES, NATIVE = "scenes_wan_t2v", 9
CODE = ("core/methods/ditraj.py", "core/trajectory.py", "core/texts.py", "core/tracks.py", "kernels/aside.py", "nodes/ditraj.py", "nodes/track_editor.py")
JUDGES = (
    Judge("path_iou", "IoU with the box"),
    Judge("path_error", "distance from its centre", "lower"),
    Judge("path_inside", "centre inside"),
    Judge("path_seen", "object seen"),
    Judge("identity", "identity"),
)
RING = ((0.5, 0.25), (0.5, 0.5), (0.25, 0.5), (0.0, 0.5), (0.0, 0.25), (0.0, 0.0), (0.25, 0.0), (0.5, 0.0), (0.5, 0.25))
"""Corners of a box that goes round, one place per latent frame: the model has 4 x 4 tokens."""
WHAT = (
    "The model's tokens are 16 pixels wide, 4 x 4 in a picture, so a box of 2 x 2 tokens has nine places. Inside the box the caption is read, outside the ground's words alone. "
    "Settings are the paper's shares, nothing was tuned. The host has nothing that moves an object without a trained model, so the alternatives are the prompt and the parts of the method. "
    "The white frame in the pictures is the commanded box."
)


def track(*corners: tuple[float, float], size: tuple[float, ...] = (0.5,)) -> Tracks:
    """A path for a native clip through upper left corners of a square box, evenly in time; the size goes from its first to its last."""
    keys = []
    for i, (x, y) in enumerate(corners):
        side = size[0] + (size[-1] - size[0]) * i / (len(corners) - 1)
        keys.append(KeyFrame(round(i * 32 / (len(corners) - 1)), (x, y, x + side, y + side)))
    return Tracks(33, 64, 64, (Track("object", tuple(keys)),))


PATHS = {"diagonal": track((0.0, 0.0), (0.5, 0.5)), "circle": track(*RING), "grow": track((0.25, 0.25), (0.0, 0.0), size=(0.5, 1.0))}


def steered(path: str, **settings: Any) -> Callable[[Shot], Graph]:
    """The object on a path, with the caption inside the box and the ground outside."""

    def graph(shot: Shot) -> Graph:
        nodes, drawn = base(shot), PATHS[path]
        nodes["ground"] = encoded(str(Caption.parse(shot.caption).ground))
        nodes["track"] = {"class_type": "LoomTrackEditor", "inputs": {"track": drawn.json(), "frames": 33, "width": 64, "height": 64, "preview": "whole path"}}
        texts = {"base": ["positive", 0], "foreground": ["positive", 0], "background": ["ground", 0], "track": ["track", 0]}
        nodes = wired(nodes, ("LoomDiTraj", {**texts, "strength": 1.0, "mask_end": 0.6, "rope_end": 0.1, **settings}))
        nodes[SAMPLER]["inputs"]["positive"] = ["method_1", 1]
        return nodes

    return graph


def followed(footage: Footage, path: str) -> dict[str, float]:
    """All of the world's measures, and those of the path."""
    return measure_scene(footage) | follow(read(footage.frames, footage.caption), torch.as_tensor(PATHS[path].boxes()[0]))


def plain(*motions: str) -> Callable[[int], list[tuple[str, int]]]:
    """Captions of one plain object on a plain ground with these motions in turn: what is measured is the way, not the pattern."""

    def draw(count: int) -> list[tuple[str, int]]:
        found = []
        for caption, seed in clips(count, motions):
            given = Caption.parse(caption)
            thing, ground = replace(given.things[0], texture="plain", size="", speed=""), replace(given.ground, texture="plain")
            found.append((str(Caption((thing,), ground)), seed))
        return found

    return draw


def row(path: str, motion: str, claim: str, measure: Callable[[Footage], dict[str, float]]) -> Row:
    """One path, with captions that name its nearest motion."""
    return Row(
        name=f"ditraj-{path}",
        method="ditraj",
        claim=claim,
        latent_frames=NATIVE,
        stock=Arm("stock", through()),
        alternatives=(
            Arm("texts only", steered(path, rope_end=0.0), CODE),
            Arm("positions only", steered(path, mask_end=0.0), CODE),
            Arm("linear positions", steered(path, resample="linear"), CODE),
            Arm("without r_mask", steered(path, r_mask=False), CODE),
        ),
        ours=Arm("DiTraj", steered(path), CODE),
        judges=JUDGES,
        notes=WHAT,
        world=SCENES,
        prompts=plain(motion),
        measure=measure,
        outline=tuple(map(tuple, PATHS[path].boxes()[0].tolist())),
    )


ROWS = (
    row("diagonal", "right", "An object whose prompt says it moves right goes from the upper left to the lower right corner.", lambda footage: followed(footage, "diagonal")),
    row("circle", "clockwise", "An object that orbits does so on the circle that was drawn, in step with it.", lambda footage: followed(footage, "circle")),
    row("grow", "growing", "An object that grows does so in the box that was drawn.", lambda footage: followed(footage, "grow")),
)
