"""Methods that move the latent between two steps, and what a step offers them.

Such a method changes no attention call. Before a scheduled step it may ask for the gradient of a loss on attention columns
with respect to the latent, and write a new latent; after the step it may look at the columns of the model call just made.
The machinery that needs the host is ``core/latent.py``; this file knows nothing of it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor

from .base import Method

if TYPE_CHECKING:
    from ..call import AttentionCall
    from ..columns import Collector, Columns
    from ..families.base import Family
    from ..influence import Influence
    from ..report import Run
    from ..weave import Draft


@dataclass(frozen=True)
class Moment:
    """Where in the sampling a step stands.

    index: of ``steps`` steps; sigma: noise level in the host's units; flow: the latent is ``(1 - sigma) data + sigma noise``
    with unit variance throughout; otherwise it is ``data + sigma noise``.
    """

    index: int
    steps: int
    sigma: float
    flow: bool

    @property
    def variance(self) -> float:
        """Of the latent in the host's units; papers on noise-predicting models write for unit variance."""
        return 1.0 if self.flow else 1.0 + self.sigma**2

    @property
    def noise(self) -> float:
        """Share of the noise in the latent's standard deviation, 0 to 1."""
        return float(self.sigma / self.variance**0.5)

    @property
    def done(self) -> float:
        """Share of the steps behind, 0 at the first and 1 at the last."""
        return self.index / max(1, self.steps - 1)


class Step(Protocol):
    """One scheduled step of a sampling run, as a latent method sees it.

    x: the sampler's own tensor [B, ...], to be read only; memory: what the method keeps until the run ends.
    """

    at: Moment
    run: Run
    memory: dict[Any, Any]

    @property
    def x(self) -> Tensor:
        """The latent now."""

    def gradient(self, wanted: Columns, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Run the positive prompt alone and differentiate.

        loss: columns [B, G, T, Y, X] -> one number per sample [B]. Returns (gradient like x, losses [B]), plain tensors.
        Samples do not mix. Raises LoomError where no gradient can be had.
        """

    def influence(self, wanted: Columns, numbers: Callable[[Tensor, Tensor | None], Tensor], against: bool = False) -> list[Influence]:
        """Run the positive prompt alone and differentiate its prediction with respect to attention probabilities, at the latent
        as it is now, changing nothing.

        wanted: every group is one token. numbers: (prediction y like x, that of the negative prompt or None) -> [K]; predictions
        are noise, or velocity on flow models. against: also run the negative prompt. One entry per block. Raises LoomError.
        """

    def noised(self, data: Tensor, noise: Tensor) -> Tensor:
        """What a clean latent [1|B, ...] in the VAE's units is at this step's noise level, with this noise [1|B, ...]."""

    def move(self, x: Tensor) -> None:
        """Write a new latent into the sampler's own tensor."""

    def watch(self, wanted: Columns) -> Collector:
        """Read these columns of the positive prompt in the normal model call of this step; ``maps`` is there afterwards."""


@dataclass(frozen=True)
class LatentMethod(Method):
    """Base of methods that move the latent. spare_memory: what a gradient needs waits in system memory: slower, little on the device."""

    spare_memory: bool = field(default=False, kw_only=True)
    turn: ClassVar[int] = 0
    """Where two such methods act at one step, the lower turn goes first."""

    @property
    def prompt(self) -> str:
        """The text whose words it works with, "" where any positive prompt will do."""
        return ""

    def fit(self, shape: tuple[int, ...], steps: int, memory: dict[Any, Any], warn: Callable[[str], None]) -> None:
        """Before the first step, first of all: raise LoomError if a latent of this shape or a run of so many steps does not fit."""

    @abstractmethod
    def prepare(self, family: Family, model: Any, grid: tuple[int, int, int], memory: dict[Any, Any]) -> None:
        """Before the first step: work out what the run needs. Raises LoomError."""

    @abstractmethod
    def before(self, step: Step) -> None:
        """At entry of a scheduled step inside the window, once."""

    def after(self, step: Step) -> None:
        """When the model call of that step is done."""

    def finish(self, result: Tensor, memory: dict[Any, Any]) -> Tensor:
        """The sampled latent in the VAE's units, when all steps are done; returned as it is or changed."""
        return result

    def contribute(self, call: AttentionCall, draft: Draft) -> None:
        """Nothing but a look, while somebody collects."""
        collector = None if call.run is None else call.run.state.get(collecting(self))
        if collector is not None and collector.wants(call):
            collector.join(self.owner, call, draft)

    def wants(self, call: AttentionCall) -> bool:
        """The collector decides."""
        return True


def collecting(method: LatentMethod) -> tuple[str, str]:
    """Key in the run's state under which the method's collector stands while a model call runs."""
    return ("collecting", method.owner)
