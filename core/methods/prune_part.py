"""Parts of joint attention, for the Attention Inspector: what one kind of token reads from another.

With A = softmax(QK^T/sqrt(d)) a part is put out by setting its probabilities to 0 without renormalising the rest, so the head loses
``sum_j A_ij v_j`` over the part's keys j in the part's rows i. That sum is the same attention with values that are 0 outside the part's keys: no
map of pairs is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import LoomError
from ..inspect.rows import four_sided
from .softpag import PICTURE

if TYPE_CHECKING:
    from ..call import AttentionCall, Seen, TokenLayout
    from ..families.base import Family
    from ..weave import Draft

WHOLE = "whole"
PARTS = (WHOLE, "image_image", "image_text", "text_image", "text_text")
"""Reader and read; image: generated and reference pictures and video. Padding and other tokens are of neither kind."""


def check_part(part: str, family: Family | None = None) -> None:
    """Raises LoomError for a word that is no part, and for models that read their text apart."""
    if part not in PARTS:
        raise LoomError(f"part '{part}' was given; choose one of {', '.join(PARTS)}.")
    if part != WHOLE and family is not None and not family.joint:
        raise LoomError(f"part {part} needs attention over text and picture together, and {family.name} reads its text apart; set part to {WHOLE}.")


def has_part(part: str, call: AttentionCall) -> bool:
    """Whether this call has tokens on both sides of the part."""
    return part == WHOLE or all(bool(side.any()) for side in sides(part, call.q))


def sides(part: str, layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """bool [N] each: the part's rows and keys among the call's own tokens."""
    kinds = {"image": PICTURE, "text": ("text",)}
    rows, keys = (torch.cat([torch.full((span.length,), span.kind in kinds[side]) for span in layout.spans]) for side in part.split("_"))
    return rows, keys


def share(part: str, call: AttentionCall, seen: Seen, draft: Draft, owner: str) -> Tensor:
    """What the part adds to the result of every head: [B, H, N, D], 0 outside its rows. Raises LoomError where other methods change this call."""
    others = [name for name in draft.owners if name != owner]
    if others:
        raise LoomError(f"part {part} is taken from the model's own attention, and {others[0]} changes that in {call.block}; take it out, or set part to {WHOLE}.")
    rows, keys = (side.to(call.device) for side in sides(part, call.q))
    at = rows.nonzero().flatten()
    q, mask = seen.q[:, :, at], four_sided(seen.mask)
    if seen.scale is not None:
        q = q * (seen.scale * q.shape[-1] ** 0.5)
    if mask is not None and mask.shape[2] > 1:
        mask = mask[:, :, at]
    found = seen.dense(q, seen.k, seen.v * keys[:, None], mask)
    return found.new_zeros(*found.shape[:2], call.q.length, found.shape[3]).index_copy(2, at, found)
