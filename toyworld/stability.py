"""How a clip behaves over time and how crisp it is: dynamic degree, freezing, repetition, flicker, sharpness.

None of these asks whether the caption was followed; the caption only tells which returns are right (an orbit's, a hop's).
"""

import math
import random
from functools import lru_cache

import torch

from .readings import Reading, narrow, widen
from .scenes import Caption, random_scene, render
from .traits import free_ground

CHANGED, STIRRED = 0.06, 0.0015  # a pixel changed if any channel moved by this much; a frame stirred if this share of pixels changed
LATENT = 4  # frames of a latent frame: repetition is looked for at multiples of it
TRUTHS = 4  # rendered clips that tell which returns are right
NEAREST_LAG = 3  # latent frames: shorter lags still overlap with the object itself


def dynamic_degree(reading: Reading, native: int) -> float:
    """Way of the centres plus change of the radii per native clip, in picture widths, mean over the things that are seen; nan for one frame."""
    ways = []
    for x, y, radius in zip(reading.x, reading.y, reading.radius):
        step = torch.hypot(x[1:] - x[:-1], y[1:] - y[:-1]) + (radius[1:] - radius[:-1]).abs()
        step = step[~step.isnan()]
        if len(step):
            ways.append(float(step.mean()) * (native - 1))
    return sum(ways) / len(ways) if ways else math.nan


def freeze(frames: torch.Tensor) -> float:
    """Share of consecutive pairs of frames [F, S, S, 3] in which almost nothing changes; nan for one frame."""
    if len(frames) < 2:
        return math.nan
    changed = (frames[1:] - frames[:-1]).abs().amax(-1) > CHANGED
    return float((changed.float().mean((1, 2)) < STIRRED).float().mean())


def autocorrelation(frames: torch.Tensor) -> torch.Tensor:
    """Similarity of frames [F, S, S, 3] one to L latent frames apart, -1..1: [L], L the most lags that leave a quarter of the clip as pairs.

    R(k) = sum_t <d_t, d_(t+4k)> / sqrt(sum_t |d_t|^2 sum_t |d_(t+4k)|^2) with d = frame - mean over time, so a ground that stays does not count.
    """
    flat = frames.flatten(1)
    flat = flat - flat.mean(0)
    gram = flat @ flat.T
    energy = gram.diagonal()
    lags = range(LATENT, len(frames) - max(2, len(frames) // 4) + 1, LATENT)
    return torch.stack([gram.diagonal(k).sum() / (energy[:-k].sum() * energy[k:].sum()).sqrt().clamp(min=1e-6) for k in lags]) if lags else torch.zeros(0)


def repetition(reading: Reading, native: int) -> float:
    """How much the autocorrelation rises again, beyond its least value at shorter lags and beyond what rendered clips of the caption show, 0..2.

    max over lags k of R(k) - max(min of R at shorter lags, R of the truth at k), not below 0; so an orbit may come back and a clip that is
    merely slow does not count. nan where nothing moves or the clip is too short.
    """
    frames = reading.frames
    if len(frames) < LATENT * (NEAREST_LAG + 2) or float((frames - frames.mean(0)).square().mean()) < 1e-5:
        return math.nan
    similar = autocorrelation(frames)
    least = similar.cummin(0).values
    rise = similar - torch.maximum(least, _true_autocorrelation(reading.caption, len(frames), native))
    return max(0.0, float(rise[NEAREST_LAG - 1 :].max()))


@lru_cache(maxsize=64)
def _true_autocorrelation(caption: Caption, frames: int, native: int) -> torch.Tensor:
    """Highest autocorrelation [L] of a few rendered clips of a caption, each lag with its neighbours."""
    rng = random.Random(0)
    clips = [render(random_scene(rng, caption, native, apart=0), frames, 32) for _ in range(TRUTHS)]
    highest = torch.stack([autocorrelation(clip) for clip in clips]).amax(0)
    return torch.nn.functional.max_pool1d(highest[None], 3, 1, 1)[0]


def flicker(reading: Reading) -> float:
    """Amplitude of frame-to-frame flicker, 0..1: mean |second difference over time| / 4 of the ground's pixels and of each thing's mean colour.

    What is averaged follows the things, so motion does not count, and neither does a slow drift. nan for fewer than three frames.
    """
    frames = reading.frames
    if len(frames) < 3:
        return math.nan
    free = free_ground(reading)
    steady = free[2:] & free[1:-1] & free[:-2]
    bend = (frames[2:] - 2 * frames[1:-1] + frames[:-2]).abs().mean(-1) / 4
    parts = [float(bend[steady].mean())] if bool(steady.any()) else []
    for mask, found in zip(reading.masks, reading.found):
        colour = _mean_colour(frames, narrow(mask.float(), 3))
        whole = found[2:] & found[1:-1] & found[:-2]
        if bool(whole.any()):
            parts.append(float((colour[2:] - 2 * colour[1:-1] + colour[:-2]).abs().mean(-1)[whole].mean() / 4))
    return sum(parts) / len(parts) if parts else math.nan


def sharpness(reading: Reading) -> float:
    """Steepness of the things' outlines: mean of the steepest quarter of neighbour differences on a two-pixel band, over the contrast; nan if nothing is found.

    Contrast is the largest channel difference between the mean colour inside and that of a ring around. 1 is a jump within one pixel.
    """
    steep = []
    for mask, found in zip(reading.masks, reading.found):
        pictures, area = reading.frames[found], mask[found].float()
        inner, near = narrow(area, 5), widen(area, 3)
        ring, band = widen(area, 7) - near, (near - narrow(area, 3)) > 0
        contrast = (_mean_colour(pictures, inner) - _mean_colour(pictures, ring)).abs().amax(1).clamp(min=0.05)
        across = (pictures[:, :, 1:] - pictures[:, :, :-1]).abs().amax(-1) * (band[:, :, 1:] & band[:, :, :-1])
        along = (pictures[:, 1:] - pictures[:, :-1]).abs().amax(-1) * (band[:, 1:] & band[:, :-1])
        steps = torch.cat([across.flatten(1), along.flatten(1)], 1).sort(1, descending=True).values
        quarter = (band.sum((1, 2)) // 2).clamp(min=1)  # a band of n pixels has about 2 n pairs of neighbours
        steepest = steps.cumsum(1).gather(1, quarter[:, None] - 1)[:, 0] / quarter
        steep += (steepest / contrast)[(inner.sum((1, 2)) > 0) & (ring.sum((1, 2)) > 0)].tolist()
    return sum(steep) / len(steep) if steep else math.nan


def _mean_colour(frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean colour [F, 3] of frames [F, S, S, 3] under masks [F, S, S]."""
    return (frames * mask[..., None]).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)[:, None]
