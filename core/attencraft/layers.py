"""Which layers of a model are read for masks: by how far they have halved the picture, not by number.

Source: AttenCraft, arXiv 2405.17965: on Stable Diffusion words are read where a cell is 32 pixels of the picture and self-attention where it is
16 (blocks input 7, 8, output 3, 4, 5, and input 4, 5, output 6, 7, 8), which are maps of 16 x 16 and 32 x 32 for 512 pixels. Finer levels for small
pictures, and models with text and picture in one attention, are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..call import Block
from ..columns import with_words
from ..errors import LoomError
from ..families import known_words
from ..families.base import Family
from ..families.unet import is_video
from ..schedule import BlockSelection

UNETS = "SD 1.5 / SDXL"
LEVELS = {"coarse": (2, 1), "fine": (1, 0), "finest": (0, 0)}
"""Halvings of the latent in the layers whose words and whose places are read. coarse: 32 and 16 pixels of the picture."""
DETAILS = ("auto", *LEVELS)
ENOUGH = 16
"""Cells along the longer side that the maps of words should have."""


@dataclass(frozen=True)
class Reading:
    """words: blocks whose attention on words is read; places: blocks whose attention among places is. step: latent cells that the sides must be a multiple of."""

    words: frozenset[Block]
    places: frozenset[Block]
    step: int
    joint: bool


def reading(family: Family, model: Any, latent: tuple[int, int], detail: str, chosen: BlockSelection | None = None) -> Reading:
    """What to read for a latent of (h, w) cells. chosen: instead of the middle third, for models with text and picture in one attention.

    Raises LoomError for models, sizes and blocks that do not fit.
    """
    blocks = family.blocks(model)
    picked = chosen is not None and bool(chosen.items)
    if family.word_stacks:
        middle = frozenset(b for b in blocks if b in chosen) if chosen is not None and picked else frozenset(with_words(family, blocks, {}))
        if not middle:
            raise LoomError(f"blocks selects none of the {len(blocks)} blocks of this {family.name} model; leave it empty for the middle third.")
        return Reading(middle, middle, 1, True)
    if picked:
        raise LoomError("blocks is for models with text and picture in one attention; on U-Nets choose detail instead.")
    if family.name != UNETS or is_video(model):
        raise LoomError(f"it is not known where the words of {family.name} stand in its attention; connect SD 1.5, SD 2, SDXL or {known_words()}.")
    return _of_unet(blocks, latent, detail)


def _of_unet(blocks: list[Block], latent: tuple[int, int], detail: str) -> Reading:
    outer = [b for b in blocks if b.kind != "middle"]
    there = {b.level for b in outer}
    possible = {name: levels for name, levels in LEVELS.items() if set(levels) <= there}
    if detail == "auto" and possible:
        enough = [name for name, (words, _) in possible.items() if max(latent) / 2**words >= ENOUGH]
        detail = enough[0] if enough else list(possible)[-1]
    if detail not in possible:
        raise LoomError(f"this U-Net has no attention that is {detail} in the sense of this node; choose {' or '.join(possible) or 'another model'}.")
    words, places = possible[detail]
    step = 2**words
    if latent[0] % step or latent[1] % step:
        raise LoomError(
            f"the latent has {latent[1]} x {latent[0]} cells, and both sides must be multiples of {step} ({8 * step} pixels); scale or crop the picture before encoding it."
        )
    return Reading(frozenset(b for b in outer if b.level == words), frozenset(b for b in outer if b.level == places), step, False)
