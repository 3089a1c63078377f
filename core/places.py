"""Masks of subjects: made ready on the picture, and read on a token grid. Pure tensor functions.

Source: He et al., "Improving Multi-Subject Consistency in Open-Domain Image Generation with Isolation and Reposition Attention",
arXiv 2411.19261 (IR-Diffusion), and the base system DreamStory, arXiv 2407.12899. Written from the rules; no code was taken.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import LoomError
from .otsu import otsu

Overlap = Literal["refuse", "smaller wins", "first wins"]
OVERLAPS = ("refuse", "smaller wins", "first wins")
SLIGHT = 0.1
"""Share of the smaller mask that two subjects may have in common before the user is asked whose it is."""
OTSU = 0.0
"""As a threshold: chosen for each mask by itself."""


# --- on the picture -------------------------------------------------------------------------------------------------


def stack(masks: Tensor, name: str) -> Tensor:
    """Masks as fp32 [n, h, w] on the CPU. Raises LoomError for another shape and for values outside 0..1."""
    if masks.ndim not in (2, 3) or 0 in masks.shape:
        raise LoomError(f"{name} has the shape {tuple(masks.shape)}; connect one mask per subject, stacked as [subjects, height, width].")
    found = masks.detach().float().cpu().reshape(-1, *masks.shape[-2:])
    low, high = float(found.min()), float(found.max())
    if not (low >= 0.0 and high <= 1.0):
        raise LoomError(f"{name} has values from {low:g} to {high:g}; a mask lies between 0 and 1.")
    return found


def without_bottom(masks: Tensor, share: float) -> Tensor:
    """Masks [n, h, w] with the lowest ``share`` of the picture cleared: portraits often stand on something there."""
    h = masks.shape[-2]
    kept = masks.clone()
    kept[..., h - round(share * h) :, :] = 0
    return kept


def refined(masks: Tensor, least: float) -> Tensor:
    """Scene masks [S, h, w] of 0 and 1: small gaps closed and small subjects given a box of at least ``least`` per side.

    least: in parts of the square root of the picture's area; gaps up to half of it are closed. In order of growing area; no
    pixel of another subject is taken. 0 leaves all as it is.
    """
    if least == 0:
        return masks
    side = least * (masks.shape[-2] * masks.shape[-1]) ** 0.5
    own = masks > 0.5
    for i in sorted(range(len(own)), key=lambda n: int(own[n].sum())):
        if not own[i].any():
            continue
        others = torch.cat([own[:i], own[i + 1 :]]).any(0)
        top, bottom, left, right = bounds(own[i])
        made = closed(own[i], max(1, round(side / 2)))
        high, wide, small = bottom - top + 1, right - left + 1, int(made.sum()) < side**2
        if small or high < side or wide < side:
            rows = _around(top, bottom, side, own.shape[1]) if small or high < side else (top, bottom)
            columns = _around(left, right, side, own.shape[2]) if small or wide < side else (left, right)
            made[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = True
        own[i] = made & ~others
    return own.to(masks)


def disjoint(masks: Tensor, rule: Overlap) -> Tensor:
    """Scene masks [S, h, w] without common pixels. Raises LoomError under "refuse" for more than a slight overlap."""
    own = masks > 0.5
    areas = own.flatten(1).sum(1).tolist()
    if rule == "refuse":
        for i in range(len(own)):
            for j in range(i):
                common = int((own[i] & own[j]).sum())
                if common > SLIGHT * min(areas[i], areas[j]):
                    raise LoomError(
                        f"the scene masks of subjects {j + 1} and {i + 1} overlap in {common / min(areas[i], areas[j]):.0%} of the smaller one; "
                        "paint them apart, or set overlap to 'smaller wins' or 'first wins'."
                    )
    order = range(len(own)) if rule == "first wins" else sorted(range(len(own)), key=lambda n: areas[n])
    taken, out = torch.zeros_like(own[0]), torch.zeros_like(own)
    for i in order:
        out[i] = own[i] & ~taken
        taken |= own[i]
    return out.to(masks)


def closed(mask: Tensor, side: int) -> Tensor:
    """bool [h, w]: gaps narrower than ``side`` filled (a dilation, then an erosion, by a square)."""
    reach = side // 2
    if reach == 0:
        return mask
    padded = F.pad(mask.float()[None, None], (reach,) * 4)
    return ~_spread(~_spread(padded > 0.5, reach), reach)[0, 0, reach:-reach, reach:-reach]


def bounds(mask: Tensor) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a mask [h, w] that is not empty; both ends belong to it."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def _spread(mask: Tensor, reach: int) -> Tensor:
    """A dilation by a square, one axis after the other."""
    for axis in (-2, -1):
        mask = _within(mask, reach, axis)
    return mask


def _within(mask: Tensor, reach: int, axis: int) -> Tensor:
    """Whether anything lies within ``reach`` along an axis: by running sums, whose time does not grow with the reach."""
    total = F.pad(mask.int().movedim(axis, -1), (1, 0)).cumsum(-1)
    at = torch.arange(mask.shape[axis], device=mask.device)
    most = mask.shape[axis]
    return (total[..., (at + reach + 1).clamp(max=most)] > total[..., (at - reach).clamp(min=0)]).movedim(-1, axis)


def _around(first: int, last: int, side: float, size: int) -> tuple[int, int]:
    """A run of ``side`` pixels about the middle of another, inside 0 .. size - 1."""
    length = min(size, round(side))
    start = min(max(0, round((first + last + 1 - length) / 2)), size - length)
    return start, start + length - 1


# --- on a grid ------------------------------------------------------------------------------------------------------


def covered(masks: Tensor, y: int, x: int) -> Tensor:
    """fp32 [n, y, x] in 0..1: masks [n, h, w] resized (bilinear, without antialiasing) and stretched to the full range."""
    found = F.interpolate(masks[:, None], (y, x), mode="bilinear", align_corners=False)[:, 0]
    low, high = found.amin((1, 2), keepdim=True), found.amax((1, 2), keepdim=True)
    return torch.where(high > low, (found - low) / (high - low).clamp_min(1e-12), found)


def on_grid(masks: Tensor, y: int, x: int, threshold: float = 0.5) -> Tensor:
    """bool [n, y, x]: which tokens belong to each mask [n, h, w]; never none of them if the mask is not empty."""
    found = covered(masks, y, x)
    out = found > _limits(found, threshold)
    for i, mask in enumerate(masks):
        if bool(mask.any()) and not bool(out[i].any()):
            out[i].view(-1)[int(_fine(mask, y, x).argmax())] = True
    return out


def apart_on_grid(masks: Tensor, y: int, x: int, threshold: float = 0.5) -> Tensor:
    """Like :func:`on_grid` for scene masks, with no token in two of them: it goes to the one that covers most of it.

    A subject that would lose its last token keeps its best one that is not the last of another; without one it is not found here.
    """
    claims = on_grid(masks, y, x, threshold)
    fine = torch.stack([_fine(mask, y, x) for mask in masks])
    share = torch.where(claims, fine.view_as(claims) + 1.0, torch.zeros(()))
    out = claims & (share.argmax(0)[None] == torch.arange(len(masks)).view(-1, 1, 1))
    for i in range(len(masks)):
        if bool(claims[i].any()) and not bool(out[i].any()):
            spare = ~(out & (out.flatten(1).sum(1) == 1).view(-1, 1, 1)).any(0)  # not the only token of another
            best = torch.where(spare, fine[i].view(y, x), 0.0).flatten()
            if float(best.max()) > 0:
                out.flatten(1)[:, int(best.argmax())] = torch.arange(len(masks)) == i
    return out


def _fine(mask: Tensor, y: int, x: int) -> Tensor:
    """fp32 [y x]: how much of each token's place a mask [h, w] covers; small masks fall between bilinear samples."""
    return F.adaptive_avg_pool2d(mask[None, None].float(), (y, x)).flatten()


def _limits(found: Tensor, threshold: float) -> Tensor:
    if threshold != OTSU:
        return torch.full((len(found), 1, 1), threshold)
    return torch.stack([otsu(m) for m in found]).view(-1, 1, 1).to(found)
