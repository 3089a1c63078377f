"""Methods that read reference pictures: in the sampler's own batch, or seen by the model aside before each evaluation."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .base import Method

if TYPE_CHECKING:
    from ..beside import Beside


@dataclass(frozen=True, eq=False)  # two of them are never equal: they hold tensors
class ReferencedMethod(Method):
    """Base of methods with references. beside: those that ``core/side_call.py`` runs aside; None where there are none of that kind."""

    beside: Beside | None = field(default=None, kw_only=True, repr=False)

    @abstractmethod
    def needs_references(self, progress: float) -> bool:
        """Whether anything reads the references aside at this part of the sampling, 0 to 1."""
