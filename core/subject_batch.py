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

PORTRAITS = "loom_portraits"
"""Where a latent says how many portraits it begins with, and the noises of the batch it was: the host keeps this on parts of the batch, too."""
PER_ROW = ("pooled_output",)
"""Tensors of a conditioning that have one row for each picture."""


def before(latent: dict[str, Any]) -> int:
    """Portraits that are in a latent already, because it is a whole batch of this kind."""
    count, noises = latent.get(PORTRAITS, (0, None))
    return int(count) if list(latent.get("batch_index", ())) == noises else 0


def prompts(scene: Any, portraits: list[Any], size: int, standing: int = 0) -> Any:
    """One conditioning with a row for each picture of the batch; everything else as in the scene's.

    scene: with one row, with one for each scene, or of a batch with ``standing`` portraits already. size: pictures in the latent the portraits
    are put into. Raises LoomError for prompts of several conditionings, of other lengths or widths, and for more portraits than fit.
    """
    if standing + len(portraits) > MOST:
        raise LoomError(f"{standing + len(portraits)} portraits were given and {MOST} fit; take some out.")
    entries = [_of_whole_picture(c, f"portrait {i} prompt") for i, c in enumerate(portraits, standing + 1)]
    text, facts = _of_whole_picture(scene, "scene prompt")
    if len(text) != size and (standing or len(text) != 1):
        raise LoomError(
            f"the scene's prompt and negative prompt need one row or {size}, as the latent has pictures, and one of them has {len(text)}; "
            "connect all three outputs of the same Subjects and Scene in One Batch."
        )
    for i, (other, own) in enumerate(entries, standing + 1):
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

    def rows(own: Tensor, others: list[Tensor]) -> Tensor:
        every = own if len(own) == size else own[:1].expand(size, *own.shape[1:])
        return torch.cat([every[:standing], *(x[:1] for x in others), every[standing:]])

    made = {key: rows(facts[key], [own[key] for _, own in entries]) for key in PER_ROW if facts.get(key) is not None}
    return [[rows(text, [t for t, _ in entries]), facts | made]]


def latents(scene: dict[str, Any], count: int, references: dict[str, Any] | None = None) -> dict[str, Any]:
    """A latent with ``count`` references more, before the scene's pictures. references: theirs, default empty like the scene's.

    Raises LoomError for a noise mask and for references of another size.
    """
    if "noise_mask" in scene:
        raise LoomError("the scene's latent has a noise mask; take it off: references and scene are sampled as a whole.")
    own: Tensor = scene["samples"]
    given = own[-1:].expand(count, *own.shape[1:]) if references is None else references["samples"]
    if given.shape[1:] != own.shape[1:]:
        raise LoomError(f"the references' latent is {tuple(given.shape[1:])} and the scene's {tuple(own.shape[1:])}; make them of one size, with one VAE.")
    if len(given) != count:
        raise LoomError(f"{count} portrait prompts and {len(given)} reference latents were given; connect one of each per subject.")
    standing, noises = before(scene), list(scene.get("batch_index", range(len(own))))
    shared = noises[0] if standing else max(noises) + 1
    parts = [own[:standing], given.to(own), own[standing:]]
    noises = [*noises[:standing], *[shared] * count, *noises[standing:]]
    return scene | {"samples": torch.cat(parts), "batch_index": noises, PORTRAITS: (standing + count, noises)}


def _of_whole_picture(conditioning: Any, name: str) -> tuple[Tensor, dict[str, Any]]:
    text, facts = single(conditioning, name)
    for key in ("area", "mask", "control", "hooks"):
        if facts.get(key) is not None:
            raise LoomError(f"the {name} carries '{key}', which belongs to one picture; take it off, or put it behind this node, where it acts on references and scene alike.")
    return text, facts
