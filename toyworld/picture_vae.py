"""The toy picture VAE: ComfyUI's own TAESD class with sixteen latent channels, an encoder written by hand and a trained decoder.

The encoder equals `picture_latent.to_stored(picture_latent.encode(picture))` to within fp16 rounding. TAESD's encoder sees pixels in 0..1, which
are never negative, so a block whose convolutions are zero is the identity (its ReLU changes nothing), and means of 4 x 4 pixels are two
strided convolutions. The decoder is trained by `training/decoders.py`.
"""

from pathlib import Path

import torch

from . import picture_latent
from .host import load_host
from .latent import COLOUR_MEAN, COLOUR_STD


def build(seed: int = 0) -> torch.nn.Module:
    """A `TAESD` with the hand-written encoder and a freshly initialised decoder."""
    load_host()
    import comfy.taesd.taesd

    torch.manual_seed(seed)
    model = comfy.taesd.taesd.TAESD(latent_channels=picture_latent.CHANNELS)
    with torch.no_grad():
        _write_encoder(model.taesd_encoder)
        _initialise_decoder(model.taesd_decoder)
    return model


def save(model: torch.nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write the VAE in half precision, in the layout that VAELoader reads."""
    from safetensors.torch import save_file

    save_file({name: value.detach().half().cpu().contiguous() for name, value in model.state_dict().items()}, path, metadata=metadata)


def _write_encoder(encoder: torch.nn.Sequential) -> None:
    """Weights that make the encoder the linear latent: copy, halve, halve, then the four cells of an 8-pixel cell become channels."""
    for weight in encoder.parameters():
        weight.zero_()
    convolutions = [layer for layer in encoder if isinstance(layer, torch.nn.Conv2d)]
    first, *halves, last = convolutions
    for i in range(3):
        first.weight[i, i, 1, 1] = 1.0
        # A strided window of 3 x 3 with one pixel of padding begins one pixel early; the cell's own pixels are its last two rows and columns.
        for half in halves[:2]:
            half.weight[i, i, 1:, 1:] = 0.25
        for row in range(2):
            for column in range(2):
                halves[2].weight[(row * 2 + column) * 3 + i, i, 1 + row, 1 + column] = 1.0
    # Pixels p in 0..1 are 2 p - 1 in the latent's definition; spare channels store a normalised zero.
    for i in range(picture_latent.USED):
        last.weight[i, i, 1, 1] = 2 / (COLOUR_STD * picture_latent.SCALE)
    last.bias.fill_(picture_latent.SHIFT)
    last.bias[: picture_latent.USED] += -(1 + COLOUR_MEAN) / (COLOUR_STD * picture_latent.SCALE)


def _initialise_decoder(decoder: torch.nn.Sequential) -> None:
    """A decoder that interpolates the means of the 8-pixel cells linearly, with every other weight free to learn from there.

    A colour travels as two channels, its positive and its negative part, so the ReLUs between the layers change nothing. Nearest
    upsampling and a window (1, 2, 1) / 4 is linear interpolation. Blocks start as the identity: the last convolution of each is zero.
    """
    import comfy.taesd.taesd

    for module in decoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    for module in decoder.modules():
        if isinstance(module, comfy.taesd.taesd.Block):
            module.conv[-1].weight.zero_()
    first, *doublings, last = (layer for layer in decoder if isinstance(layer, torch.nn.Conv2d))
    used = picture_latent.USED
    first.weight[: 2 * used].zero_()
    for i in range(used):
        for sign, row in ((1.0, i), (-1.0, used + i)):
            first.weight[row, i, 1, 1] = sign * picture_latent.SCALE
            first.bias[row] = -sign * picture_latent.SCALE * picture_latent.SHIFT
    window = torch.tensor([0.25, 0.5, 0.25])
    window = window[:, None] * window
    for level, layer in enumerate(doublings):
        count = used if level == 0 else 3  # the four cells' colours become one, their mean
        layer.weight[:6].zero_()
        for i in range(count):
            for sign, row in ((1.0, i % 3), (-1.0, 3 + i % 3)):
                layer.weight[row, i] = sign * window * 3 / count
                layer.weight[row, count + i] = -sign * window * 3 / count
    last.weight.zero_()
    for i in range(3):
        last.weight[i, i, 1, 1], last.weight[i, 3 + i, 1, 1] = COLOUR_STD / 2, -COLOUR_STD / 2
    last.bias.fill_((1 + COLOUR_MEAN) / 2)


COARSE_LAYERS = 11  # layers of the decoder up to the blocks at a quarter of the size


def decode_cells(model: torch.nn.Module, stored: torch.Tensor) -> torch.Tensor:
    """The 4-pixel cells [B, 3, 2 h, 2 h] in normalised units that the decoder carries after its first doubling, from stored latents [B, 16, h, h]."""
    x = torch.nn.Sequential(*list(model.taesd_decoder)[:COARSE_LAYERS])(stored)
    return x[:, :3] - x[:, 3:6]
