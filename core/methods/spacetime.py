"""Space-time attention: what stands where, by regional descriptions inside cross-attention, weighted over the steps.

Source: "Harnessing the Spatial-Temporal Attention of Diffusion Models for High-Fidelity Text-to-Image Synthesis", arXiv
2304.03869. Written from the paper's rule and its released behaviour; no code was taken. In every cross-attention, with g_c and g_u
the results of the positive and the negative prompt, a_i that of description i, and M_i its tokens::

    contrast    o = g_c + sum_i c_i(t) M_i (a_i - g_u)      the released code; c = 5/K
    affine      o = g_c + sum_i c_i(t) M_i (a_i - g_c)      ours; needs no negative prompt
    convex      the same with sum_i c_i M_i clipped to 1    the plain reading of the paper's text; c = 0.6

Only the positive prompt's rows change. The corrections sum to zero in the weights, so it is the same before and after the output
projection with its bias. Cost: per region one attention of its own rows over its own text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from ...kernels.plan import Aside
from ..errors import LoomError
from ..fade import Fade
from ..regions import Region, cover, middle
from ..texts import elements, projected
from .base import Method

if TYPE_CHECKING:
    from ..call import AttentionCall
    from ..families.base import Family
    from ..weave import Draft

Warn = Callable[[str], None] | None
Mode = Literal["contrast", "affine", "convex"]
AUTO_CONTRAST, AUTO_WIDE, AUTO_CONVEX = 5.0, 2.0, 0.6
WIDE = 2048
"""Text width of SDXL, where less is enough (our choice)."""


@dataclass(frozen=True, eq=False)
class Local:
    """A region with its description encoded: context [1, M, C] as the model's text encoder gives it."""

    region: Region
    context: Tensor = field(repr=False)


@dataclass(frozen=True, eq=False)
class SpaceTime(Method):  # two of them are never equal: they hold tensors
    """Settings. weight: c of each region, before its own strength and the schedule. split: divide by how many regions cover a token.

    softness: in parts of the width; legacy: discs as the paper's code has them.
    """

    owner: ClassVar[str] = "Place Subjects (space-time attention)"
    __eq__, __hash__ = object.__eq__, object.__hash__

    locals: tuple[Local, ...] = ()
    weight: float = AUTO_CONTRAST
    mode: Mode = "contrast"
    fade: Fade = field(default_factory=Fade)
    split: bool = False
    softness: float = 0.0
    legacy: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight) or self.weight < 0:
            raise LoomError(f"a weight of {self.weight:g} was given; give 0 or more (contrast and affine about 5 by the number of regions, convex 0.6).")
        if not 0.0 <= self.softness <= 0.2:
            raise LoomError(f"softness {self.softness:g} was given; it lies between 0 (hard) and 0.2 of the width.")

    @property
    def off(self) -> bool:
        """No region, or no weight."""
        return super().off or self.weight == 0.0 or all(x.region.strength == 0.0 for x in self.locals)

    def check_family(self, family: Family, model: Any) -> None:
        """Needs cross-attention to a text whose projections can be found, of the width the descriptions were encoded to."""
        width = family.text_width(model)
        if width is None:
            raise LoomError(
                f"{self.owner} works inside cross-attention to the prompt, and {family.name} offers none that can be used here. Connect SD 1.5, SD 2, SDXL, Wan, LTX or Cosmos Predict2, "
                "or place subjects with area conditioning."
            )
        for local in self.locals:
            if local.context.ndim != 3 or local.context.shape[2] != width:
                raise LoomError(f"the descriptions were encoded to a width of {local.context.shape[-1]} and the model reads {width}; connect the CLIP that belongs to this model.")

    @property
    def rests_in_extra_passes(self) -> str:
        """Contrast needs the negative prompt, which an extra pass does not have."""
        return "mode contrast" if self.mode == "contrast" else ""

    def wants(self, call: AttentionCall) -> bool:
        """Cross-attention to the prompt."""
        return super().wants(call) and call.project is not None and call.q.grid_span is not None

    def contribute(self, call: AttentionCall, draft: Draft) -> None:
        """Stage 9: one aside per region, on the rows of the positive prompt."""
        fade = self.fade.at(call.progress)
        idle = self._rests(call, fade)
        if idle:
            draft.leave(self.owner, idle)
            return
        chunks = elements(call)
        positive = [e for row, chunk in zip(call.rows, chunks, strict=True) if row == 0 for e in chunk]
        bases = self._bases(call, chunks) if self.mode == "contrast" else positive
        if not positive or bases is None:
            draft.leave(self.owner, "the negative prompt alone" if not positive else "an extra pass without the negative prompt, which mode contrast subtracts")
            return
        draft.prefer(self.owner, self.backend)
        for local, (rows, weight) in zip(self.locals, self.placed(call), strict=True):
            if local.region.strength > 0:
                k, v = projected(call, self.owner, local.context)
                draft.aside(self.owner, Aside(k, v, rows, weight * fade, tuple(positive), tuple(bases)))

    def _rests(self, call: AttentionCall, fade: float) -> str:
        if fade == 0.0:
            return "the schedule is at 0"
        whole = None if call.run is None else call.run.whole
        if whole is not None and call.q.grid is not None and at_level(whole, call.block.level) != call.q.grid[1:]:
            return "a conditioning of an area, in which the regions of the whole picture mean nothing"
        return ""

    def _bases(self, call: AttentionCall, chunks: list[range]) -> list[int] | None:
        """For each positive element the negative one it is set against, or None in an extra pass without the negative prompt.

        A pass is known as extra by its mark, or, another pack's, by the main one having had both.
        """
        negative = next((chunk for row, chunk in zip(call.rows, chunks, strict=True) if row == 1), None)
        met: set[bool] = set() if call.run is None else call.run.kept((self.owner, "negative"), set)
        if negative is not None:
            if 0 in call.rows:  # a negative prompt on its own tells that the two run apart
                met.add(True)
            return [negative[i] for row, chunk in zip(call.rows, chunks, strict=True) if row == 0 for i in range(len(chunk))]
        if 0 not in call.rows or call.extra is not None or met:
            return None
        raise LoomError(
            f"{self.owner}, mode contrast, subtracts what the negative prompt gives, and this model call has none: at CFG 1 there is no negative prompt, and "
            "with little memory or prompts of very unequal length the two run apart. Use mode affine."
        )

    def placed(self, call: AttentionCall) -> list[tuple[Tensor, Tensor]]:
        """(rows int64, weight fp32) of each region in this call, before the schedule."""
        assert call.q.grid_span is not None
        offset, span = call.q.grid_span
        assert span.grid is not None
        grid, warn = span.grid, None if call.run is None else call.run.warn

        def make() -> list[tuple[Tensor, Tensor]]:
            return on_grid(self, offset, grid, call.device, warn)

        return call.kept((self.owner, offset, grid, str(call.device)), make)


def auto_weight(mode: Mode, regions: int, width: int) -> float:
    """c where the user names none: 5/K as released (2/K on SDXL, ours), 0.6 for convex."""
    if mode == "convex":
        return AUTO_CONVEX
    return (AUTO_WIDE if width == WIDE else AUTO_CONTRAST) / max(1, regions)


def at_level(grid: tuple[int, int, int], level: int) -> tuple[int, int]:
    """(Y, X) of a grid after a UNet has halved it."""
    _, y, x = grid
    for _ in range(level):
        y, x = -(-y // 2), -(-x // 2)
    return y, x


def on_grid(method: SpaceTime, offset: int, grid: tuple[int, int, int], device: torch.device, warn: Warn = None) -> list[tuple[Tensor, Tensor]]:
    """(rows, weights) of each region on a grid (T, Y, X) behind ``offset`` other tokens; every frame alike."""
    t, y, x = grid
    weights = torch.stack([_cover(method, local.region, y, x, warn) * local.region.strength * method.weight for local in method.locals])
    if method.split:
        weights = weights / (weights > 0).sum(0).clamp(min=1)
    if method.mode == "convex":
        weights = weights / weights.sum(0).clamp(min=1)
    out = []
    for weight in weights.reshape(len(weights), -1):
        token = (weight > 0).nonzero()[:, 0]
        rows = offset + (torch.arange(t)[:, None] * (y * x) + token).flatten()
        out.append((rows.to(device), weight[token].repeat(t).to(device)))
    return out


def _cover(method: SpaceTime, region: Region, y: int, x: int, warn: Warn) -> Tensor:
    found = cover(region.place, y, x, 0.0, method.legacy)
    if not bool(found.any()):
        if warn is not None:
            warn(f"the region of '{region.text}' is smaller than a token of the {x} x {y} grid; its nearest token is used there")
        found[middle(region.place, y, x)] = 1.0
        return found
    return found if method.softness == 0 else cover(region.place, y, x, method.softness, method.legacy)
