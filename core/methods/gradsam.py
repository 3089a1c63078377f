"""Grad-SAM: keep the subject a prompt asks for, take the rest of the picture from a reference.

Source: Pathania, "Enhancing Conditional Image Generation with Explainable Latent Space Manipulation", arXiv 2408.16232. Written from the
paper's description; where its released code mixes output elements, this follows the description. Scores and masks: ``core/subject_mask.py``.

At a few steps j, with M the mask of the subject found at the step before, z_ref the reference and one fixed noise n for all of them::

    x <- M x + (1 - M) noised(z_ref, n, sigma_j)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..call import Block
from ..columns import Columns, with_words
from ..errors import LoomError
from ..families import known_words
from ..subject_mask import MaskRule, coloured_sums, exact_score, fast_score
from .guided import LatentMethod

if TYPE_CHECKING:
    from ..concepts import Located
    from ..families.base import Family
    from .guided import Step

HOW = ("auto", "exact", "fast")
PHI = ("abs", "relu")
SCALARS = ("text_effect", "energy", "sum")
STEPS = (0.11, 0.40, 0.62)
"""Those of the paper's code: 5, 18 and 28 of 45."""
MOST_STEPS, FEWEST = 10, 3
COARSE = 32
"""U-Nets: the layers whose longer side has at most so many cells are read."""
UNETS = "SD 1.5 / SDXL"

# Blocks in which words have their place in the picture, as (kind, first, last, of how many); our choice. Of others the middle third is read.
PLACES: dict[str, tuple[str, int, int, int]] = {
    "SD3": ("double", 8, 16, 24),
    "FLUX": ("double", 10, 18, 19),
    "Qwen-Image": ("double", 20, 45, 60),
    "Lumina 2 / Z-Image": ("block", 8, 20, 26),
}


@dataclass(frozen=True)
class Look:
    """What was found at one step. step: of ``steps``, 0 first, whose latent was looked at; heat [B, S, h, w]; mask [B, h, w]; CPU."""

    step: int
    steps: int
    sigma: float
    heat: Tensor
    mask: Tensor


class Findings:
    """The subjects and masks of a node's last run. A copy of the model's options shares it."""

    def __init__(self) -> None:
        self.subjects: tuple[str, ...] = ()
        self.looks: list[Look] = []

    def begin(self, subjects: tuple[str, ...]) -> None:
        """A sampling run starts."""
        self.subjects, self.looks = subjects, []

    def __deepcopy__(self, memo: dict[int, object]) -> Findings:
        return self


@dataclass(frozen=True)
class GradSAM(LatentMethod):
    """Settings of the method.

    subjects: where their tokens stand in the positive prompt. reference: clean latent [1|B, C, (1,) h, w] in the VAE's units, None =
    look only. strength: how much of the reference comes in, 0 = none. at: steps at which it comes in, as shares of the run. how:
    "exact" (one score per output element, last layer), "fast" (one number of the whole prediction, several layers) or "auto". phi:
    "abs" or "relu". scalar: the number of "fast": "text_effect" <y, y - y_negative>, "energy" |y|^2 / 2, "sum". invert: take the
    subject's place from the reference instead. lock: keep the first mask. paste: at the end, put the reference itself outside the mask.
    noise_seed: of the reference's noise. into: where heat maps and masks go.
    """

    owner: ClassVar[str] = "Keep the Background (Grad-SAM)"
    turn: ClassVar[int] = 1

    subjects: Located
    reference: Tensor | None = field(default=None, compare=False, repr=False)
    strength: float = 1.0
    at: tuple[float, ...] = STEPS
    how: Literal["auto", "exact", "fast"] = "auto"
    phi: Literal["abs", "relu"] = "abs"
    scalar: Literal["text_effect", "energy", "sum"] = "text_effect"
    rule: MaskRule = field(default_factory=MaskRule)
    invert: bool = False
    lock: bool = False
    paste: bool = False
    noise_seed: int = 0
    into: Findings = field(default_factory=Findings, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.subjects.concepts:
            raise LoomError("no subject was given; write the things to keep from the prompt one per line, in its words.")
        if len(self.at) > MOST_STEPS or not all(0.0 <= share <= 1.0 for share in self.at):
            raise LoomError(f"steps {', '.join(f'{s:g}' for s in self.at)} were given; give at most {MOST_STEPS} points of the sampling from 0 to 1, for instance 0.11, 0.4, 0.62.")
        if self.how == "exact" and self.blocks.items:
            raise LoomError("exact reads the last layer and blocks were given as well; empty blocks, or choose fast.")

    @property
    def off(self) -> bool:
        """No step, or nothing of the reference."""
        return super().off or not self.at or (self.reference is not None and self.strength == 0)

    @property
    def reads(self) -> bool:  # type: ignore[override]
        """Without a reference it only looks."""
        return self.reference is None

    # --- before the first step -------------------------------------------------------------------------------------

    @property
    def prompt(self) -> str:
        """Of the subjects."""
        return self.subjects.prompt

    def check_family(self, family: Family, model: Any) -> None:
        """Picture models in which text tokens have a map."""
        if not family.word_stacks and family.name != UNETS:
            raise LoomError(f"{self.owner} does not know where the words of {family.name} stand; connect SD 1.5, SDXL or {known_words()}.")
        if self.how == "exact" and exact_block(family, model) is None:
            raise LoomError("exact needs a U-Net whose last block has cross-attention at the size of the latent, as SD 1.5 and SD 2 have; choose fast or auto.")

    def fit(self, shape: tuple[int, ...], steps: int, memory: dict[Any, Any], warn: Callable[[str], None]) -> None:
        """Steps, and the reference at the size of the latent."""
        if steps < FEWEST:
            raise LoomError(f"{self.owner} needs at least {FEWEST} sampling steps, about 15 to be of use, and this run has {steps}; raise steps.")
        if len(shape) == 5 and shape[2] > 1:
            raise LoomError(f"{self.owner} works on pictures, and the latent has {shape[2]} frames; connect the latent of a picture.")
        memory["due"] = frozenset(min(max(1, round(share * steps)), steps - 1) for share in self.at)
        self.into.begin(tuple(c.phrase for c in self.subjects.concepts))
        if self.reference is not None:
            memory["reference"] = fitted(self.reference, shape, warn)
            memory["noise"] = torch.randn((1, *shape[1:]), generator=torch.Generator().manual_seed(self.noise_seed))

    def prepare(self, family: Family, model: Any, grid: tuple[int, int, int], memory: dict[Any, Any]) -> None:
        """Which blocks, which tokens."""
        if grid[0] > 1:
            raise LoomError(f"{self.owner} works on pictures, and this model makes {grid[0]} frames; connect a picture model.")
        last = exact_block(family, model) if self.how != "fast" and not self.blocks.items else None
        chosen = [last] if last is not None else read_blocks(family, family.blocks(model), self.blocks, max(grid[1:]))
        if not chosen:
            raise LoomError(f"blocks '{self.blocks.text}' selects no block of this {family.name} model with a map over the picture; leave it empty for the default.")
        tokens = [t for concept in self.subjects.concepts for t in concept.tokens]
        ends = [sum(len(c.tokens) for c in self.subjects.concepts[: i + 1]) for i in range(len(self.subjects.concepts))]
        memory["wanted"] = Columns(frozenset(chosen), tuple((t,) for t in tokens))
        memory["members"] = [range(end - len(c.tokens), end) for c, end in zip(self.subjects.concepts, ends, strict=True)]
        memory["exact"] = last is not None

    # --- at a step -------------------------------------------------------------------------------------------------

    def before(self, step: Step) -> None:
        """The reference comes in, noised to this step's level."""
        if step.at.index in step.memory["due"] and "mask" in step.memory and self.reference is not None:
            noised = step.noised(step.memory["reference"], step.memory["noise"])
            step.move(blend(step.x, noised, self._share(step.memory["mask"])))

    def after(self, step: Step) -> None:
        """Before a step at which the reference comes in: where is the subject?"""
        if step.at.index + 1 not in step.memory["due"] or (self.lock and "mask" in step.memory):
            return
        heat = self.rule.heat(self.score(step))
        mask = self.rule.mask(heat)
        flat = heat.amax(2)
        self.into.looks.append(Look(step.at.index, step.at.steps, step.at.sigma, flat.float().cpu(), mask.amax(1).float().cpu()))
        useless = (mask.flatten(1).amax(1) == 0) | (mask.flatten(1).amin(1) == 1)
        step.memory.pop("mask", None)
        if bool(useless.any()):
            step.run.warn(
                f"{self.owner} left {int(useless.sum())} of {len(useless)} pictures alone at step {step.at.index + 2} of {step.at.steps}: the mask at threshold "
                f"{self.rule.threshold:g} is empty or covers everything; change the threshold or dilate less"
            )
        if not bool(useless.all()):
            step.memory["mask"] = torch.where(useless.view(-1, 1, 1, 1), float("nan"), mask)

    def score(self, step: Step) -> Tensor:
        """How much each cell of the prediction owes to each subject [B, S, C, h, w], at the latent as it is."""
        memory = step.memory
        size = (step.x.shape[-2], step.x.shape[-1])
        if memory["exact"]:
            found = step.influence(memory["wanted"], lambda y, _: coloured_sums(y))
            score = exact_score(found[0], memory["members"], self.phi)
        else:
            found = step.influence(memory["wanted"], self.number, against=self.scalar == "text_effect")
            score = fast_score(found, memory["members"], self.phi, size)
        if not bool(score.isfinite().all()):
            raise LoomError(f"{self.owner} found gradients that are not finite at sigma {step.at.sigma:.4g}; load the model in bf16 or fp32.")
        return score

    def number(self, y: Tensor, other: Tensor | None) -> Tensor:
        """[1]: what "fast" differentiates."""
        if self.scalar == "text_effect":
            assert other is not None
            return (y * (y - other).detach()).sum()[None]
        return (0.5 * y.square() if self.scalar == "energy" else y).sum()[None]

    def _share(self, mask: Tensor) -> Tensor:
        """Share of the reference [B, C, h, w]: of what lies outside the mask, or inside; 0 where a picture is left alone (NaN)."""
        return (self.strength * (mask if self.invert else 1 - mask)).nan_to_num(0.0)

    def finish(self, result: Tensor, memory: dict[Any, Any]) -> Tensor:
        """The reference itself, outside the last mask."""
        if not self.paste or self.reference is None or "mask" not in memory:
            return result
        return blend(result, memory["reference"].to(result), self._share(memory["mask"]).to(result))


def blend(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """``(1 - share) x + share other``; exact at 0 and 1. share [B, 1|C, h, w] for x [B, C, (1,) h, w]."""
    share = share.to(x) if share.ndim == x.ndim else share.to(x).unsqueeze(2)
    return torch.where(share == 0, x, (1 - share) * x + share * other)


def fitted(reference: Tensor, shape: tuple[int, ...], warn: Callable[[str], None]) -> Tensor:
    """A reference at the size of the latent: scaled to cover it, the middle kept. Raises LoomError if it cannot fit."""
    flat = reference[:, :, 0] if reference.ndim == 5 else reference
    if flat.shape[1] != shape[1]:
        raise LoomError(f"the reference has {flat.shape[1]} channels and the latent of this model {shape[1]}; encode the picture with the VAE of this model.")
    if len(flat) not in (1, shape[0]):
        raise LoomError(f"{len(flat)} references were given for {shape[0]} pictures; give one, or one for each picture.")
    size = shape[-2:]
    if flat.shape[-2:] != size:
        warn(f"the reference of {flat.shape[-1]} x {flat.shape[-2]} latent cells was scaled to {size[1]} x {size[0]}; scale the picture before encoding for a sharper one")
        scale = max(size[0] / flat.shape[-2], size[1] / flat.shape[-1])
        whole = [max(n, round(scale * m)) for n, m in zip(size, flat.shape[-2:], strict=True)]
        flat = F.interpolate(flat.float(), whole, mode="bilinear", antialias=True, align_corners=False)
        top, left = (whole[0] - size[0]) // 2, (whole[1] - size[1]) // 2
        flat = flat[..., top : top + size[0], left : left + size[1]]
    return flat.unsqueeze(2) if len(shape) == 5 else flat


def exact_block(family: Family, model: Any) -> Block | None:
    """The last cross-attention of a U-Net, if only its own block's rest and the last convolution come after it."""
    if family.name != UNETS:
        return None
    block = family.blocks(model)[-1]
    return block if block.kind == "output" and block.level == 0 and block.index + 1 == len(model.output_blocks) else None


def read_blocks(family: Family, blocks: list[Block], selection: Any, side: int) -> list[Block]:
    """The blocks read by "fast": those selected, or by default the coarse layers of a U-Net and a middle part of others."""
    if selection.items:
        return [b for b in blocks if b in selection]
    if family.name != UNETS:
        return with_words(family, blocks, PLACES)
    coarse = [b for b in blocks if side / 2**b.level <= COARSE]
    return coarse or [b for b in blocks if b.level == max(c.level for c in blocks)]
