"""Does the ground of a long clip of the first world stay as it is? It is one grey in every clip, so all that happens to it is the sampler's."""

from __future__ import annotations

import math

import torch

from .measures import WINDOW, read_frames

REACH = 3
"""Pixels around the object that do not count as ground: its rim and what the decoder smears."""
COLUMNS = {
    "ground_drift": "mean absolute difference of the ground in the last quarter of the clip from that of the first native window, pixel by pixel; 0..1, perfect 0, a clip that grows "
    "lighter by 0.1 on the way about 0.08",
    "ground_flicker": "amplitude of frame-to-frame flicker of the ground: mean |second difference over time| / 4; 0..1, perfect 0, every other frame lighter by 2 a: a; a slow drift does not count",
}


def steadiness(frames: torch.Tensor) -> dict[str, float]:
    """COLUMNS of frames [F, 64, 64, 3] in 0..1; nan where too little ground is seen or the clip is shorter than two native windows."""
    strength = read_frames(frames).strength
    near = torch.nn.functional.max_pool2d(strength[:, None], 2 * REACH + 1, 1, REACH)[:, 0]
    free = near < 0.05
    steady = free[2:] & free[1:-1] & free[:-2]
    bend = (frames[2:] - 2 * frames[1:-1] + frames[:-2]).abs().mean(-1) / 4
    return {
        "ground_drift": _drift(frames, free) if len(frames) >= 2 * WINDOW else math.nan,
        "ground_flicker": float(bend[steady].mean()) if bool(steady.any()) else math.nan,
    }


def _drift(frames: torch.Tensor, free: torch.Tensor) -> float:
    first, last = (_mean(frames[part], free[part]) for part in (slice(0, WINDOW), slice(-(len(frames) // 4), None)))
    seen = ~(first.isnan() | last.isnan()).any(-1)
    return float((last - first)[seen].abs().mean()) if bool(seen.any()) else math.nan


def _mean(frames: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """[64, 64, 3]: mean over the frames in which a pixel is ground; nan where it never is."""
    count = free.sum(0)[..., None]
    return (frames * free[..., None]).sum(0) / torch.where(count > 0, count.float(), torch.nan)
