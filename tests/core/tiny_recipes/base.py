"""What a recipe of a tiny model is, and what several of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

VIDEO_LATENT = (1, 16, 3, 4, 6)
"""Latent [B, C, T, h, w] of most video recipes; with patches of 2 its grid is 3 x 2 x 3."""


@dataclass(frozen=True)
class Facts:
    """What is true of a tiny model, independent of our code.

    family: name the user reads. heads: of every attention. grid: (T, Y, X) tokens. blocks: (kind, index) in order of
    execution, only where it is worth writing down. calls: see the module. sigma: noise level at which its sampling starts, None
    for the schedule's own. sound: latent shape of the sound that is sampled with it.
    """

    family: str
    heads: int
    grid: tuple[int, int, int]
    calls: Callable[[int], list[str]]
    still: bool = False
    sigma: float | None = None
    sound: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Recipe:
    """How to make one. config: class in ``comfy.supported_models``; unet: its unet_config. loader: save it and load it
    through ``comfy.sd.load_diffusion_model`` (with this metadata). width: of the prompt; extra(generator) -> more entries
    of the conditioning. joined: prompts of unequal length run in one batch, repeated to a common length (U-Nets); otherwise in
    a call each. prompts: tokens of the positive and the negative. forced: settings the host's class in ``comfy.supported_models``
    makes itself, smaller. needs: (file of the host, text in it) without which the model cannot be used there.
    """

    config: str
    unet: dict[str, Any]
    latent: tuple[int, ...]
    width: int
    facts: Facts
    loader: bool = False
    metadata: dict[str, str] | None = None
    extra: Callable[[torch.Generator, int], dict[str, Any]] = field(default=lambda g, n: {})
    joined: bool = False
    prompts: tuple[int, int] = (5, 5)
    forced: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, str] = ("", "")


def twice(*parts: str, kind: str = "block", n: int = 2) -> list[str]:
    """The same calls in blocks 0 to n-1; each part is "kind: layout"."""
    return [f"{kind} {i} {part}" for i in range(n) for part in parts]


def randn(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g)


def clip(tokens: int, width: int) -> Callable[[torch.Generator, int], dict[str, Any]]:
    def extra(g: torch.Generator, n: int) -> dict[str, Any]:
        states = randn(g, 1, tokens, width)
        return {"clip_vision_output": SimpleNamespace(penultimate_hidden_states=states, last_hidden_state=states)}

    return extra


def pooled(width: int, **tensors: tuple[int, ...]) -> Callable[[torch.Generator, int], dict[str, Any]]:
    return lambda g, n: {"pooled_output": randn(g, 1, width)} | {k: randn(g, *shape) for k, shape in tensors.items()}


def mask(valid: int, n: int) -> dict[str, Any]:
    return {"attention_mask": torch.tensor([[1] * valid + [0] * (n - valid)])}
