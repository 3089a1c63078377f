"""Decoders of the second world's VAEs. Their encoders are written by hand (`vae.py`, `picture_vae.py`) and are not trained."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import latent, picture_latent, picture_vae, train_vae, vae
from ..host import CHECKPOINTS, load_host
from . import crops
from .loop import amp

NOISE = 0.12  # largest deviation added to a latent in training: a sampled latent is never exact

Pool = tuple[Tensor, Tensor]


def draw(pool: Pool, batch: int, generator: torch.Generator) -> Pool:
    """A random batch of noisy latents and their pixels, in single precision."""
    chosen = torch.randint(0, len(pool[0]), (batch,), generator=generator)
    z, truth = pool[0][chosen].float(), pool[1][chosen].float()
    level = NOISE * torch.rand(batch, *[1] * (z.ndim - 1), generator=generator)
    return z + level * torch.randn(z.shape, generator=generator), truth


class PictureVAE(nn.Module):
    """The TAESD class decoder on crops of 64 x 64 of pictures of 128 x 128.

    The first part of the steps trains the layers up to the first doubling alone, at a tenth of the price: there the four cells that a latent
    holds side by side have to come apart, which is the hard part. Interpolation, with which the decoder begins, is near the goal in the rest.
    """

    name = "scenes_picture_vae"
    rates = (0.004, 1e-3)
    stages = ((0.4, 16), (1.0, 6))  # share of the steps by which it ends, crops

    def __init__(self, seed: int, compiled: bool):
        super().__init__()
        self.blocks = picture_vae.build(seed).requires_grad_(False)  # the loop gives the kernels of "blocks" to Muon
        self.blocks.taesd_decoder.requires_grad_(True)
        self._decode = torch.compile(self.blocks.decode, dynamic=False) if compiled else self.blocks.decode

    def pool(self, count: int, seed: int) -> Pool:
        """Rendered crops."""
        return crops.pictures(count, seed)

    def loss(self, pool: Pool, step: int, steps: int, generator: torch.Generator) -> Tensor:
        """Error of the decoded pixels on a random batch, edges counted three times."""
        device = self.blocks.vae_scale.device
        coarse = step < self.stages[0][0] * steps
        z, truth = (value.to(device) for value in draw(pool, self.stages[0 if coarse else 1][1], generator))
        with amp(device):
            if coarse:
                cells = (torch.nn.functional.avg_pool2d(truth, 4) - latent.COLOUR_MEAN) / latent.COLOUR_STD
                return ((picture_vae.decode_cells(self.blocks, picture_latent.to_stored(z)).float() - cells) ** 2).mean()
            decoded = self._decode(picture_latent.to_stored(z).contiguous(memory_format=torch.channels_last))
        return train_vae.loss(decoded.float()[:, :, None], truth[:, :, None])

    def export(self, folder: Path, note: dict[str, Any]) -> None:
        """Write the file that VAELoader reads."""
        picture_vae.save(self.blocks, folder / f"{self.name}.safetensors", {"toyworld": json.dumps(note)})


class WanVAE(nn.Module):
    """The Wan decoder on crops of 13 frames of 48 x 48, going on from that of the first world."""

    name = "scenes_wan_vae"
    rates = (0.005, 1e-3)
    batch = 4
    start = CHECKPOINTS / "toy_wan_vae.safetensors"

    def __init__(self, seed: int, compiled: bool):
        super().__init__()
        load_host()
        import comfy.latent_formats
        from safetensors.torch import load_file

        model = vae.build(vae.WIDTH, seed).requires_grad_(False)
        model.load_state_dict({name: value.float() for name, value in load_file(self.start).items()})
        model.decoder.requires_grad_(True)
        self.blocks, self._format = model, comfy.latent_formats.Wan21()  # the loop gives the kernels of "blocks" to Muon

    def pool(self, count: int, seed: int) -> Pool:
        """Rendered crops."""
        return crops.clips(count, seed)

    def loss(self, pool: Pool, step: int, steps: int, generator: torch.Generator) -> Tensor:
        """Error of the decoded pixels on a random batch, edges counted three times."""
        device = self.blocks.conv2.weight.device
        z, truth = (value.to(device) for value in draw(pool, self.batch, generator))
        stored = self._format.process_out(z).contiguous(memory_format=torch.channels_last_3d)
        with amp(device):
            decoded = train_vae.decode_at_once(self.blocks, stored)
        return train_vae.loss(decoded.float(), truth)

    def export(self, folder: Path, note: dict[str, Any]) -> None:
        """Write the file that VAELoader reads."""
        vae.save(self.blocks, folder / f"{self.name}.safetensors", {"toyworld": json.dumps({**note, "start": self.start.name})})
