"""A-STAR: keep every subject of a prompt, by a step on the latent against overlapping and fading attention maps.

Source: Agarwal et al., "A-STAR: Test-time Attention Segregation and Retention for Text-to-image Synthesis", arXiv 2306.14544;
map preparation and the alternative loss: Chefer et al., "Attend-and-Excite", arXiv 2301.13826. Written from the papers.

With A^m the map of concept m at this step and B^m the cells where its map of the step before was high, or the user's mask::

    L_seg = sum over pairs m < n of  sum_ij min(A^m, A^n) / sum_ij (A^m + A^n)
    L_ret = sum over m of            1 - sum_ij min(A^m, B^m) / sum_ij (A^m + B^m)
    x     <- x - a grad_x (lambda_seg L_seg + lambda_ret L_ret)

The denominators are sums, so identical maps give 0.5 per pair in L_seg, and a perfect match gives 0.5 per concept in L_ret.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..call import Block
from ..columns import Columns, with_words
from ..errors import LoomError
from ..families import known_words
from .guided import LatentMethod, Moment

if TYPE_CHECKING:
    from ..concepts import Located
    from ..families.base import Family
    from .guided import Step

Loss = Literal["a_star", "seg only", "ret only", "attend_excite"]
LOSSES = ("a_star", "seg only", "ret only", "attend_excite")
TINY = 1e-12
SHARE_FLOOR = 1e-6
"""Added to the attention on all words before dividing by it."""
MOST_WORDS = 256
"""Beyond this, one map per word of the prompt is no longer small."""

UNETS, WAN = CROSS = ("SD 1.5 / SDXL", "Wan")
"""Families that read the prompt in a cross-attention."""

# Blocks in which words have their place in the picture, as (kind, first, last, of how many); our choice, by the depth of each family.
# Of others the middle third is read.
PLACES: dict[str, tuple[str, int, int, int]] = {
    "SD3": ("double", 5, 14, 24),
    "FLUX": ("double", 10, 18, 19),
    "Qwen-Image": ("double", 20, 45, 60),
    "Lumina 2 / Z-Image": ("block", 8, 20, 26),
}


@dataclass(frozen=True)
class AStar(LatentMethod):
    """Settings of the method.

    concepts: where each concept's tokens stand in the positive prompt. strength: factor on the step, 0 = off. alpha: step of the
    papers (20); eta: of the normalised step. step_mode: "paper" or "normalised". lambda_seg, lambda_ret: weights of the two
    losses. tau: a cell is high from this share of the map's maximum. repeats: updates per step. grid: longer side of the maps
    in cells, 0 = automatic. maps: "sharpened" (as Attend-and-Excite prepares them) or "raw". masks: user masks [n, H, W] in
    [0, 1] for the first n concepts.
    """

    owner: ClassVar[str] = "Keep Every Subject (A-STAR)"

    concepts: Located
    strength: float = 1.0
    loss: Loss = "a_star"
    step_mode: Literal["paper", "normalised"] = "paper"
    alpha: float = 20.0
    eta: float = 0.02
    lambda_seg: float = 1.0
    lambda_ret: float = 1.0
    tau: float = 0.5
    repeats: int = 1
    grid: int = 0
    maps: Literal["sharpened", "raw"] = "sharpened"
    masks: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        number = len(self.concepts.concepts)
        if number == 0:
            raise LoomError("no concept was given; write the things to keep one per line, in the words of the prompt.")
        if number < 2 and self.loss in ("a_star", "seg only") and self.weights[0] > 0:
            raise LoomError("one concept was given and segregation needs two; add another line, or choose the loss 'ret only' or 'attend_excite'.")
        if self.maps == "sharpened" and len(self.concepts.words) > MOST_WORDS:
            raise LoomError(f"the prompt has {len(self.concepts.words)} tokens and sharpened maps take up to {MOST_WORDS}; set maps to raw, or shorten the prompt.")
        if self.masks is not None:
            check_masks(self.masks, number)

    @property
    def weights(self) -> tuple[float, float]:
        """Of segregation and retention in the chosen loss."""
        return (0.0 if self.loss == "ret only" else self.lambda_seg, 0.0 if self.loss == "seg only" else self.lambda_ret)

    @property
    def off(self) -> bool:
        """No step, or no loss."""
        step = self.alpha if self.step_mode == "paper" else self.eta
        return super().off or self.strength == 0 or step == 0 or (self.loss != "attend_excite" and not any(self.weights))

    @property
    def prompt(self) -> str:
        """Of the concepts."""
        return self.concepts.prompt

    def check_family(self, family: Family, model: Any) -> None:
        """Models in which text tokens have a map over the picture."""
        if not family.word_stacks and family.name not in CROSS:
            raise LoomError(f"{self.owner} does not know where the words of {family.name} stand; connect SD 1.5, SDXL, {known_words()} or Wan.")

    def prepare(self, family: Family, model: Any, grid: tuple[int, int, int], memory: dict[Any, Any]) -> None:
        """Which blocks and which columns."""
        chosen = read_blocks(family, family.blocks(model), self.blocks, grid, self.grid)
        if not chosen:
            raise LoomError(f"blocks '{self.blocks.text}' selects no block of this {family.name} model with a map over the picture; leave it empty for the default.")
        groups = tuple((t,) for t in self.concepts.words) if self.maps == "sharpened" else (*(c.tokens for c in self.concepts.concepts), self.concepts.words)
        memory["wanted"] = Columns(frozenset(chosen), groups)
        memory["cross"] = family.name in CROSS

    def before(self, step: Step) -> None:
        """One or more updates of the latent."""
        for _ in range(self.repeats if self._has_loss(step.memory) else 0):
            gradient, losses = step.gradient(step.memory["wanted"], lambda maps: self.objective(self.picture(maps, step.memory["cross"]), step.memory.get("high")))
            bad = ~(gradient.flatten(1).isfinite().all(1) & losses.isfinite())
            if bool(bad.any()):
                step.run.warn(f"{self.owner} left {int(bad.sum())} samples alone at sigma {step.at.sigma:.4g}: the gradient is not finite; load the model in bf16 or fp32")
                gradient = gradient.masked_fill(bad.view(-1, *[1] * (gradient.ndim - 1)), 0.0)
            step.memory.setdefault("losses", []).append(losses.mean().item())
            step.move(self.moved(step.x, gradient.to(step.x), step.at))
        if self._remembers:
            step.memory["watched"] = step.watch(step.memory["wanted"])

    def after(self, step: Step) -> None:
        """Where each concept is high now: what the next step shall retain."""
        collector = step.memory.pop("watched", None)
        if collector is None:
            return
        if collector.maps is None:
            step.run.warn(f"{self.owner} could not read the maps of the positive prompt at sigma {step.at.sigma:.4g}; nothing is retained from that step")
            step.memory.pop("high", None)
            return
        step.memory["high"] = binarise(self.picture(collector.maps, step.memory["cross"]).detach(), self.tau)

    @property
    def _remembers(self) -> bool:
        return self.loss != "attend_excite" and self.weights[1] > 0

    def _has_loss(self, memory: dict[Any, Any]) -> bool:
        """At the first step only retention of user masks is known."""
        return self.loss == "attend_excite" or self.weights[0] > 0 or "high" in memory or self.masks is not None

    def picture(self, columns: Tensor, cross: bool) -> Tensor:
        """Columns [B, G, T, Y, X] as concept maps [B, C, y, x] in [0, 1]: mean over frames, pooled, prepared.

        cross: the columns are shares of all the attention; in joint attention they are taken relative to that on all words.
        """
        flat = pool(columns.mean(2), self.grid or (0 if cross else 32))
        if self.maps == "sharpened":
            shares = flat if cross else flat / (flat.sum(1, keepdim=True) + SHARE_FLOOR)
            return smooth(concept_means(torch.softmax(100.0 * shares, 1), self.concepts))
        shares = flat[:, :-1] if cross else flat[:, :-1] / (flat[:, -1:] + SHARE_FLOOR)
        # Attend-and-Excite looks at the height of the maps, the other losses at their shape
        return shares if self.loss == "attend_excite" else shares / shares.amax((2, 3), keepdim=True).clamp_min(TINY)

    def objective(self, maps: Tensor, high: Tensor | None) -> Tensor:
        """The loss [B] of maps [B, C, y, x]; high: cells to retain, or None at the first step."""
        if self.loss == "attend_excite":
            return excite_loss(maps)
        seg, ret = self.weights
        loss = seg * segregation_loss(maps) if seg else maps.new_zeros(len(maps))
        target, known = self._targets(maps, high)
        return loss + ret * retention_loss(maps[:, known], target[:, known]) if ret and known else loss

    def _targets(self, maps: Tensor, high: Tensor | None) -> tuple[Tensor, list[int]]:
        """What each concept shall retain [B, C, y, x], and for which concepts that is known."""
        number = 0 if self.masks is None else len(self.masks)
        target = torch.zeros_like(maps) if high is None else high.to(maps).clone()
        if self.masks is not None:
            target[:, :number] = cells_of(self.masks.to(maps), (maps.shape[2], maps.shape[3]))
        return target, list(range(number if high is None else maps.shape[1]))

    def moved(self, x: Tensor, gradient: Tensor, at: Moment) -> Tensor:
        """The new latent. x, gradient [B, ...] in the host's units."""
        if self.step_mode == "paper":
            return x - self.strength * paper_step(self.alpha, at) * gradient
        return x - self.strength * self.eta * at.noise * rms(x) / rms(gradient).clamp_min(TINY) * gradient


def read_blocks(family: Family, blocks: list[Block], selection: Any, grid: tuple[int, int, int], size: int) -> list[Block]:
    """The blocks whose maps are read.

    A UNet: the layers of one size; by default a quarter of the latent, as the papers do, or finer where that would leave less
    than 12 cells. Joint models: a middle part of the depth. Wan: every fourth block. A selection by the user replaces the
    default, except that a UNet keeps one size.
    """
    listed = [b for b in blocks if b in selection]
    if family.name == UNETS:
        level = unet_level({b.level for b in listed}, max(grid[1:]), size)
        return [b for b in listed if b.level == level]
    if selection.items:
        return listed
    if family.name == WAN:
        return blocks[::4]
    return with_words(family, blocks, PLACES)


def unet_level(levels: set[int], side: int, size: int) -> int | None:
    """How often the layers to read have halved a latent whose longer side is ``side``; size: wanted longer side of the map, 0 = automatic."""
    if not levels:
        return None
    if size:
        return min(levels, key=lambda level: (abs(side / 2**level - size), level))
    fine = [level for level in levels if level <= 2 and side / 2**level >= 12]
    return max(fine) if fine else min(levels)


# --- maps -----------------------------------------------------------------------------------------------------------


def pool(maps: Tensor, size: int) -> Tensor:
    """[B, G, Y, X] averaged so that the longer side has at most ``size`` cells; 0: as it is."""
    y, x = maps.shape[2:]
    factor = -(-max(y, x) // size) if size else 1
    return maps if factor <= 1 else F.adaptive_avg_pool2d(maps, (-(-y // factor), -(-x // factor)))


def concept_means(maps: Tensor, located: Located) -> Tensor:
    """Maps of all words [B, W, y, x] -> mean over the words of each concept [B, C, y, x]."""
    place = {token: i for i, token in enumerate(located.words)}
    return torch.stack([maps[:, [place[t] for t in concept.tokens]].mean(1) for concept in located.concepts], 1)


def smooth(maps: Tensor) -> Tensor:
    """3 x 3 Gaussian as Attend-and-Excite blurs: its weights fall by e per cell; edges are mirrored."""
    if min(maps.shape[2:]) < 2:
        return maps
    side = torch.exp(torch.tensor([-1.0, 0.0, -1.0], dtype=maps.dtype, device=maps.device))
    kernel = torch.outer(side, side) / side.sum() ** 2
    padded = F.pad(maps, (1, 1, 1, 1), mode="reflect")
    return F.conv2d(padded.flatten(0, 1)[:, None], kernel[None, None])[:, 0].unflatten(0, maps.shape[:2])


def binarise(maps: Tensor, tau: float) -> Tensor:
    """1 where a map reaches ``tau`` of its maximum; at least one cell always does."""
    return (maps >= tau * maps.amax((2, 3), keepdim=True)).to(maps)


def cells_of(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """User masks [n, H, W] on a grid [n, y, x]: 1 where at least half a cell is covered; the fullest cell always counts."""
    covered = F.adaptive_avg_pool2d(masks[:, None], size)[:, 0]
    return (covered >= covered.amax((1, 2), keepdim=True).clamp_max(0.5)).to(masks)


# --- losses, one number per sample [B] ------------------------------------------------------------------------------


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """``sum min(a, b) / sum (a + b)`` over the cells of [..., y, x]: 0 for disjoint, 0.5 for identical maps."""
    return torch.minimum(a, b).sum((-2, -1)) / (a + b).sum((-2, -1)).clamp_min(TINY)


def segregation_loss(maps: Tensor) -> Tensor:
    """L_seg of [B, C, y, x], from 0 to half the number of pairs."""
    m, n = torch.triu_indices(maps.shape[1], maps.shape[1], 1, device=maps.device)
    return overlap(maps[:, m], maps[:, n]).sum(1)


def retention_loss(maps: Tensor, high: Tensor) -> Tensor:
    """L_ret of [B, C, y, x] against masks of the same shape, from half the number of concepts to that number."""
    return (1.0 - overlap(maps, high)).sum(1)


def excite_loss(maps: Tensor) -> Tensor:
    """Attend-and-Excite: how far the most neglected concept's strongest cell is from 1."""
    return (1.0 - maps.amax((2, 3))).amax(1)


# --- the step -------------------------------------------------------------------------------------------------------


def paper_step(alpha: float, at: Moment) -> float:
    """``alpha sqrt(s)``, s falling from 1 to 0.5 over the run, for a unit-variance latent; times the variance of the host's."""
    return float(alpha * (1.0 - 0.5 * at.done) ** 0.5 * at.variance)


def rms(x: Tensor) -> Tensor:
    """Root mean square of each sample, shaped to broadcast."""
    return x.flatten(1).pow(2).mean(1).sqrt().view(-1, *[1] * (x.ndim - 1))


def check_masks(masks: Tensor, concepts: int) -> None:
    """Raises LoomError for masks that do not fit the concepts, or are empty."""
    if masks.ndim != 3 or len(masks) > concepts:
        raise LoomError(f"masks of shape {tuple(masks.shape)} were given for {concepts} concepts; give a batch of at most {concepts} masks, in the order of the lines.")
    for i, mask in enumerate(masks):
        if not bool((mask >= 0.5).any()):
            raise LoomError(f"mask {i + 1} is empty; paint where '{i + 1}. concept' shall be, or leave the last masks out: concepts without one keep their own place.")
