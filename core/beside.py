"""References that the model sees beside the scene: what a user gives, and the mark of a call on one of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .errors import LoomError
from .guidance import ExtraPass


@dataclass
class SidePass(ExtraPass):
    """The model call on one reference. subject: its number; role: 0 for its prompt, 1 for the negative one; notes: what is kept of it."""

    subject: int = 0
    role: int = 0
    notes: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Beside:
    """References as a user gives them. latents [S, C, (1,) h, w] as a VAE makes them; prompts: a host conditioning per reference, and the
    negative one; seed: of the one noise they all share.
    """

    latents: Tensor
    prompts: tuple[Any, ...]
    negative: Any
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.latents) != len(self.prompts):
            raise LoomError(f"{len(self.latents)} reference latents and {len(self.prompts)} prompts were given; connect one of each per subject.")

    def joined(self, other: Beside) -> Beside:
        """These references and then the other's, with this one's negative prompt and seed. Raises LoomError for another size."""
        if self.latents.shape[1:] != other.latents.shape[1:]:
            first, second = (tuple(x.latents.shape[1:]) for x in (self, other))
            raise LoomError(f"the reference latents are {first} and {second}; make them of one size, with one VAE.")
        return Beside(torch.cat([self.latents, other.latents.to(self.latents)]), (*self.prompts, *other.prompts), self.negative, self.seed)


def notes_key(method: Any) -> tuple[Any, ...]:
    """Where a run holds what is kept of the references for the evaluation under way."""
    return (method.owner, id(method), "beside")
