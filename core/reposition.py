"""Reposition: a reference subject cropped, resized and pasted onto the place of the subject in the scene, as a gather of tokens.

Source: "Improving Multi-Subject Consistency in Open-Domain Image Generation with Isolation and Reposition Attention", arXiv
2411.19261. Keys and values are made of each token by itself, so moving tokens of the hidden state and projecting them is the
same as picking projected tokens: exact, and no projection is computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .places import bounds


@dataclass(frozen=True, eq=False)
class Moved:
    """source int64 [n]: tokens of the reference, in the order of the tokens they go to. shift fp32 [n, 2]: rows and columns by
    which each is moved.
    """

    source: Tensor
    shift: Tensor


def repositioned(reference: Tensor, scene: Tensor) -> Moved | None:
    """From the mask of the subject in its reference to its mask in the scene, both bool [y, x]; None if one is empty.

    Boxes around the masks are mapped onto each other by the nearest token, each axis by itself; where the place falls outside the
    reference's mask nothing is moved.
    """
    if not bool(reference.any()) or not bool(scene.any()):
        return None
    x = reference.shape[1]
    top, bottom, left, right = bounds(reference)
    first_row, last_row, first_column, last_column = bounds(scene)
    rows, columns = torch.arange(first_row, last_row + 1), torch.arange(first_column, last_column + 1)
    from_row = top + (rows - first_row) * (bottom - top + 1) // len(rows)
    from_column = left + (columns - first_column) * (right - left + 1) // len(columns)
    kept = reference[from_row[:, None], from_column[None]]
    source = from_row[:, None] * x + from_column[None]
    shift = torch.stack(torch.broadcast_tensors((rows - from_row)[:, None], (columns - from_column)[None]), -1)
    return Moved(source[kept], shift[kept].float()) if bool(kept.any()) else None


def in_place(reference: Tensor, scene: Tensor) -> Moved | None:
    """The reference's tokens where they are; None if one of the masks bool [y, x] is empty."""
    if not bool(reference.any()) or not bool(scene.any()):
        return None
    source = reference.flatten().nonzero()[:, 0]
    return Moved(source, torch.zeros(len(source), 2))


def pasted(picture: Tensor, reference: Tensor, scene: Tensor) -> tuple[Tensor, Tensor]:
    """The reference itself moved, for models whose attention knows no positions: (picture [..., y, x], mask bool [y, x]).

    The box around the mask ``reference`` is resized to the box around ``scene`` (both bool [y, x], of the picture's size) and put onto a plain
    ground, the mean of what the mask leaves out. As it is if one of them is empty.
    """
    if not bool(reference.any()) or not bool(scene.any()):
        return picture, reference
    top, bottom, left, right = bounds(reference)
    to_top, to_bottom, to_left, to_right = bounds(scene)
    size = (to_bottom - to_top + 1, to_right - to_left + 1)
    flat = picture.reshape(-1, *reference.shape).float()
    rest = ~reference if bool((~reference).any()) else reference
    made = flat[:, rest].mean(1)[:, None, None].expand_as(flat).clone()
    cut = flat[:, top : bottom + 1, left : right + 1]
    made[:, to_top : to_bottom + 1, to_left : to_right + 1] = F.interpolate(cut[None], size, mode="bilinear", antialias=True)[0]
    mask = torch.zeros_like(reference)
    inside = reference[top : bottom + 1, left : right + 1].float()
    small = F.interpolate(inside[None, None], size, mode="nearest")[0, 0] > 0.5
    mask[to_top : to_bottom + 1, to_left : to_right + 1] = small | ~small.any()  # of a mask of few pixels none may be left
    return made.to(picture).reshape(picture.shape), mask
