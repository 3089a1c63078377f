"""Texts that belong to places, in one attention over text and picture: which tokens may see each other, as labels.

The sequence is [prompt | text of object 1 | .. | text of object n | picture], in any order the family has. A token of the picture reads the prompt
and the texts of the objects it belongs to; an object's text reads the prompt, itself and the object's tokens; the prompt reads itself and the picture.
Source: the place of the masked gated attention of DiffUHaul (arXiv 2406.01594) on models without grounding tokens; this form of it is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.plan import Labels
from .call import TokenLayout
from .errors import LoomError

PROMPT = 0
MOST = 64


def labels(layout: TokenLayout, texts: tuple[int, ...], reads: tuple[Tensor, ...], shows: tuple[Tensor, ...], vacated: Tensor | None, owner: str) -> Labels | None:
    """For one picture of the batch; None where every token sees every other.

    texts: tokens of each object's text, which are the last of the text span. reads, shows bool [N]: picture tokens of each object, as queries and as keys (they
    differ where keys are another picture's). vacated bool [N]: queries that must not see the keys of the first object, nor the
    prompt, which names it and would have it drawn there again. Raises LoomError.
    """
    kinds, codes = _kinds(shows if texts else shows[:1] if vacated is not None else (), layout)
    count = 1 + len(texts) + len(codes)
    if count > MOST:
        raise LoomError(f"{owner} needs {count} kinds of token for objects that overlap in this way and {MOST} fit; give fewer objects, or places that overlap less.")
    picture = sum(1 << (1 + len(texts) + i) for i in range(len(codes)))
    label, allow = _of_text(layout, texts, codes, picture)
    own = torch.full((len(kinds),), (1 << PROMPT) | picture)
    for i in range(len(texts)):
        own = torch.where(reads[i], own | (1 << (1 + i)), own)
    if vacated is not None:
        object_ = sum(1 << (1 + len(texts) + i) for i, code in enumerate(codes) if code & 1)
        own = torch.where(vacated, own & ~object_ & ~(1 << PROMPT), own)
    offset, span = layout.grid_span  # type: ignore[misc]
    label[offset : offset + span.length], allow[offset : offset + span.length] = kinds + 1 + len(texts), own
    if bool((allow == (1 << count) - 1).all()):
        return None
    return Labels(label.to(torch.int8)[None], allow[None], count)


def stacked(parts: list[Labels | None], length: int) -> Labels | None:
    """Labels of several pictures of a batch as one; None where none has any."""
    if all(part is None for part in parts):
        return None
    count = max(part.count for part in parts if part is not None)
    open_ = Labels(torch.zeros(1, length, dtype=torch.int8), torch.full((1, length), 1), 1)
    rows = [open_ if part is None else part for part in parts]
    return Labels(torch.cat([r.label_k for r in rows]), torch.cat([r.allow_q for r in rows]), count)


def _kinds(shows: tuple[Tensor, ...], layout: TokenLayout) -> tuple[Tensor, list[int]]:
    """int64 [N]: for each picture token which set of objects it is a key of; the sets as bits."""
    _, span = layout.grid_span  # type: ignore[misc]
    if not shows:
        return torch.zeros(span.length, dtype=torch.long), [0]
    code = torch.stack([mask.long() << i for i, mask in enumerate(shows)]).sum(0)
    found, kinds = code.unique(return_inverse=True)
    return kinds, [int(c) for c in found]


def _of_text(layout: TokenLayout, texts: tuple[int, ...], codes: list[int], picture: int) -> tuple[Tensor, Tensor]:
    """Labels and allowed labels with all but the picture filled in."""
    label, allow = torch.full((layout.length,), PROMPT), torch.full((layout.length,), (1 << PROMPT) | picture)
    if not texts:
        return label, allow
    _, end = layout.range("text")  # type: ignore[misc]
    at = end - sum(texts)
    for i, tokens in enumerate(texts):
        own = sum(1 << (1 + len(texts) + n) for n, code in enumerate(codes) if code >> i & 1)
        label[at : at + tokens], allow[at : at + tokens] = 1 + i, (1 << PROMPT) | (1 << (1 + i)) | own
        at += tokens
    return label, allow
