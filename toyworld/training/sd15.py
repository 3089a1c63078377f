"""Stable Diffusion 1.5 (U-Net, cross-attention, SD1.5's noise schedule) on pictures of the second world: 64 channels instead of 320.

Sixteen latent channels instead of four, so that the U-Net shares the exact latent and the VAE of the SD3 model; attention maps are 16 x 16, 8 x 8 and
4 x 4 at 128 pixels, the text has the usual 77 tokens.

It predicts the picture ("x0" in the host's words), not the noise and not the velocity. Those are mostly noise in sixteen channels, which 64 channels
between group norms do not carry to the output: after 1700 steps on the velocity most of the error was noise that had been lost on the way.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..host import load_host
from ..scenes import Mix
from . import encoders, pools, text, words
from .loop import amp, times
from .pointing import Pointing, place_tokens, text_readers

SIZES = dict(
    image_size=32, in_channels=16, out_channels=16, model_channels=64, num_res_blocks=[1, 1, 1], channel_mult=(1, 2, 2), context_dim=text.CLIP["hidden_size"],
    num_heads=-1, num_head_channels=32, use_spatial_transformer=True, use_linear_in_transformer=False, transformer_depth=[1] * 3,
    transformer_depth_output=[1] * 6, transformer_depth_middle=1, legacy=False, adm_in_channels=None,
)  # fmt: skip
MIX = Mix(two=0.1, three=0.03, textured=0.35, grounded=0.3)
BARE, LOOSE = 0.06, 0.15
"""Share of pictures without an object, and of captions without a ground: what the texts of areas, subjects and backgrounds mean."""
SHIFT = 3.0
EMPTY_PROMPT = 0.1
BATCH = 24
SNR_LIMIT = 5.0
"""Greatest weight of a squared error: that of the velocity, (signal^2 + noise^2) / noise^2, would be without bound (min-SNR, arXiv 2303.09556)."""

POINTING, POINTING_UNTIL = 0.1, 0.7
"""Weight of the loss that lets place words point at their objects, and the share of the steps by which it ends."""
HIDDEN = 0.8
"""Noise level from which on a picture does not show where its objects are."""


class SD15(nn.Module):
    """Model and text encoder that learn together."""

    name = "scenes_sd15"
    rates = (0.02, 1e-3)

    def __init__(self, seed: int, compiled: bool):
        super().__init__()
        load_host()
        import comfy.ldm.modules.diffusionmodules.openaimodel as unet
        import comfy.model_sampling
        import comfy.ops

        torch.manual_seed(seed)
        self.model = unet.UNetModel(**SIZES, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
        for name, weight in self.model.named_parameters():
            if weight.ndim >= 2:
                nn.init.kaiming_normal_(weight, nonlinearity="linear")
                if ".proj_out." in name or "out_layers.3" in name or name.startswith("out.2"):
                    weight.data.mul_(0.0 if name.startswith("out.2") else 0.2)
            else:
                # Norms are the one-dimensional weights; every bias starts at zero.
                nn.init.constant_(weight, 1.0 if name.endswith("weight") else 0.0)
        self.text = text.ClipTower()
        sigmas = comfy.model_sampling.ModelSamplingDiscrete().sigmas.float()
        self.register_buffer("alpha", 1 / (sigmas**2 + 1), persistent=False)
        self._forward = [self.model]  # compiling every resolution of a U-Net takes longer than it saves

    def pool(self, count: int, seed: int) -> pools.Pool:
        """Rendered pictures, few of them with two or three objects."""
        return pools.make(count, seed, "clip", False, MIX, BARE, LOOSE)

    def loss(self, pool: pools.Pool, step: int, steps: int, generator: torch.Generator) -> Tensor:
        """Weighted error of the predicted picture on a random batch; in the first part also that of the place words' attention."""
        chosen = torch.randint(0, len(pool.rows), (BATCH,), generator=generator)
        with amp(self.alpha.device), Pointing(text_readers(self.model)) as seen:
            error = (self.error(pool, chosen, generator) * pools.emphasis(pool, chosen, step, steps).to(self.alpha.device)).mean()
        named = [(i, sample) for i, sample in enumerate(chosen.tolist()) if self.hides[i]]
        targets = [(i, token, box) for i, sample in named for token, box in zip(place_tokens(pool.captions[sample]), pool.boxes[sample])]
        if step >= POINTING_UNTIL * steps or not targets:
            return error
        return error + POINTING * seen.loss(targets, pool.latents.shape[-2:])

    def error(self, pool: pools.Pool, chosen: Tensor, generator: torch.Generator, options: dict[str, Any] | None = None) -> Tensor:
        """Squared errors [B, 16, h, w] of the predicted pictures, weighted by noise level; `options` are the host's transformer options."""
        device = self.alpha.device
        clean, rows = pool.latents[chosen].float().to(device), pool.rows[chosen].clone()
        empty = torch.rand(len(chosen), generator=generator) < EMPTY_PROMPT
        rows[empty] = words.rows_tensor([""], "clip")[0]
        t = self.timesteps(len(chosen), generator)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        alpha = self.alpha[t].view(-1, 1, 1, 1)
        signal, level = alpha.sqrt(), (1 - alpha).sqrt()
        self.hides = (~empty.to(device) & (level / (level + signal) >= HIDDEN).flatten()).tolist()  # which pictures do not show what their texts say
        guess = self._forward[0](signal * clean + level * noise, t.float(), context=self.text(rows.to(device)), transformer_options=options or {})
        return (guess.float() - clean) ** 2 * (1 / level**2).clamp(max=SNR_LIMIT)

    def timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Steps [count] of SD1.5's own schedule whose ratios of noise to signal are those of the flow models' levels.

        Uniform steps would show the levels at which the text decides what will be where in one picture of seven.
        """
        level = times(count, SHIFT, generator).to(self.alpha.device)
        ratio = ((1 - self.alpha) / self.alpha).sqrt()
        return torch.bucketize(level / (1 - level), ratio).clamp(max=len(ratio) - 1)

    def export(self, folder: Path, note: dict[str, Any]) -> None:
        """Write model and text encoder; `comfy_node` loads both."""
        from safetensors.torch import save_file

        metadata = {"toyworld": json.dumps({**note, "model": SIZES, "prediction": "x0"})}
        save_file({name: value.half().cpu().contiguous() for name, value in self.model.state_dict().items()}, folder / f"{self.name}.safetensors", metadata=metadata)
        encoders.write_clip(self.text, folder / f"{self.name}_text.safetensors")
