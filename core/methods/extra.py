"""Methods that act in an extra evaluation of the model and guide away from it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import LoomError
from ..guidance import Guidance
from .base import Method

if TYPE_CHECKING:
    from ..call import Block
    from ..families.base import Family


@dataclass(frozen=True)
class GuidanceMethod(Method):
    """Base of guidance methods: each has an extra pass of its own, so several add up, two of a kind included.

    number: tells the passes on one model apart; ``core/attach.py`` gives it. reuse: blocks before the first one changed are taken over from
    the main pass (``core/prefix.py``).
    """

    unique: ClassVar[bool] = False

    guidance: Guidance = field(default_factory=Guidance, kw_only=True)
    number: int = field(default=0, kw_only=True)
    reuse: bool = field(default=False, kw_only=True)

    @property
    def off(self) -> bool:
        """No step gets a push."""
        return super().off or self.guidance.off

    @property
    def only_in(self) -> str:
        """Its own extra pass."""
        return f"{self.owner} {self.number}"

    def check_family(self, family: Family, model: Any) -> None:
        """Blocks must be replaceable as a whole to be taken over."""
        if self.reuse and not family.whole_blocks:
            raise LoomError(f"reuse_prefix takes whole blocks over from the main pass, which {family.name} does not allow; switch it off.")

    def check_company(self, methods: tuple[Method, ...], warn: Any) -> None:
        """What a method does in the main pass alone must not be taken over."""
        for method in methods if self.reuse else ():
            if method.rests_in_extra_passes:
                raise LoomError(
                    f"reuse_prefix takes blocks over from the main pass, and {method.owner} acts there alone with {method.rests_in_extra_passes}; "
                    "switch reuse_prefix off, or choose another setting there."
                )

    def numbered(self, number: int) -> GuidanceMethod:
        """The same method with a pass of its own."""
        return replace(self, number=number)

    @abstractmethod
    def reaches(self, block: Block) -> bool:
        """Whether the settings change attention in this block."""
