"""Methods that edit a picture: what its attention made of it is read at every step, before the result is evaluated."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

from torch import Tensor

from ..buckets import Buckets
from .base import Method


@dataclass(frozen=True, eq=False)
class Source:
    """The picture: latent [1, C, (1,) h, w] as a VAE makes it, and the noise it is shown with."""

    latent: Tensor = field(repr=False)
    buckets: Buckets = field(default_factory=Buckets)


@dataclass(frozen=True, eq=False)  # two of them are never equal: they hold tensors
class SourcedMethod(Method):
    """Base of methods with a source that ``core/source_call.py`` runs aside. source: None where it stands in the batch. control: whether the
    result follows the ControlNets of its prompt as well; the source always does.
    """

    source: Source | None = field(default=None, kw_only=True, repr=False)
    control: bool = field(default=False, kw_only=True)

    @abstractmethod
    def needs_source(self, progress: float) -> bool:
        """Whether anything is read of the source at this part of the sampling, 0 to 1."""
