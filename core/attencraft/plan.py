"""How a training goes: its settings. Defaults are those of AttenCraft's paper (arXiv 2405.17965) and released code."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import LoomError
from .adapters import KINDS, Kind
from .subsets import SCHEMES, Scheme


@dataclass(frozen=True)
class Plan:
    """steps, rate: of AdamW. kind, rank: of the additions; keys, values, words: what is trained. prior, attention: weights of their losses. scheme:
    which concepts a step shows. refresh: steps between looks for better masks, 0 = never; likeness: least SSIM of new masks. decay: of
    weights; clip: largest gradient. save, preview: steps between checkpoints and pictures, 0 = never. clamp: the mask's overshoot is cut off.
    """

    steps: int = 500
    rate: float = 1e-4
    kind: Kind = "full"
    rank: int = 8
    keys: bool = True
    values: bool = True
    words: bool = True
    prior: float = 1.0
    attention: float = 1.0
    scheme: Scheme = "uniform"
    refresh: int = 20
    likeness: float = 0.8
    seed: int = 42
    decay: float = 0.01
    clip: float = 1.0
    save: int = 100
    preview: int = 100
    clamp: bool = False
    spare: bool = False

    def __post_init__(self) -> None:
        for name, value, low, high in (("steps", self.steps, 1, 100000), ("learning_rate", self.rate, 0.0, 1.0), ("rank", self.rank, 1, 128), ("ssim", self.likeness, 0.0, 1.0)):
            if not low <= value <= high:
                raise LoomError(f"{name} {value:g} was given; choose a number from {low:g} to {high:g}.")
        for name, value in (("prior_weight", self.prior), ("attention_weight", self.attention), ("refresh_every", self.refresh)):
            if not value >= 0:
                raise LoomError(f"{name} {value:g} was given; 0 turns it off, and it cannot be negative.")
        if self.kind not in KINDS or self.scheme not in SCHEMES:
            raise LoomError(f"adapter '{self.kind}' and sampling '{self.scheme}' were given; choose one of {', '.join(KINDS)} and one of {', '.join(SCHEMES)}.")
        if not (self.keys or self.values or self.words):
            raise LoomError("nothing would be trained; switch on train_keys, train_values or new_words.")

    @property
    def course(self) -> tuple[object, ...]:
        """All that decides what a step does: checkpoints of another course do not fit. The number of steps and what is shown is not in it."""
        return (
            self.rate,
            self.kind,
            self.rank,
            self.keys,
            self.values,
            self.words,
            self.prior,
            self.attention,
            self.scheme,
            self.refresh,
            self.likeness,
            self.seed,
            self.decay,
            self.clip,
            self.clamp,
        )
