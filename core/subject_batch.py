"""References and scene as one batch: the references first, then the scenes, each row with its own prompt.

The host samples it like any batch. All references share one noise, another than the scene's, which keeps the noise it has alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import LoomError
from .methods.ir_diffusion import MOST
from .texts import single

PER_ROW = ("pooled_output",)
"""Tensors of a conditioning that have one row for each picture."""


def prompts(scene: Any, portraits: list[Any], scenes: int) -> Any:
    """One conditioning with a row for each portrait and ``scenes`` rows of the scene's; everything else as in the scene's.

    Raises LoomError for prompts of several conditionings, of other lengths or widths, and for more portraits than fit.
    """
    if len(portraits) > MOST:
        raise LoomError(f"{len(portraits)} portraits were given and {MOST} fit; take some out.")
    entries = [_of_whole_picture(c, f"portrait {i} prompt") for i, c in enumerate(portraits, 1)]
    text, facts = _of_whole_picture(scene, "scene prompt")
    for i, (other, own) in enumerate(entries, 1):
        if other.shape[1:] != text.shape[1:]:
            raise LoomError(
                f"the portrait {i} prompt has {other.shape[1]} tokens of width {other.shape[2]} and the scene prompt {text.shape[1]} of width {text.shape[2]}; "
                "a batch needs prompts of one length: shorten the longer one to one block of the text encoder, and encode all with one CLIP."
            )
        for key in PER_ROW:
            if (facts.get(key) is None) != (own.get(key) is None):
                raise LoomError(f"the portrait {i} prompt and the scene prompt were encoded by different models; encode all with one CLIP.")
    if facts.get("attention_mask") is not None or any(own.get("attention_mask") is not None for _, own in entries):
        raise LoomError("the prompts carry a mask of their padding, which one batch of several prompts cannot keep; use a model without it.")
    rows = [(t[:1], f) for t, f in entries] + [(text[:1], facts)] * scenes
    made = {key: torch.cat([f[key][:1] for _, f in rows]) for key in PER_ROW if facts.get(key) is not None}
    return [[torch.cat([t for t, _ in rows]), facts | made]]


def latents(scene: dict[str, Any], count: int, references: dict[str, Any] | None = None) -> dict[str, Any]:
    """A latent of ``count`` references and the scene's pictures. references: theirs, default empty like the scene's.

    Raises LoomError for a noise mask and for references of another size.
    """
    if "noise_mask" in scene:
        raise LoomError("the scene's latent has a noise mask; take it off: references and scene are sampled as a whole.")
    own: Tensor = scene["samples"]
    given = own[:1].expand(count, *own.shape[1:]) if references is None else references["samples"]
    if given.shape[1:] != own.shape[1:]:
        raise LoomError(f"the references' latent is {tuple(given.shape[1:])} and the scene's {tuple(own.shape[1:])}; make them of one size, with one VAE.")
    if len(given) != count:
        raise LoomError(f"{count} portrait prompts and {len(given)} reference latents were given; connect one of each per subject.")
    noises = list(scene.get("batch_index", range(len(own))))
    return scene | {"samples": torch.cat([given.to(own), own]), "batch_index": [max(noises) + 1] * count + noises}


def _of_whole_picture(conditioning: Any, name: str) -> tuple[Tensor, dict[str, Any]]:
    text, facts = single(conditioning, name)
    for key in ("area", "mask", "control", "hooks"):
        if facts.get(key) is not None:
            raise LoomError(f"the {name} carries '{key}', which belongs to one picture; take it off, or put it behind this node, where it acts on references and scene alike.")
    return text, facts
