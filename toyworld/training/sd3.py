"""Stable Diffusion 3 (MMDiT, joint attention) on pictures of the second world: 3 blocks of 192 channels, 3 heads of 64."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..host import load_host
from ..scenes import Mix
from . import encoders, pools, text, words
from .loop import amp, times

SIDE = 16  # of the position table, in patches; pictures of 128 pixels use its middle 8 x 8
SIZES = dict(
    patch_size=2, in_channels=16, out_channels=16, depth=3, adm_in_channels=None, num_patches=SIDE * SIDE, pos_embed_max_size=SIDE, qk_norm="rms",
    context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": text.T5_WIDTH, "out_features": 192}}, input_size=None,
)  # fmt: skip
MIX = Mix(two=0.2, three=0.05, textured=0.35, grounded=0.3)
BARE, LOOSE = 0.06, 0.15
"""Share of pictures without an object, and of captions without a ground: what the texts of areas, subjects and backgrounds mean."""
SHIFT = 3.0
EMPTY_PROMPT = 0.1
BATCH = 32


class SD3(nn.Module):
    """Model and text encoder that learn together."""

    name = "scenes_sd3"
    rates = (0.02, 2e-3)

    def __init__(self, seed: int, compiled: bool):
        super().__init__()
        load_host()
        import comfy.ldm.modules.diffusionmodules.mmdit as mmdit
        import comfy.ops

        torch.manual_seed(seed)
        self.model = mmdit.OpenAISignatureMMDITWrapper(**SIZES, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
        for name, weight in self.model.named_parameters():
            if weight.ndim >= 2:
                nn.init.xavier_uniform_(weight.view(weight.shape[0], -1))
                if "adaLN" in name or name == "final_layer.linear.weight":
                    nn.init.zeros_(weight)
            else:
                nn.init.constant_(weight, 1.0 if "ln_" in name else 0.0)
        # The host keeps the position table as a buffer; it is the usual sine table here.
        self.model.pos_embed.copy_(mmdit.get_2d_sincos_pos_embed_torch(192, SIDE, SIDE).reshape(1, SIDE * SIDE, 192))
        self.text = text.T5Tower()
        self._forward = [torch.compile(self.model, dynamic=False) if compiled else self.model]

    def pool(self, count: int, seed: int) -> pools.Pool:
        """Rendered pictures, few of them with two or three objects."""
        return pools.make(count, seed, "t5", False, MIX, BARE, LOOSE)

    def loss(self, pool: pools.Pool, step: int, steps: int, generator: torch.Generator) -> Tensor:
        """Velocity error on a random batch."""
        chosen = torch.randint(0, len(pool.rows), (BATCH,), generator=generator)
        device = self.model.pos_embed.device
        clean, rows = pool.latents[chosen].float().to(device), pool.rows[chosen].clone()
        rows[torch.rand(BATCH, generator=generator) < EMPTY_PROMPT] = words.rows_tensor([""], "t5")[0]
        sigma = times(BATCH, SHIFT, generator).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        mix = sigma.view(-1, 1, 1, 1)
        with amp(device):
            velocity = self._forward[0]((1 - mix) * clean + mix * noise, sigma * 1000, context=self.text(rows.to(device)))
        weights = pools.emphasis(pool, chosen, step, steps).to(device)
        return (weights * (velocity.float() - (noise - clean)) ** 2).mean()

    def export(self, folder: Path, note: dict[str, Any]) -> None:
        """Write model and text encoder in the files that ComfyUI loads."""
        from safetensors.torch import save_file

        state = dict(self.model.state_dict())
        state["context_embedder.weight"] = encoders.widen(state["context_embedder.weight"])
        metadata = {"toyworld": json.dumps({**note, "model": {key: value for key, value in SIZES.items() if key != "context_embedder_config"}})}
        save_file({name: value.half().cpu().contiguous() for name, value in state.items()}, folder / f"{self.name}.safetensors", metadata=metadata)
        encoders.write_t5(self.text, folder / f"{self.name}_text.safetensors")
