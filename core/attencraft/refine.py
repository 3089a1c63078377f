"""From how much each place looks at a word to a clear map of the thing: sharpened, then spread over places that look at each other.

Source: AttenCraft, arXiv 2405.17965, section on mask creation; numbers (power 2, affinity power 4) from its released code. Maps are
[n, Y, X], fp32.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .self_map import SelfMap

TINY = 1e-20


def scaled(maps: Tensor) -> Tensor:
    """Each map of [..., Y, X] to 0..1 by its own least and largest value; one without any difference becomes 0. Differentiable."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp_min(TINY)


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[n, Y, X] at another size, bicubic without aligned corners; unchanged at its own."""
    return maps if maps.shape[-2:] == size else F.interpolate(maps[None], size, mode="bicubic", align_corners=False)[0]


def sharpened(cross: Tensor, size: tuple[int, int], power: float = 2.0) -> Tensor:
    """What words get of the attention [n, y, x] at the size of the self map, to a power, each scaled to 0..1 (c.2.3)."""
    large = resized(cross, size)
    return scaled(large.abs() ** power if power != int(power) else large ** int(power))


def refined(maps: Tensor, own: SelfMap, power: int = 4) -> Tensor:
    """``minmax(S'^power p)`` for every map p (c.2.4, c.2.5), with S' the self map scaled over all its entries."""
    flat = maps.flatten(1)
    return scaled(own.power(flat, power).unflatten(1, maps.shape[1:]))
