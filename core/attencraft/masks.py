"""Masks of the things a prompt names in a given picture, from the model's own attention.

Source: AttenCraft, arXiv 2405.17965, mask creation: look once, sharpen words' maps, spread them over places that look at each other, give each place to
the clear winner, check. For Stable Diffusion the start token is the background; models without one take what no concept claims (ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..concepts import Located, locate
from ..errors import LoomError
from ..families import family_of
from ..schedule import BlockSelection
from . import assign
from .layers import DETAILS, Reading, reading
from .look import STEPS, look
from .refine import refined, resized, scaled, sharpened
from .self_map import SelfMap

MOST = 8
START = 0
"""Position of CLIP's start token."""
WINDOW = 77
BACKGROUND = "background"


@dataclass(frozen=True)
class Rule:
    """How masks are made. tau: least lead of the winner; affinity, sharpness: powers of the self map and of words' maps; timestep: of noise, 0 to 999; looks:
    noise draws that are averaged; detail: of :data:`layers.DETAILS`; seed: of the noise; blocks: to read on models with one attention for
    text and picture, all = the middle third.
    """

    tau: float = 0.1
    affinity: int = 4
    sharpness: float = 2.0
    timestep: int = 150
    looks: int = 1
    detail: str = "auto"
    seed: int = 0
    blocks: BlockSelection = field(default_factory=BlockSelection)

    def __post_init__(self) -> None:
        for name, value, low, high in (("threshold", self.tau, 0.0, 1.0), ("affinity", self.affinity, 1, 8), ("sharpness", self.sharpness, 1, 4), ("looks", self.looks, 1, 16)):
            if not low <= value <= high:
                raise LoomError(f"{name} {value:g} was given; choose a number from {low:g} to {high:g}.")
        if not 0 <= self.timestep < STEPS:
            raise LoomError(f"timestep {self.timestep} was given; choose 0 (no noise) to {STEPS - 1}.")
        if self.detail not in DETAILS:
            raise LoomError(f"detail '{self.detail}' was given; choose one of {', '.join(DETAILS)}.")


@dataclass(frozen=True, eq=False)
class Found:
    """names: of the concepts, the background last. cross, soft, masks [n, Y, X]: what words get of the attention, refined maps, and bool masks; matrix [n, n]:
    see :func:`assign.confusion`; scores: mean attention on each concept inside its own mask; sigma: noise level.
    """

    names: tuple[str, ...]
    cross: Tensor
    soft: Tensor
    masks: Tensor
    matrix: Tensor
    scores: tuple[float, ...]
    sigma: float = 0.0

    @property
    def shares(self) -> list[float]:
        """Part of the picture of each mask, the background last."""
        return [float(m) for m in self.masks.float().mean((1, 2))]

    def insist(self) -> None:
        """Raise LoomError if the masks make no sense."""
        assign.insist(self.masks, self.matrix, list(self.names))


def find(model: Any, clip: Any, prompt: str, phrases: Sequence[str], latent: dict[str, Any], rule: Rule, positive: Any = None) -> tuple[Found, Located]:
    """Masks of ``phrases`` (words of ``prompt``) in the picture ``latent`` shows. Raises LoomError for what does not fit and for masks that make no sense."""
    samples = picture(latent, model)
    check_phrases(phrases)
    if positive is None:
        positive = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    located = locate(clip, prompt, list(phrases), int(positive[0][0].shape[1]), once=True)
    diffusion = model.get_model_object("diffusion_model")
    layers = reading(family_of(diffusion), diffusion, (samples.shape[-2], samples.shape[-1]), rule.detail, rule.blocks)
    if not layers.joint and located.length > WINDOW:
        raise LoomError(f"the prompt fills {located.length} tokens and masks are read from one stretch of {WINDOW}; shorten it.")
    members, groups = grouped([c.tokens for c in located.concepts], layers)
    seen = look(model, positive, samples, layers, groups, rule.timestep, rule.seed, rule.looks)
    found = make(seen.words, members, seen.places, rule, tuple(phrases), layers.joint, seen.sigma)
    found.insist()
    return found, located


def picture(latent: dict[str, Any], model: Any) -> Tensor:
    """The one picture of a LATENT. Raises LoomError."""
    samples: Tensor = latent["samples"]
    if len(samples) != 1 or (samples.ndim == 5 and samples.shape[2] != 1):
        count = len(samples) if len(samples) != 1 else f"a video of {samples.shape[2]} frames"
        raise LoomError(f"the latent holds {count}{' pictures' if len(samples) != 1 else ''}, and one picture is read at a time; pick one with Latent From Batch.")
    wanted = model.get_model_object("latent_format").latent_channels
    if samples.shape[1] != wanted:
        raise LoomError(f"the latent has {samples.shape[1]} channels and this model {wanted}; encode the picture with the VAE of this model.")
    if not bool(samples.any()):
        raise LoomError("the latent is empty; encode a picture that shows the concepts with VAE Encode.")
    return samples


def check_phrases(phrases: Sequence[str]) -> None:
    """Raise LoomError unless there are one to eight."""
    if not 1 <= len(phrases) <= MOST:
        raise LoomError(f"{len(phrases)} concepts were given; write one to {MOST}, one per line.")


def grouped(tokens: Sequence[Sequence[int]], layers: Reading) -> tuple[list[range], tuple[tuple[int, ...], ...]]:
    """Every token as a group of its own, and which of them are whose; the start token last where there is one."""
    groups = tuple((t,) for concept in tokens for t in concept)
    ends = [sum(len(c) for c in tokens[: i + 1]) for i in range(len(tokens))]
    return [range(end - len(c), end) for c, end in zip(tokens, ends, strict=True)], groups if layers.joint else (*groups, (START,))


def make(words: Tensor, members: Sequence[range], places: SelfMap, rule: Rule, names: tuple[str, ...], joint: bool, sigma: float = 0.0) -> Found:
    """Masks from what was seen. words [G, y, x]: of every token in the order of ``members``, and of the start token last unless ``joint``."""
    assert places.grid is not None
    cross = torch.stack([words[list(m)].amax(0) for m in members])
    every = cross if joint else torch.cat([cross, words[-1:]])
    soft = refined(sharpened(every, places.grid, rule.sharpness), places, rule.affinity)
    if joint:
        soft = torch.cat([soft, 1 - soft.amax(0, keepdim=True)])
        every = torch.cat([cross, 1 - scaled(cross).amax(0, keepdim=True)])
    masks = assign.assigned(soft, rule.tau)
    return Found((*names, BACKGROUND), every, soft, masks, assign.confusion(soft, masks), inside(cross, masks[:-1]), sigma)


def inside(cross: Tensor, masks: Tensor) -> tuple[float, ...]:
    """Mean attention on each concept, cross [n, y, x], inside its own mask [n, Y, X]; 0 for an empty one."""
    large = resized(cross, (masks.shape[1], masks.shape[2]))
    return tuple(float(c[m].mean()) if bool(m.any()) else 0.0 for c, m in zip(large, masks, strict=True))


def given(masks: Tensor, grid: tuple[int, int] | None, names: Sequence[str]) -> Tensor:
    """Masks from elsewhere, [n, H, W], as bool [n + 1, Y, X] on the grid, what is in none of them last. Raises LoomError."""
    assert grid is not None
    stacked = masks.detach().float().reshape(-1, *masks.shape[-2:]).cpu()
    if len(stacked) != len(names):
        raise LoomError(f"{len(stacked)} masks and {len(names)} concepts were given; connect one mask per concept, in their order.")
    h, w = stacked.shape[1:]
    if h < grid[0] or w < grid[1] or abs(h / w - grid[0] / grid[1]) > 0.02 * grid[0] / grid[1]:
        raise LoomError(f"the masks are {w} x {h} and the picture has {grid[1]} x {grid[0]} cells; make masks of the picture's size.")
    if bool(((stacked > 0.5).sum(0) > 1).any()):
        raise LoomError("the masks overlap; every place may belong to one concept: paint them apart.")
    own = F.interpolate(stacked[None], grid, mode="area")[0] > 0.5
    for name, mask in zip(names, own, strict=True):
        if float(mask.float().mean()) < assign.LEAST:
            raise LoomError(f"the mask of '{name}' covers {100 * float(mask.float().mean()):.2f} % of the picture, and at least {100 * assign.LEAST:g} % is needed.")
    return torch.cat([own, ~own.any(0, keepdim=True)])


def at_size(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [n, Y, X] as fp32 of 0 and 1 on a picture of (height, width), cell by cell."""
    return F.interpolate(masks.float()[None], size, mode="nearest-exact")[0].cpu()


def joined(before: Tensor | None, own: Tensor) -> Tensor:
    """Masks found before, then these. Raises LoomError where they are of other sizes."""
    if before is None:
        return own
    earlier = before.reshape(-1, *before.shape[-2:]).to(own)
    if earlier.shape[1:] != own.shape[1:]:
        raise LoomError(f"masks_before are {earlier.shape[2]} x {earlier.shape[1]} and these {own.shape[2]} x {own.shape[1]}; make them from pictures of one size.")
    return torch.cat([earlier, own])
