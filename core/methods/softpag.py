"""SoftPAG: guidance away from a prediction in which chosen attention heads are pulled towards a simpler attention.

Source: "Where and How to Perturb: On the Design of Perturbation Guidance in Diffusion and Flow Models", arXiv 2506.10978.
Written from the paper's formulas; no code was taken from the release.

In the extra pass, for the chosen (block, head), with A = softmax(QK^T/sqrt(d)) and u in [0, 1]::

    A' = (1 - u) A + u A*,   out = A' V

A*: the unit matrix (identity; u = 1 is perturbed-attention guidance, arXiv 2403.17377), uniform, the row of the mean query
(arXiv 2408.00760 in the limit of a wide blur), or the strongest key alone. Other heads, blocks and the main pass are untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ...kernels.caching import remembered
from ...kernels.plan import HeadMix
from ..errors import LoomError
from ..heads import HeadSet
from .extra import GuidanceMethod

if TYPE_CHECKING:
    from ..call import AttentionCall, Block, TokenLayout
    from ..families.base import Family
    from ..weave import Draft

LOOM_HEADS = "LOOM_HEADS"
"""Type of the sockets that hand on a selection of heads: a text that :meth:`core.heads.HeadSet.parse` reads."""

TARGETS = {"identity": "identity", "uniform": "mean", "query mean": "query", "max": "max"}
"""The user's word for each target -> the plan's."""
ROWS = ("all", "image_rows", "image_image")
PICTURE = ("image", "video", "reference")
"""Kinds of tokens that count as picture: generated and reference ones."""


@dataclass(frozen=True)
class SoftPAG(GuidanceMethod):
    """Settings of the method.

    heads: which ones, each with an own amount or ``u``. target: a key of :data:`TARGETS`. rows: which tokens are changed: "all",
    "image_rows" (text tokens keep their attention), or "image_image" (picture tokens see themselves and the text, as
    perturbed-attention guidance is usually done in joint attention; for the identity only).
    """

    owner: ClassVar[str] = "Head Guidance (SoftPAG)"
    counts_tokens: ClassVar[bool] = True

    heads: HeadSet
    u: float = 0.5
    target: str = "identity"
    rows: str = "all"

    def __post_init__(self) -> None:
        if not 0.0 <= self.u <= 1.0:
            raise LoomError(f"u {self.u:g} was given; it lies between 0 (heads left alone) and 1 (heads fully replaced).")
        for name, value, fits in (("target", self.target, tuple(TARGETS)), ("rows", self.rows, ROWS)):
            if value not in fits:
                raise LoomError(f"{name} '{value}' was given; choose one of {', '.join(fits)}.")
        if self.rows == "image_image" and self.target != "identity":
            raise LoomError(f"rows image_image is a form of the identity and target is {self.target}; set target to identity, or rows to image_rows.")

    @property
    def off(self) -> bool:
        """No push, or no head with an amount above 0."""
        return super().off or self.heads.idle(self.u)

    def check_family(self, family: Family, model: Any) -> None:
        """The chosen blocks and heads must be there, and image_image needs text beside the picture."""
        super().check_family(family, model)
        self.heads.check(family.name, family.blocks(model), lambda block: family.heads(model, block))
        if self.rows == "image_image" and not family.joint:
            raise LoomError(f"rows image_image needs attention over text and picture together, and {family.name} reads its text apart; set rows to all.")

    def reaches(self, block: Block) -> bool:
        """Whether a head of this block is chosen."""
        return any(block in item.blocks for item in self.heads.items)

    def wants(self, call: AttentionCall) -> bool:
        """Attention of the model's blocks over their own tokens, in this method's pass. Refiners and side blocks have no number."""
        return (
            super().wants(call)
            and call.extra is not None
            and call.extra.name == self.only_in
            and call.kind in ("self", "joint")
            and call.block.ordinal >= 0
            and call.q == call.k
            and self.reaches(call.block)
        )

    def contribute(self, call: AttentionCall, draft: Draft) -> None:
        """Stage 7: a mix per head."""
        if call.extra is not None:
            call.extra.touched.add(call.block)
        amounts = self.heads.amounts(call.block, call.heads, self.u)
        if any(amounts):
            draft.prefer(self.owner, self.backend)
            draft.mix(self.owner, head_mix(amounts, TARGETS[self.target], self.rows, call.q, str(call.device)))


@remembered(512)
def head_mix(amounts: tuple[float, ...], target: str, rows: str, layout: TokenLayout, device: str) -> HeadMix:
    """The same object for the same call shape: what kernels derive from its tensors is kept with it."""
    amount = torch.tensor(amounts, dtype=torch.float32, device=device)
    picture = torch.cat([torch.full((span.length,), span.kind in PICTURE) for span in layout.spans])
    if rows == "all" or bool(picture.all() | ~picture.any()):  # where another pack merged the tokens of a U-Net, all are picture
        return HeadMix(amount, target)  # type: ignore[arg-type]
    if rows == "image_rows":
        return HeadMix(amount, target, picture.to(device))  # type: ignore[arg-type]
    return HeadMix(amount, "own", picture.to(device), (~picture).nonzero().flatten().to(device))
