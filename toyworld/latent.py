"""The exact linear latent of the shapes world.

The committed Wan VAE's encoder is written by hand (`vae.py`) so that it equals this function: average pooling of 4-pixel cells and of four
frames, plus the temporal difference of the two frame pairs. So the video model trains without running a VAE, and a quick linear decode gives coarse
frames (16 x 16).

Channels of a latent [16, T, 8, 8]: 12 = (row, column) of the 4-pixel cell inside the 8-pixel cell x RGB; 4 = luma difference per cell.
"Normalised" latents are what the model sees (ComfyUI's `process_in` of the stored latent), with about unit variance.
"""

import torch

LUMA = (0.299, 0.587, 0.114)
COLOUR_MEAN, COLOUR_STD, DIFFERENCE_STD = -0.5, 0.45, 0.25  # fixed normalisation, in units of the VAE's -1..1 pixels


def latent_frames(frames: int) -> int:
    """Latent frames of a clip: the first frame alone, then groups of four."""
    return (frames - 1) // 4 + 1


def pixel_frames(latents: int) -> int:
    """Frames of a clip of so many latent frames."""
    return 4 * (latents - 1) + 1


def encode(frames: torch.Tensor) -> torch.Tensor:
    """Frames [F, S, S, 3] in 0..1 -> normalised latent [16, T, S/8, S/8]. F must be 4 n + 1, S a multiple of 8."""
    count, size = frames.shape[0], frames.shape[1]
    if frames.shape[1:] != (size, size, 3) or size % 8:
        raise ValueError(f"Frames of a toy clip are square with a side that is a multiple of 8 and three channels, not {list(frames.shape[1:])}.")
    if count % 4 != 1:
        raise ValueError(f"A clip has 4 n + 1 frames (1, 5, 9 ... 21 ...), not {count}.")
    cells = (frames * 2 - 1).reshape(count, size // 4, 4, size // 4, 4, 3).mean((2, 4))
    cells = torch.cat([cells[:1].repeat(4, 1, 1, 1), cells[1:]])  # the first latent frame holds one frame only
    pairs = cells.reshape(-1, 2, 2, size // 4, size // 4, 3).mean(2)
    colour = pairs.mean(1)
    difference = ((pairs[:, 1] - pairs[:, 0]) * pairs.new_tensor(LUMA)).sum(-1)
    t, h = colour.shape[0], size // 8
    colour = colour.reshape(t, h, 2, h, 2, 3).permute(2, 4, 5, 0, 1, 3).reshape(12, t, h, h)
    difference = difference.reshape(t, h, 2, h, 2).permute(2, 4, 0, 1, 3).reshape(4, t, h, h)
    return torch.cat([(colour - COLOUR_MEAN) / COLOUR_STD, difference / DIFFERENCE_STD])


def decode(latent: torch.Tensor) -> torch.Tensor:
    """Normalised latent [16, T, h, h] -> coarse frames [4 T - 3, 2 h, 2 h, 3] in 0..1, linear in time inside a latent frame."""
    t, h = latent.shape[1], latent.shape[2]
    colour = (latent[:12] * COLOUR_STD + COLOUR_MEAN).reshape(2, 2, 3, t, h, h).permute(3, 4, 0, 5, 1, 2).reshape(t, 2 * h, 2 * h, 3)
    difference = (latent[12:] * DIFFERENCE_STD).reshape(2, 2, t, h, h).permute(2, 3, 0, 4, 1).reshape(t, 2 * h, 2 * h, 1)
    ramp = torch.tensor([-0.75, -0.25, 0.25, 0.75]).view(1, 4, 1, 1, 1)
    frames = (colour[:, None] + difference[:, None] * ramp).reshape(4 * t, 2 * h, 2 * h, 3)[3:]
    return ((frames + 1) / 2).clamp(0, 1)
