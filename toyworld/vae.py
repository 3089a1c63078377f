"""The toy Wan VAE: ComfyUI's own `WanVAE` class with an encoder written by hand and a trained decoder.

The encoder equals `latent.encode` to within fp16 rounding: 4-pixel and 4-frame averaging plus one temporal difference are sums that strided
convolutions can express exactly, once the residual branches are zero and the last norm is made linear (see `_write_encoder`). The decoder
cannot be written that way (nearest upsampling and stationary convolutions cannot address the quarter of a cell), so `train_vae.py` trains it.
"""

from pathlib import Path

import torch

from . import latent
from .host import load_host

WIDTH = 8  # channels at full resolution; the file is about 1.9 MB in fp16
ARCHITECTURE = dict(z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True])
# A constant channel this large makes the last RMS norm of the encoder a constant factor; an offset this large makes SiLU the identity.
NORM_ANCHOR, SILU_OFFSET = 4000.0, 12.0


def build(width: int = WIDTH, seed: int = 0) -> torch.nn.Module:
    """A `WanVAE` with the hand-written encoder and a freshly initialised decoder."""
    load_host()
    import comfy.ldm.wan.vae

    torch.manual_seed(seed)
    model = comfy.ldm.wan.vae.WanVAE(dim=width, **ARCHITECTURE)
    with torch.no_grad():
        _write_encoder(model)
        _initialise_decoder(model)
    return model


def save(model: torch.nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write the VAE in half precision, in the layout that VAELoader reads."""
    from safetensors.torch import save_file

    save_file({name: value.detach().half().cpu().contiguous() for name, value in model.state_dict().items()}, path, metadata=metadata)


def _identity(conv: torch.nn.Module, channels: int) -> None:
    """Write the identity on the first channels into a 2D or causal 3D convolution (its newest time tap, its spatial centre)."""
    for i in range(channels):
        weight = conv.weight[i, i, -1] if conv.weight.ndim == 5 else conv.weight[i, i]
        weight[weight.shape[0] // 2, weight.shape[1] // 2] = 1.0


def _latent_statistics() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gain and offset of `latent.encode` over plain averages, and the host's mean and deviation of Wan latents: four tensors [16]."""
    import comfy.latent_formats

    host = comfy.latent_formats.Wan21()
    gain = torch.cat([torch.full((12,), 1 / latent.COLOUR_STD), torch.full((4,), 1 / latent.DIFFERENCE_STD)])
    offset = torch.cat([torch.full((12,), -latent.COLOUR_MEAN / latent.COLOUR_STD), torch.zeros(4)])
    return gain, offset, host.latents_mean.flatten(), host.latents_std.flatten()


def _write_encoder(model: torch.nn.Module) -> None:
    """Weights that make `model.encode` the linear latent. Three levels: halve, halve and pair frames, halve and pair again."""
    import comfy.ldm.wan.vae as wan

    encoder = model.encoder
    for name, weight in model.named_parameters():
        if name.startswith(("encoder", "conv1")):
            weight.fill_(1.0 if name.endswith("gamma") else 0.0)
    _identity(encoder.conv1, 3)
    level = 0
    for module in encoder.downsamples:
        if isinstance(module, wan.ResidualBlock) and not isinstance(module.shortcut, torch.nn.Identity):
            _identity(module.shortcut, min(module.shortcut.weight.shape[:2]))
        if not isinstance(module, wan.Resample):
            continue
        spatial = module.resample[1].weight
        for i in range(3):
            if level < 2:  # mean of 2 x 2 pixels, twice: cells of 4 pixels
                spatial[i, i, :2, :2] = 0.25
            else:  # the four cells of an 8-pixel cell become channels
                for row in range(2):
                    for column in range(2):
                        spatial[(row * 2 + column) * 3 + i, i, row, column] = 1.0
        if level >= 1:  # mean of two neighbouring frames, then of two pairs
            for i in range(3 if level == 1 else 12):
                module.time_conv.weight[i, i, 1:] = 0.5
        if level == 2:  # and the luma difference of the two pairs
            for cell in range(4):
                for i, luma in enumerate(latent.LUMA):
                    module.time_conv.weight[12 + cell, cell * 3 + i, 1] = -luma
                    module.time_conv.weight[12 + cell, cell * 3 + i, 2] = luma
        level += 1
    last = encoder.middle[2].residual[6]
    width = last.weight.shape[0]
    last.bias[width - 1] = NORM_ANCHOR
    last.bias[:16] = SILU_OFFSET
    encoder.head[0].gamma[:16] = NORM_ANCHOR / width**0.5
    encoder.head[0].gamma[width - 1] = 0
    _identity(encoder.head[2], 16)
    encoder.head[2].bias[:16] = -SILU_OFFSET
    gain, offset, mean, deviation = _latent_statistics()
    for i in range(16):
        model.conv1.weight[i, i] = gain[i] * deviation[i]
    model.conv1.bias[:16] = offset * deviation + mean


def _initialise_decoder(model: torch.nn.Module) -> None:
    """`conv2` undoes the host's latent statistics and is not trained; the rest starts as damped residual branches on random paths."""
    import comfy.ldm.wan.vae as wan

    _, _, mean, deviation = _latent_statistics()
    model.conv2.weight.zero_()
    for i in range(16):
        model.conv2.weight[i, i] = 1 / deviation[i]
    model.conv2.bias.copy_(-mean / deviation)
    for module in model.decoder.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            torch.nn.init.zeros_(module.bias)
    for module in model.decoder.modules():
        if isinstance(module, wan.ResidualBlock):
            module.residual[6].weight.mul_(0.1)
        elif isinstance(module, wan.AttentionBlock):
            module.proj.weight.zero_()
        elif isinstance(module, wan.Resample) and hasattr(module, "time_conv"):
            # Both halves of a doubled frame start as copies of it.
            module.time_conv.weight.zero_()
            for i in range(module.time_conv.weight.shape[0]):
                module.time_conv.weight[i, i % module.time_conv.weight.shape[1], -1] = 1.0
