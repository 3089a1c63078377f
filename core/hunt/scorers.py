"""What a picture is worth: measures that need no model, likeness to a reference, attention on the prompt, and others' scorers.

A scorer travels through the socket type ``LOOM_SCORER``. Other packs may put any callable into it: ``score(images, prompt) ->
number``, with images fp32 [N, height, width, 3] in 0..1 on the CPU (a video's frames count as images) and the prompt's text.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import LoomError
from ..inspect.study import Study

LOOM_SCORER = "LOOM_SCORER"


@dataclass(frozen=True, eq=False)
class Shot:
    """One picture to judge. images fp32 [N, h, w, 3] in 0..1; prompt: its text, "" where unknown; study: its attention, for scorers that asked."""

    images: Tensor
    prompt: str
    study: Study | None = None


class Scorer(ABC):
    """Higher is better. name: as users read it; key: tells scorers with different settings apart."""

    reads_attention: ClassVar[bool] = False
    """Whether :attr:`Shot.study` is needed, with the prompt's words in it."""

    words: tuple[str, ...] = ()
    """Words whose attention is needed; none: all of the prompt."""

    name: str
    key: str

    @abstractmethod
    def score(self, shot: Shot) -> float:
        """Raises LoomError where the picture cannot be judged."""


# --- measures ----------------------------------------------------------------------------------------------------------


def luma(images: Tensor) -> Tensor:
    """Rec. 709 brightness of the stored values: [N, h, w, 3] -> [N, h, w]."""
    return images @ images.new_tensor([0.2126, 0.7152, 0.0722])


def sharpness(images: Tensor) -> float:
    """Share of the variation of brightness that is finer than about four pixels, 0 to 1. Independent of contrast; noise counts as fine."""
    y = luma(images)[:, None]
    row = y.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    smooth = F.conv2d(F.pad(y, (2, 2, 2, 2), mode="replicate"), (row[:, None] * row)[None, None])
    whole = y.flatten(1).std(1)
    return float(torch.where(whole > 1e-6, (y - smooth).flatten(1).std(1) / whole.clamp(min=1e-6), 0.0).mean())


def colourfulness(images: Tensor) -> float:
    """Hasler and Suesstrunk, "Measuring colourfulness in natural images" (2003), their M3 on values 0..255: 0 grey, 33 moderate, 82 high."""
    r, g, b = (255 * images).flatten(1, 2).unbind(-1)
    rg, yb = r - g, (r + g) / 2 - b
    spread = (rg.var(1, correction=0) + yb.var(1, correction=0)).sqrt()
    return float((spread + 0.3 * (rg.mean(1) ** 2 + yb.mean(1) ** 2).sqrt()).mean())


MEASURES: dict[str, Callable[[Tensor], float]] = {
    "sharpness": sharpness,
    "colourfulness": colourfulness,
    "brightness": lambda images: float(luma(images).mean()),
    "contrast": lambda images: float(luma(images).flatten(1).std(1).mean()),
}
"""Name -> measure of [N, h, w, 3]; the mean over images."""


@dataclass(frozen=True)
class Measured(Scorer):
    """One of :data:`MEASURES`."""

    name: str

    @property
    def key(self) -> str:  # type: ignore[override]
        """The measure's name says all."""
        return self.name

    def score(self, shot: Shot) -> float:
        """The measure."""
        return MEASURES[self.name](shot.images)


# --- likeness ----------------------------------------------------------------------------------------------------------

LEVELS = 256
LAYOUT = 32


def look(images: Tensor) -> Tensor:
    """[4, 256]: sorted values of brightness, two opponent colours and edge strength, thinned to 256 quantiles; where they lie plays no part."""
    y = luma(images)
    channels = [y, images[..., 0] - images[..., 1], (images[..., 0] + images[..., 1]) / 2 - images[..., 2]]
    edges = (y.diff(dim=1)[:, :, 1:] ** 2 + y.diff(dim=2)[:, 1:] ** 2).sqrt()
    at = torch.linspace(0, 1, LEVELS)
    return torch.stack([torch.quantile(_thinned(c.flatten()), at) for c in (*channels, edges)])


def _thinned(values: Tensor, most: int = 2**20) -> Tensor:
    """torch.quantile takes at most 2^24 values; evenly spread ones do."""
    return values[:: -(-len(values) // most)]


def layout(images: Tensor) -> Tensor:
    """[3, 32, 32]: the picture seen from far away, mean over images."""
    return F.adaptive_avg_pool2d(images.movedim(-1, 1), LAYOUT).mean(0)


LIKENESS: dict[str, Callable[[Tensor], Tensor]] = {"reference look": look, "reference layout": layout}


@dataclass(frozen=True, eq=False)
class Likeness(Scorer):
    """1 minus the mean distance of what ``see`` makes of a picture and of the reference, or the cosine where ``see`` is an embedding."""

    name: str
    see: Callable[[Tensor], Tensor]
    reference: Tensor
    cosine: bool = False

    @staticmethod
    def to(name: str, reference: Tensor, embed: Callable[[Tensor], Tensor] | None = None) -> Likeness:
        """name: a key of :data:`LIKENESS`; reference [n, h, w, 3]; embed: images -> [n, d] of a vision model, used instead."""
        reference = reference.detach().float().cpu()[..., :3]
        if embed is not None:
            return Likeness("reference, by a vision model", embed, embed(reference).float().cpu().mean(0), True)
        return Likeness(name, LIKENESS[name], LIKENESS[name](reference))

    @property
    def key(self) -> str:  # type: ignore[override]
        """Name and reference."""
        return f"{self.name} {hashlib.sha256(self.reference.numpy().tobytes()).hexdigest()[:16]}"

    def score(self, shot: Shot) -> float:
        """1 is the reference itself."""
        if self.cosine:
            return float(F.cosine_similarity(self.see(shot.images).float().cpu(), self.reference[None], dim=-1).mean())
        return 1 - float((self.see(shot.images) - self.reference).abs().mean())


# --- attention ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PromptAttention(Scorer):
    """Share of the picture's attention that falls on the prompt's words, mean over blocks and heads that read text, half way through."""

    reads_attention: ClassVar[bool] = True

    words: tuple[str, ...] = ()
    name: str = "prompt attention"

    @property
    def key(self) -> str:  # type: ignore[override]
        """Name and words."""
        return f"{self.name} {', '.join(self.words)}"

    def score(self, shot: Shot) -> float:
        """Of the words together."""
        found = [] if shot.study is None else [mean for p in shot.study.stats if (mean := shot.study.mean(p).words) is not None]
        if not found:
            raise LoomError("prompt attention was asked for, and no attention on the prompt's words could be read from this model; choose another goal.")
        return float(torch.stack([words.sum(1).mean() for words in found]).mean())


# --- several, and those of others --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Joined(Scorer):
    """parts: (weight, scorer). harmonic: n over the sum of inverses, for two goals that must both be met (paper); else the weighted sum."""

    parts: tuple[tuple[float, Scorer], ...]
    harmonic: bool = False

    def __post_init__(self) -> None:
        if sum(s.reads_attention for _, s in self.parts) > 1:
            raise LoomError("two scorers of prompt attention were joined; write all words into one of them.")

    @property
    def reads_attention(self) -> bool:  # type: ignore[override]
        """Whether a part does."""
        return any(s.reads_attention for _, s in self.parts)

    @property
    def words(self) -> tuple[str, ...]:  # type: ignore[override]
        """Of the part that reads attention."""
        return next((s.words for _, s in self.parts if s.reads_attention), ())

    @property
    def name(self) -> str:  # type: ignore[override]
        """As a user reads it."""
        parts = [("" if w == 1 else f"{w:g} x ") + s.name for w, s in self.parts]
        return f"harmonic mean of {' and '.join(parts)}" if self.harmonic else " + ".join(parts)

    @property
    def key(self) -> str:  # type: ignore[override]
        """Of all parts."""
        return f"{self.harmonic} " + " | ".join(f"{w:g} {s.key}" for w, s in self.parts)

    def score(self, shot: Shot) -> float:
        """Sum or harmonic mean; the latter of positive numbers only."""
        values = [w * s.score(shot) for w, s in self.parts]
        if not self.harmonic:
            return sum(values)
        if min(values) < 0:
            raise LoomError(
                f"the harmonic mean needs scores above 0, and {self.parts[values.index(min(values))][1].name} gave {min(values):.3g}; choose sum, or a positive weight."
            )
        return 0.0 if min(values) == 0 else len(values) / sum(1 / v for v in values)


@dataclass(frozen=True, eq=False)
class Foreign(Scorer):
    """A callable of another pack."""

    call: Callable[[Tensor, str], Any]

    @property
    def name(self) -> str:  # type: ignore[override]
        """What it calls itself, or its class."""
        return str(getattr(self.call, "name", getattr(self.call, "__qualname__", type(self.call).__qualname__)))

    @property
    def key(self) -> str:  # type: ignore[override]
        """Its own ``key`` if it has one: then a search with other settings of it is another search."""
        return f"{type(self.call).__module__} {self.name} {getattr(self.call, 'key', '')}"

    def score(self, shot: Shot) -> float:
        """Its answer as a number."""
        answer = self.call(shot.images, shot.prompt)
        try:
            return float(answer)
        except (TypeError, ValueError):
            raise LoomError(f"the scorer {self.name} gave a {type(answer).__name__} for a picture; it must give one number.") from None


def as_scorer(given: Any) -> Scorer:
    """What came through the socket. Raises LoomError if it cannot judge."""
    if isinstance(given, Scorer):
        return given
    if callable(given):
        return Foreign(given)
    raise LoomError(f"the scorer socket holds a {type(given).__name__}; connect Picture Scorer, or a node whose output is a function of (images, prompt).")
