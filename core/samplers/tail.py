"""What enters at the tail of the queue: fresh noise, or noise that keeps the low frequencies of the frame before it. Pure.

Source: "Ouroboros-Diffusion: Exploring Consistent Content Generation in Tuning-free Long Video Diffusion", arXiv 2501.09019:
the last slot z, which has just made its first step, is brought back to the top level and mixed with fresh noise::

    tail = IFFT( G . FFT(z) + (1 - G) . FFT(noise) )

over rows and columns. Frames that enter one after another then agree in layout, and differ in detail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import LoomError

Filter = Literal["centred", "source"]
FILTERS = ("centred", "source")


@dataclass(frozen=True)
class Coherent:
    """Settings of the coherent tail.

    filter: "centred" uses the true signed frequencies, 1 at frequency 0, and its result is exactly real; "source" is the released
    filter, which the time axis of a single frame scales by exp(-1/2) (0.607 at its peak) and an odd size shifts. width: d_s, its width
    as a share of the highest frequency; 0 keeps nothing. renorm: give the mix unit variance; None: only where the model's latent is
    ``(1 - s) data + s noise``. rho: on such models, how much of z is kept where the source adds 16 steps of noise (0.909 there).
    """

    filter: Filter = "centred"
    width: float = 0.25
    renorm: bool | None = None
    rho: float = 0.91

    def __post_init__(self) -> None:
        if self.filter not in FILTERS:
            raise LoomError(f"tail filter '{self.filter}' was given; choose one of {', '.join(FILTERS)}.")
        if not self.width >= 0.0:
            raise LoomError(f"tail_width {self.width:g} was given; it is 0 (fresh noise) or more (the paper's is 0.25).")
        if not 0.0 <= self.rho <= 1.0:
            raise LoomError(f"rho {self.rho:g} was given; it lies between 0 (all noise) and 1 (the old frame); 0.91 corresponds to the paper.")


def gain(height: int, width: int, settings: Coherent) -> Tensor:
    """G, fp64 [height, width], in the order of ``torch.fft.fft2``: what is kept of each frequency."""
    if settings.width == 0:
        return torch.zeros(height, width, dtype=torch.float64)
    if settings.filter == "centred":
        rows, columns = (2 * torch.fft.fftfreq(n, dtype=torch.float64) for n in (height, width))
        return torch.exp(-(rows[:, None] ** 2 + columns[None] ** 2) / (2 * settings.width**2))
    return torch.fft.ifftshift(source_gain(height, width, settings.width))


def source_gain(height: int, width: int, d_s: float = 0.25, d_t: float = 1.0) -> Tensor:
    """The released filter as it is written, over shifted frequency indices [height, width]; a single frame has 2 t / T - 1 = -1."""
    rows, columns = (2 * torch.arange(n, dtype=torch.float64) / n - 1 for n in (height, width))
    distance = (d_s / d_t) ** 2 + rows[:, None] ** 2 + columns[None] ** 2
    return torch.exp(-distance / (2 * d_s**2))


def weights(kept: Tensor, renorm: bool) -> tuple[Tensor, Tensor]:
    """Weight of the old frame and of the fresh noise per frequency; with renorm their squares add up to 1."""
    fresh = 1 - kept
    scale = (kept**2 + fresh**2).sqrt() if renorm else torch.ones_like(kept)
    return kept / scale, fresh / scale


def mixed(z: Tensor, noise: Tensor, settings: Coherent, renorm: bool) -> Tensor:
    """z and noise [..., H, W] of unit variance -> the new tail. Where G is 0 everywhere it is ``noise``, bit for bit."""
    old, fresh = (w.to(z.device, torch.float32) for w in weights(gain(z.shape[-2], z.shape[-1], settings), renorm))
    spectrum = old * torch.fft.fft2(z.float()) + (fresh - 1) * torch.fft.fft2(noise.float())
    return noise + torch.fft.ifft2(spectrum).real.to(noise)


def renoised_flow(z: Tensor, noise: Tensor, rho: float) -> Tensor:
    """The last slot of a flow model as unit-variance noise that remembers it: exact noising to the top would keep nothing of it."""
    spread = z.flatten(1).std(1).clamp_min(1e-12).view(-1, *[1] * (z.ndim - 1))
    return rho * (z / spread) + (1 - rho**2) ** 0.5 * noise


def renoised(z: Tensor, noise: Tensor, sigma: float, top: float) -> Tensor:
    """Exact forward diffusion of ``data + sigma noise`` from ``sigma`` to ``top``."""
    return z + max(0.0, top**2 - sigma**2) ** 0.5 * noise
