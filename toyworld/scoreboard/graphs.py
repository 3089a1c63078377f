"""API-format graphs of the toy worlds' models, wired as a user would wire them.

Contract of every graph on the scoreboard: node ``sampler`` is the KSampler that the clock watches (and ``sampler_2`` a second pass, whose time is
added), node ``save`` is a SaveAnimatedWEBP (lossless) of the clip or a SaveImage of the picture (or pictures: a batch is kept whole), node ``report``,
if there is one, is a What Ran whose text is kept. `base` also has nodes ``unet``, ``clip``, ``vae``, ``positive``, ``negative``, ``latent`` and ``decode``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .worlds import World, world

SAMPLER, SECOND, SAVE, REPORT = "sampler", "sampler_2", "save", "report"
Graph = dict[str, Any]


@dataclass(frozen=True)
class Shot:
    """One clip or picture to draw. latent_frames T gives 4 T - 3 frames; it is 1 for pictures. world: a name in `worlds.WORLDS`."""

    caption: str
    seed: int
    latent_frames: int
    steps: int
    world: str = "wan"


def through(*chain: tuple[str, dict[str, Any]]) -> Callable[[Shot], Graph]:
    """Graph builder with nodes (class, inputs) chained between model and sampler; none is the stock model.

    Example: ``through(("LoomRIFLEx", {"preset": "custom", "strength": 1.0, "k": 2}))(Shot("a red circle moving right", 7, 12, 16))``.
    """
    return lambda shot: wired(base(shot), *chain)


def wired(nodes: Graph, *chain: tuple[str, dict[str, Any]]) -> Graph:
    """The graph with nodes (class, inputs) between its model and its sampler, and a What Ran if one of them is the pack's own."""
    model = nodes[SAMPLER]["inputs"]["model"]
    for number, (kind, inputs) in enumerate(chain, 1):
        nodes[f"method_{number}"] = {"class_type": kind, "inputs": {"model": model, **inputs}}
        model = [f"method_{number}", 0]
    nodes[SAMPLER]["inputs"]["model"] = model
    if any(kind.startswith("Loom") for kind, _ in chain):
        nodes[REPORT] = {"class_type": "LoomReport", "inputs": {"model": model, "after": [SAMPLER, 0]}}
    return nodes


def base(shot: Shot) -> Graph:
    """The stock graph of a shot in its world."""
    here = world(shot.world)
    bundle, told = here.bundle, here.bundle.settings
    sampling = {"seed": shot.seed, "steps": shot.steps, "cfg": told.cfg, "sampler_name": told.sampler, "scheduler": told.scheduler, "denoise": 1.0}
    nodes = {
        "unet": _loader(here),
        "clip": {"class_type": "ToyWorldTextEncoder", "inputs": {"clip_name": bundle.text}},
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": bundle.vae}},
        "positive": encoded(shot.caption),
        "negative": encoded(""),
        "latent": _latent(here, shot),
        SAMPLER: {
            "class_type": "KSampler",
            "inputs": {"model": ["unet", 0], "positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["latent", 0], **sampling},
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": [SAMPLER, 0], "vae": ["vae", 0]}},
        SAVE: _save(here),
    }
    if told.shift is not None:
        nodes["shift"] = {"class_type": "ModelSamplingSD3", "inputs": {"model": ["unet", 0], "shift": told.shift}}
        nodes[SAMPLER]["inputs"]["model"] = ["shift", 0]
    return nodes


def encoded(text: str) -> dict[str, Any]:
    """Node: a prompt through the world's text encoder."""
    return {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": text}}


def _loader(here: World) -> dict[str, Any]:
    more = {"weight_dtype": "default"} if here.loader == "UNETLoader" else {}
    return {"class_type": here.loader, "inputs": {"unet_name": here.bundle.model, **more}}


def _latent(here: World, shot: Shot) -> dict[str, Any]:
    size = {"width": here.bundle.size, "height": here.bundle.size, "batch_size": 1}
    if here.picture:
        return {"class_type": "EmptySD3LatentImage", "inputs": size}
    return {"class_type": "EmptyHunyuanLatentVideo", "inputs": {**size, "length": 4 * shot.latent_frames - 3}}


def _save(here: World) -> dict[str, Any]:
    if here.picture:
        return {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "scoreboard/picture"}}
    saving = {"filename_prefix": "scoreboard/clip", "fps": 8.0, "lossless": True, "quality": 80, "method": "fastest"}
    return {"class_type": "SaveAnimatedWEBP", "inputs": {"images": ["decode", 0], **saving}}
