"""How near one clip is to another of the same prompt and seed, pixel by pixel: PSNR and SSIM."""

from __future__ import annotations

import math

import torch

EQUAL = 99.0
"""PSNR, dB, given to equal clips: the true value is infinite and would swallow every mean."""

COLUMNS = {
    "psnr": f"-10 log10 of the mean squared error to the other clip, dB; equal clips {EQUAL:g}, unrelated ones about 15",
    "ssim": "structural similarity to the other clip, mean over frames; equal 1, unrelated about 0.75 (most of the ground is the same)",
}


def fidelity(clip: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """PSNR and SSIM of a clip [F, H, W, 3] in 0..1 to another of the same shape."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    if clip.shape != truth.shape:
        raise ValueError(f"Clips of shapes {list(clip.shape)} and {list(truth.shape)} cannot be compared.")
    error = float((clip - truth).square().mean())
    similar = structural_similarity_index_measure(clip.permute(0, 3, 1, 2), truth.permute(0, 3, 1, 2), data_range=1.0)
    return {"psnr": min(EQUAL, -10 * math.log10(max(error, 1e-12))), "ssim": float(similar)}
