"""User-facing errors. Each is one clear sentence: what was given, what fits, what to change."""

from __future__ import annotations


class LoomError(ValueError):
    """Something a user can mend. The text reaches them as it is: ComfyUI shows an exception's message on the node."""


class UnsupportedModel(LoomError):
    """The model's class has no family adapter, or no hook point the method needs."""


class ConflictError(LoomError):
    """Two methods on one model ask for things that cannot both hold. Names both and the rule."""

    def __init__(self, first: str, second: str, rule: str, advice: str) -> None:
        super().__init__(f"{first} and {second} cannot be combined here: {rule}. {advice}")
        self.first, self.second = first, second
