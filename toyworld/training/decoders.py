"""Decoders of the second world's VAEs. Their encoders are written by hand (`vae.py`, `picture_vae.py`) and are not trained."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import picture_latent, picture_vae, train_vae, vae
from ..host import CHECKPOINTS, load_host
from . import crops

NOISE = 0.12  # largest deviation added to a latent in training: a sampled latent is never exact

Pool = tuple[Tensor, Tensor]


def draw(pool: Pool, batch: int, generator: torch.Generator) -> Pool:
    """A random batch of noisy latents and their pixels."""
    chosen = torch.randint(0, len(pool[0]), (batch,), generator=generator)
    z, truth = pool[0][chosen].float(), pool[1][chosen].float()
    level = NOISE * torch.rand(batch, *[1] * (z.ndim - 1), generator=generator)
    return z + level * torch.randn(z.shape, generator=generator), truth


class PictureVAE(nn.Module):
    """The TAESD class decoder on crops of 64 x 64 of pictures of 128 x 128."""

    name = "scenes_picture_vae"
    rates = (0.01, 2e-3)
    batch = 12

    def __init__(self, seed: int, compiled: bool):
        super().__init__()
        model = picture_vae.build(seed).requires_grad_(False)
        self.blocks = model.taesd_decoder.requires_grad_(True)
        self._model = [model]  # a list hides it: only the decoder is trained
        self._forward = [torch.compile(model.decode, dynamic=False) if compiled else model.decode]

    def pool(self, count: int, seed: int) -> Pool:
        """Rendered crops."""
        return crops.pictures(count, seed)

    def loss(self, pool: Pool, step: int, steps: int, generator: torch.Generator) -> Tensor:
        """Error of the decoded pixels on a random batch, edges counted three times."""
        z, truth = draw(pool, self.batch, generator)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = self._forward[0](picture_latent.to_stored(z).contiguous(memory_format=torch.channels_last))
        return train_vae.loss(decoded.float()[:, :, None], truth[:, :, None])

    def export(self, folder: Path, note: dict[str, Any]) -> None:
        """Write the file that VAELoader reads."""
        picture_vae.save(self._model[0], folder / f"{self.name}.safetensors", {"toyworld": json.dumps(note)})


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
        self.blocks = model.decoder.requires_grad_(True)
        self._model, self._format = [model], comfy.latent_formats.Wan21()

    def pool(self, count: int, seed: int) -> Pool:
        """Rendered crops."""
        return crops.clips(count, seed)

    def loss(self, pool: Pool, step: int, steps: int, generator: torch.Generator) -> Tensor:
        """Error of the decoded pixels on a random batch, edges counted three times."""
        z, truth = draw(pool, self.batch, generator)
        stored = self._format.process_out(z).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = train_vae.decode_at_once(self._model[0], stored)
        return train_vae.loss(decoded.float(), truth)

    def export(self, folder: Path, note: dict[str, Any]) -> None:
        """Write the file that VAELoader reads."""
        vae.save(self._model[0], folder / f"{self.name}.safetensors", {"toyworld": json.dumps({**note, "start": self.start.name})})
