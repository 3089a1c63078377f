"""Isolation as labels: tokens of one subject see themselves and what is nobody's, never those of another.

Source: "Improving Multi-Subject Consistency in Open-Domain Image Generation with Isolation and Reposition Attention", arXiv
2411.19261. Where text and picture share one attention subjects still meet through the text; hiding the words of the others is
an addition of ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.plan import Labels
from .call import TokenLayout
from .concepts import Located
from .errors import LoomError

NOBODY = 0
"""The kind of background and text, which all see and which see all."""


def isolated(masks: Tensor, layout: TokenLayout, words: Located | None = None) -> Labels:
    """Kinds of the tokens of a call and what each may see, on the CPU.

    masks: bool [S, y, x], disjoint. Subject i is kind i and sees 0 and itself. words: where the subjects stand in the text, one phrase
    each; the words of subject i are kind S + i, seen by all but the other subjects, and see all themselves.
    """
    subjects = len(masks)
    numbers = torch.arange(1, subjects + 1)
    kinds = layout.along((masks * numbers.view(-1, 1, 1)).sum(0).flatten(), NOBODY)
    count = subjects + 1
    sees = [1 | 1 << i for i in numbers.tolist()]
    if words is not None:
        for i, places in enumerate(_in_context(words, layout), 1):
            kinds[list(places)] = subjects + i
        count += subjects
        sees = [own | 1 << (subjects + i) for i, own in enumerate(sees, 1)]
    everything = (1 << count) - 1
    allow = torch.tensor([everything, *sees, *[everything] * (count - subjects - 1)])
    return Labels(kinds.to(torch.int8)[None], allow[kinds][None], count)


def _in_context(words: Located, layout: TokenLayout) -> list[list[int]]:
    """The phrases' places among the tokens of a call; encoders may drop their template in front."""
    span = layout.range("text")
    low, high = span if span is not None else (0, 0)
    dropped = max(0, words.length - (high - low))
    found = [[low + token - dropped for token in concept.tokens] for concept in words.concepts]
    if any(not low <= place < high for places in found for place in places):
        raise LoomError(
            f"the words of the subjects stand in a prompt of {words.length} tokens and the model reads {high - low}; "
            "write the same prompt in scene_prompt as in the text encoder of the scene."
        )
    return found
