"""The worlds that rows are drawn in: a bundle of checkpoints each, with the prompts, measures and rendered truth that fit it.

A row names one (`Row.world`). Files and sampler settings are those of `bundles`; another checkpoint is another bundle and another entry here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..bundles import BUNDLES, SHAPES, Bundle
from . import footage, portraits, prompts, scene_footage, scene_prompts
from .footage import Footage

FIRST_READERS = ("toyworld/measures.py", "toyworld/fidelity.py", "toyworld/world.py", "toyworld/scoreboard/footage.py")


@dataclass(frozen=True)
class World:
    """One bundle of checkpoints, as a row uses it.

    loader: class of the node that takes the model's file. prompts and measure: of rows that bring none. readers: files of the pack, relative
    to its root, that turn pixels into numbers. truth: rendered frames [F, S, S, 3] in 0..1 of a caption, a seed and a number of latent
    frames; None where there is no such anchor.
    """

    bundle: Bundle
    loader: str = "UNETLoader"
    prompts: Callable[[int], list[tuple[str, int]]] = prompts.held_out
    measure: Callable[[Footage], dict[str, float]] = footage.measure_video
    readers: tuple[str, ...] = FIRST_READERS
    truth: Callable[[str, int, int], torch.Tensor] | None = None

    @property
    def models(self) -> tuple[tuple[str, str], ...]:
        """(checkpoint file, folder of the host's models)."""
        return (self.bundle.model, "diffusion_models"), (self.bundle.text, "text_encoders"), (self.bundle.vae, "vae")

    @property
    def picture(self) -> bool:
        """Whether it draws pictures; otherwise it draws clips."""
        return not self.bundle.moving


def _scenes(name: str, loader: str = "UNETLoader") -> World:
    """A model of the second world."""
    bundle = BUNDLES[name]
    moving = bundle.moving
    return World(
        bundle,
        loader,
        scene_prompts.clips if moving else scene_prompts.pictures(2),
        scene_footage.measure_scene,
        scene_footage.READERS,
        scene_footage.rendered_clip if moving else scene_footage.rendered_picture,
    )


def _subjects(name: str, loader: str = "UNETLoader") -> World:
    """The same with two portraits before each scene."""
    return replace(_scenes(name, loader), prompts=portraits.prompts, measure=portraits.measure, readers=portraits.READS, truth=portraits.rendered)


WORLDS = {
    "wan": World(SHAPES),
    "scenes_wan_t2v": _scenes("wan_t2v"),
    "scenes_wan_forcing": _scenes("wan_forcing"),
    "scenes_sd3": _scenes("sd3"),
    "scenes_sd15": _scenes("sd15", "ToyWorldUNet"),
    "subjects_sd3": _subjects("sd3"),
    "subjects_sd15": _subjects("sd15", "ToyWorldUNet"),
}


def world(name: str) -> World:
    """By its name; a ValueError lists the names."""
    if name not in WORLDS:
        raise ValueError(f"The scoreboard has no world called '{name}'; worlds: {', '.join(WORLDS)}.")
    return WORLDS[name]
