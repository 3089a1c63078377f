"""Wan 2.1 text-to-video on clips of the second world, and the same model with a noise level per latent frame.

It starts from the first world's model, which knows shapes, colours and motion, with a new text encoder. The first quarter of the steps shows parts of clips:
textures and whose is what are learned there at a third of the price. `forcing` starts from the trained model and draws an independent level for every latent
frame (diffusion forcing, Chen et al. 2024, arXiv 2407.01392), half of the time; it is what FIFO and Ouroboros sampling needs.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..host import CHECKPOINTS
from ..scenes import Mix
from ..train import build_model
from . import encoders, pools, text, words
from .loop import amp, times

SIZES = dict(model_type="t2v", in_dim=16, out_dim=16, dim=256, ffn_dim=768, freq_dim=256, text_dim=text.T5_WIDTH, num_heads=2, num_layers=4)
MIX = Mix(two=0.35, three=0.0, textured=0.35, grounded=0.3)
BARE = 0.06
"""Share of clips without an object."""
SHIFT = 3.0
EMPTY_PROMPT = 0.1
STAGES = ((0.25, 3, 48), (1.0, 9, 24))  # share of the steps by which it ends, latent frames, clips


class Wan(nn.Module):
    """Model and text encoder that learn together."""

    name = "scenes_wan_t2v"
    stages = STAGES
    rates = (0.015, 1.5e-3)

    def __init__(self, seed: int, compiled: bool, folder: Path = CHECKPOINTS):
        super().__init__()
        self.model = build_model(seed, SIZES)
        self.text = text.T5Tower()
        self.begin(folder)
        self._forward = [torch.compile(self.model, dynamic=False) if compiled else self.model]  # a list hides it from state_dict

    def begin(self, folder: Path) -> None:
        """Take what fits from the first world's model: all but the projection of the words, whose width differs."""
        self.take(folder / "toy_wan_t2v.safetensors")

    def take(self, path: Path) -> None:
        """Copy the weights of a file, narrowing the projection of the words if it is that of this world's text encoder."""
        from safetensors.torch import load_file

        state = {name: value.float() for name, value in load_file(path).items()}
        if "text_embedding.0.weight" not in state:
            raise ValueError(f"{path} is not a toy Wan model: it has no text embedding.")
        projection = state.pop("text_embedding.0.weight")
        if not projection[:, text.T5_WIDTH :].any():
            state["text_embedding.0.weight"] = projection[:, : text.T5_WIDTH]
        missing = self.model.load_state_dict(state, strict=False)
        if missing.unexpected_keys or len(missing.missing_keys) > 1:
            raise ValueError(f"{path} is not a toy Wan model: {[*missing.unexpected_keys, *missing.missing_keys][:4]} do not fit.")

    def pool(self, count: int, seed: int) -> pools.Pool:
        """Rendered clips with one or two objects, some with none."""
        return pools.make(count, seed, "t5", True, MIX, BARE)

    def levels(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        """Noise levels [B, T] in 0..1: one for the whole clip."""
        return times(batch, SHIFT, generator)[:, None].expand(batch, frames)

    def loss(self, pool: pools.Pool, step: int, steps: int, generator: torch.Generator) -> Tensor:
        """Velocity error on a random batch."""
        _, frames, batch = next(stage for stage in self.stages if step < stage[0] * steps or stage[0] == 1.0)
        chosen = torch.randint(0, len(pool.rows), (batch,), generator=generator)
        first = torch.randint(0, pool.latents.shape[2] - frames + 1, (1,), generator=generator)
        device = self.model.patch_embedding.weight.device
        clean, rows = pool.latents[chosen, :, first : first + frames].float().to(device), pool.rows[chosen].clone()
        rows[torch.rand(batch, generator=generator) < EMPTY_PROMPT] = words.rows_tensor([""], "t5")[0]
        sigma = self.levels(batch, frames, generator)
        one = bool((sigma == sigma[:, :1]).all())
        sigma = sigma.to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        mix = sigma[:, None, :, None, None]
        with amp(device):
            velocity = self._forward[0]((1 - mix) * clean + mix * noise, (sigma[:, 0] if one else sigma) * 1000, self.text(rows.to(device)))
        return ((velocity.float() - (noise - clean)) ** 2).mean()

    def export(self, folder: Path, note: dict[str, Any]) -> None:
        """Write model and text encoder in the files that ComfyUI loads."""
        from safetensors.torch import save_file

        state = dict(self.model.state_dict())
        state["text_embedding.0.weight"] = encoders.widen(state["text_embedding.0.weight"])
        metadata = {"toyworld": json.dumps({**note, "model": SIZES})}
        save_file({name: value.half().cpu().contiguous() for name, value in state.items()}, folder / f"{self.name}.safetensors", metadata=metadata)
        encoders.write_t5(self.text, folder / f"{self.name}_text.safetensors")


class Forcing(Wan):
    """The trained model, taught to take an own noise level for every latent frame. Its text encoder is that of the model."""

    name = "scenes_wan_forcing"
    stages = ((1.0, 9, 24),)
    rates = (0.005, 5e-4)

    def begin(self, folder: Path) -> None:
        """Take model and text encoder of the second world."""
        self.take(folder / f"{Wan.name}.safetensors")
        self.text.load_state_dict(encoders.read_t5(folder / f"{Wan.name}_text.safetensors"))

    def levels(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        """Half of the clips have independent levels, a quarter ascending ones (a queue's window), a quarter one level."""
        free = times(batch * frames, SHIFT, generator).reshape(batch, frames)
        quarter = batch // 4
        free[:quarter] = free[:quarter].sort(1).values
        free[quarter : 2 * quarter] = free[quarter : 2 * quarter, :1]
        return free
