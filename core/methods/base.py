"""What every method is: a frozen description with a name, a place and a time, and one function that says what it wants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ..schedule import BlockSelection, Window

if TYPE_CHECKING:
    from ..call import AttentionCall, Geometry
    from ..families.base import Family
    from ..weave import Draft


@dataclass(frozen=True)
class Method(ABC):
    """Base of all methods. Configuration only: no counters, no caches, no tensors beyond user masks.

    A method lives in a tuple inside the model's options, which the host may deep-copy at every clone; being immutable it
    answers a copy with itself.
    """

    owner: ClassVar[str] = "method"
    """Name of the node, as the user reads it in messages and reports."""

    unique: ClassVar[bool] = True
    """Whether a second one on the same model replaces the first."""

    needs_grid: ClassVar[bool] = False
    """Whether a call inside a block whose tokens cannot be told is an error, not a call left alone: for methods that
    would otherwise be switched off without the user knowing."""

    reads: ClassVar[bool] = False
    """Whether the method only looks at calls: then having changed nothing is no reason for a warning."""

    counts_tokens: ClassVar[bool] = False
    """Whether the number of tokens is all it asks for: it then acts where another pack has merged or tiled them, too."""

    @property
    def rests_in_extra_passes(self) -> str:
        """By which setting it acts in the main pass and not in the extra pass of a guidance method; "" where it acts in both."""
        return ""

    window: Window = field(default_factory=Window, kw_only=True)
    blocks: BlockSelection = field(default_factory=BlockSelection, kw_only=True)
    backend: str = field(default="auto", kw_only=True)

    @property
    def off(self) -> bool:
        """True when the settings say "do nothing": such a method is never attached."""
        return self.window.nothing

    @property
    def only_in(self) -> str | None:
        """Name of the extra pass the method acts in and nowhere else; None: in every pass, those of guidance methods included."""
        return None

    def check_family(self, family: Family, model: Any) -> None:
        """Raise LoomError if the method has no meaning for this family. Called when the node runs."""

    def check_run(self, family: Family, geometry: Geometry, warn: Any) -> None:
        """Raise LoomError if the latent does not fit; ``warn(sentence)`` for what is odd. Called before the first step."""

    def check_company(self, methods: tuple[Method, ...], warn: Any) -> None:
        """``warn(sentence)`` for other methods on this model that make a setting of this one odd. Called before the first step."""

    def check_prompts(self, prompts: dict[str, list[dict[str, Any]]], batch: int) -> None:
        """Raise LoomError if the sampler's prompts do not fit. prompts: the host's, by their role ("positive"); batch: pictures of the latent."""

    def wants(self, call: AttentionCall) -> bool:
        """Whether this call is one of the method's."""
        return call.block in self.blocks

    @abstractmethod
    def contribute(self, call: AttentionCall, draft: Draft) -> None:
        """Write into the draft what this call shall do differently."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Method:
        return self
