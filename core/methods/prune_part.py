"""Parts of attention, for the Attention Inspector: what one kind of token reads from another.

With A = softmax(QK^T/sqrt(d)) a part is put out by setting its probabilities to 0 without renormalising the rest, so the head loses
``sum_j A_ij v_j`` over the part's keys j in the part's rows i. That sum is the same attention with values that are 0 outside the part's keys: no
map of pairs is made. Four parts are of joint attention; the fifth, what the picture reads from chosen words, is of cross-attention as well.
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
    from ..concepts import Located
    from ..families.base import Family
    from ..weave import Draft

WHOLE = "whole"
WORDS = "words"
JOINT = ("image_image", "image_text", "text_image", "text_text")
PARTS = (WHOLE, *JOINT, WORDS)
"""Reader and read; image: generated and reference pictures and video. Padding and other tokens are of neither kind. words: columns of the positive
prompt's chosen words, in the picture's rows."""


def check_part(part: str, family: Family | None = None, words: Located | None = None) -> None:
    """Raises LoomError for a word that is no part, for models that read their text apart, and for words that were not given."""
    if part not in PARTS:
        raise LoomError(f"part '{part}' was given; choose one of {', '.join(PARTS)}.")
    if part == WORDS and words is None:
        raise LoomError("part words prunes what the picture reads from 'words', and none were given; write words of the prompt there, or set part to whole.")
    if part in JOINT and family is not None and not family.joint:
        raise LoomError(f"part {part} needs attention over text and picture together, and {family.name} reads its text apart; set part to {WHOLE} or {WORDS}.")


def has_part(part: str, call: AttentionCall, words: Located | None = None) -> bool:
    """Whether this is a call of a block's attention that has the part: attention over its own tokens, for words also over the text alone."""
    if part == WORDS:
        return call.kind in ("joint", "cross") and call.block.ordinal >= 0 and 0 in (call.rows or (0,)) and columns(call, words) is not None
    return call.kind in ("self", "joint") and call.q == call.k and (part == WHOLE or all(bool(side.any()) for side in sides(part, call.q)))


def columns(call: AttentionCall, words: Located | None) -> Tensor | None:
    """bool [keys]: the words' tokens; None where this call's text is not that of the prompt."""
    text = call.k.range("text")
    found = None if words is None or text is None else words.columns(text, call.k.length)
    return None if found is None else found.any(1)


def sides(part: str, layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """bool [N] each: the part's rows and keys among the call's own tokens."""
    rows, keys = (_of(side, layout) for side in part.split("_"))
    return rows, keys


def _of(kind: str, layout: TokenLayout) -> Tensor:
    kinds = {"image": PICTURE, "text": ("text",)}[kind]
    return torch.cat([torch.full((span.length,), span.kind in kinds) for span in layout.spans])


def share(part: str, call: AttentionCall, seen: Seen, draft: Draft, owner: str, words: Located | None = None) -> Tensor:
    """What the part adds to the result of every head: [B, H, N, D], 0 outside its rows. Raises LoomError where other methods change this call."""
    others = [name for name in draft.owners if name != owner]
    if others:
        raise LoomError(f"part {part} is taken from the model's own attention, and {others[0]} changes that in {call.block}; take it out, or set part to {WHOLE}.")
    if part == WORDS:
        found = columns(call, words)
        assert found is not None  # has_part
        rows, keys = _of("image", call.q).to(call.device), found.to(call.device)
    else:
        rows, keys = (side.to(call.device) for side in sides(part, call.q))
    at = rows.nonzero().flatten()
    q, mask = seen.q[:, :, at], four_sided(seen.mask)
    if seen.scale is not None:
        q = q * (seen.scale * q.shape[-1] ** 0.5)
    if mask is not None and mask.shape[2] > 1:
        mask = mask[:, :, at]
    out = seen.dense(q, seen.k, seen.v * keys[:, None], mask)
    if part == WORDS and 1 in call.rows:  # the negative prompt has other words at these places
        positive = torch.tensor([branch == 0 for branch in call.rows], device=out.device).repeat_interleave(out.shape[0] // len(call.rows))
        out = out * positive[:, None, None, None]
    return out.new_zeros(*out.shape[:2], call.q.length, out.shape[3]).index_copy(2, at, out)
