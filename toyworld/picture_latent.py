"""The exact linear latent of pictures: the mean of every 4-pixel cell.

The encoder of the toy picture VAE (`picture_vae.py`) is written by hand so that it equals this function; so picture models train without a VAE.
Channels of a latent [16, S/8, S/8]: 12 = (row, column) of the 4-pixel cell inside the 8-pixel cell x RGB; the last 4 are spare and zero.
"Normalised" is what the model sees, about unit variance; `STORED` turns it into what the VAE stores (ComfyUI's SD3 latent format in reverse).
"""

import torch
from torch import Tensor

from .latent import COLOUR_MEAN, COLOUR_STD

CHANNELS, USED = 16, 12
SCALE, SHIFT = 1.5305, 0.0609  # comfy.latent_formats.SD3


def encode(picture: Tensor) -> Tensor:
    """Picture [S, S, 3] in 0..1 -> normalised latent [16, S/8, S/8]. S must be a multiple of 8."""
    size = picture.shape[0]
    if picture.shape != (size, size, 3) or size % 8:
        raise ValueError(f"A toy picture is square with a side that is a multiple of 8 and three channels, not {tuple(picture.shape)}.")
    h = size // 8
    cells = (picture * 2 - 1).reshape(2 * h, 4, 2 * h, 4, 3).mean((1, 3))
    colour = cells.reshape(h, 2, h, 2, 3).permute(1, 3, 4, 0, 2).reshape(USED, h, h)
    return torch.cat([(colour - COLOUR_MEAN) / COLOUR_STD, colour.new_zeros(CHANNELS - USED, h, h)])


def decode(latent: Tensor) -> Tensor:
    """Normalised latent [16, h, h] -> coarse picture [2 h, 2 h, 3] in 0..1."""
    h = latent.shape[1]
    colour = (latent[:USED] * COLOUR_STD + COLOUR_MEAN).reshape(2, 2, 3, h, h).permute(3, 0, 4, 1, 2).reshape(2 * h, 2 * h, 3)
    return ((colour + 1) / 2).clamp(0, 1)


def to_stored(normalised: Tensor) -> Tensor:
    """What the VAE's encoder returns for a normalised latent."""
    return normalised / SCALE + SHIFT


def to_normalised(stored: Tensor) -> Tensor:
    """What the model sees of a stored latent."""
    return (stored - SHIFT) * SCALE
