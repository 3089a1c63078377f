"""Draw many clips or pictures of the toy worlds through ComfyUI's own loaders, samplers and VAE, in this process.

    frames = sample(BUNDLES["sd3"], ["a red circle on a grey background"] * 8, seeds=range(8), patch=my_node_on)

`patch` receives the loaded MODEL (a `ModelPatcher`) and returns the one to sample: that is where a node of the pack is attached. The same
caption and seed give the same noise whatever the batch, so two calls that differ only in `patch` are paired. `sample_clips` and its like are the same
for the first world's model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import latent, picture_latent, world
from .bundles import SHAPES, Bundle, Settings, load, load_vae, with_shift
from .host import CHECKPOINTS

BATCH = 16  # clips or pictures denoised together
DECODERS = ("vae", "linear")


def noise_of(seed: int, latent_frames: int | None, size: int = world.SIZE) -> torch.Tensor:
    """The noise [1, 16, T, size/8, size/8] (without T for a picture) that KSampler would draw for this seed and one clip or picture."""
    time = () if latent_frames is None else (latent_frames,)
    return torch.randn(1, 16, *time, size // 8, size // 8, generator=torch.manual_seed(seed))


def sample(bundle: Bundle, captions: Sequence[str], seeds: Sequence[int], patch: Callable | None = None, decoder: str = "vae", folder: Path = CHECKPOINTS, **how) -> torch.Tensor:
    """Draw and decode: frames [n, F, size, size, 3] in 0..1, F = 4 T - 3 for clips and 1 for pictures. `how`: see `draw`."""
    _check_decoder(decoder)
    return decode(bundle, draw(bundle, captions, seeds, patch, folder, **how), decoder, folder)


def draw(
    bundle: Bundle,
    captions: Sequence[str],
    seeds: Sequence[int],
    patch: Callable | None = None,
    folder: Path = CHECKPOINTS,
    *,
    latent_frames: int | None = None,
    size: int | None = None,
    settings: Settings | None = None,
    batch: int = BATCH,
) -> torch.Tensor:
    """Latents [n, 16, T, size/8, size/8] (no T for pictures) in the VAE's units: the LATENT of KSampler.

    Length, size (pixels) and settings are the bundle's own unless given. A ValueError in one sentence for a request that does not fit.
    """
    captions, seeds = list(captions), list(seeds)
    latent_frames, size = _checked_request(bundle, captions, seeds, latent_frames, size)
    settings = settings or bundle.settings
    model, clip = load(bundle, Path(folder))
    if settings.shift != bundle.settings.shift:
        model = with_shift(model, settings.shift)
    import comfy.sample

    model = patch(model) if patch else model
    out = []
    with torch.inference_mode():
        encoded = {text: clip.encode_from_tokens(clip.tokenize(text), return_pooled=True) for text in {*captions, ""}}
        for start in range(0, len(captions), batch):
            part, part_seeds = captions[start : start + batch], seeds[start : start + batch]
            noise = torch.cat([noise_of(seed, latent_frames, size) for seed in part_seeds])
            positive, negative = _conditioning([encoded[text] for text in part]), _conditioning([encoded[""]] * len(part))
            drawn = comfy.sample.sample(
                model, noise, settings.steps, settings.cfg, settings.sampler, settings.scheduler, positive, negative, torch.zeros_like(noise), disable_pbar=True, seed=part_seeds[0]
            )
            out.append(drawn)
    return torch.cat(out)


def decode(bundle: Bundle, latents: torch.Tensor, decoder: str = "vae", folder: Path = CHECKPOINTS) -> torch.Tensor:
    """Frames [n, F, size, size, 3] in 0..1 of latents in the VAE's units. `decoder` is "vae", or "linear": instant, needs no VAE, and blurred."""
    _check_decoder(decoder)
    size = 8 * latents.shape[-1]
    with torch.inference_mode():
        if decoder == "linear":
            return _linear(bundle, latents, size)
        vae = load_vae(bundle, Path(folder))
        return torch.cat([vae.decode(latents[i : i + 8]).reshape(len(latents[i : i + 8]), -1, size, size, 3) for i in range(0, len(latents), 8)])


def round_trip(bundle: Bundle, frames: torch.Tensor, decoder: str = "vae", folder: Path = CHECKPOINTS) -> torch.Tensor:
    """Frames [F, size, size, 3] through the encoder and back, in the same shape. Size must be a multiple of 8, and F 4 n + 1 (1 for pictures)."""
    _check_decoder(decoder)
    if decoder == "linear":
        normalised = latent.encode(frames) if bundle.moving else picture_latent.encode(frames[0])
        return decode(bundle, _format(bundle).process_out(normalised[None]), "linear")[0]
    _check_size(bundle, frames.shape[1])
    with torch.inference_mode():
        encoded = load_vae(bundle, Path(folder)).encode(frames)
    return decode(bundle, encoded, "vae", folder)[0]


def _format(bundle: Bundle) -> Any:
    import comfy.latent_formats

    return comfy.latent_formats.Wan21() if bundle.moving else comfy.latent_formats.SD3()


def _linear(bundle: Bundle, latents: torch.Tensor, size: int) -> torch.Tensor:
    normalised = _format(bundle).process_in(latents)
    coarse = torch.stack([latent.decode(one) if bundle.moving else picture_latent.decode(one)[None] for one in normalised])
    flat = coarse.flatten(0, 1).permute(0, 3, 1, 2)
    fine = torch.nn.functional.interpolate(flat, (size, size), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    return fine.reshape(*coarse.shape[:2], size, size, 3)


def _conditioning(encoded: list[tuple[torch.Tensor, torch.Tensor | None]]) -> list:
    """A CONDITIONING whose batch has one prompt per clip."""
    pooled = None if encoded[0][1] is None else torch.cat([pooled for _, pooled in encoded])
    return [[torch.cat([context for context, _ in encoded]), {"pooled_output": pooled}]]


def _checked_request(bundle: Bundle, captions: list[str], seeds: list[int], latent_frames: int | None, size: int | None) -> tuple[int | None, int]:
    """Length and size to draw; a ValueError in one sentence for what does not fit the bundle."""
    if not captions or len(captions) != len(seeds):
        raise ValueError(f"{len(captions)} captions need as many seeds (at least one), not {len(seeds)}.")
    for caption in captions:
        bundle.parse(caption)
    if latent_frames is not None and not bundle.moving:
        raise ValueError(f"{bundle.model} draws pictures and takes no number of latent frames; {latent_frames} were asked for.")
    if latent_frames is not None and latent_frames < 1:
        raise ValueError(f"A clip has at least one latent frame, not {latent_frames}.")
    size = bundle.size if size is None else size
    _check_size(bundle, size)
    return latent_frames or bundle.latent_frames, size


def _check_size(bundle: Bundle, size: int) -> None:
    if size % 8 or size < 32:
        raise ValueError(f"A side of {size} pixels does not fit {bundle.model}: it must be a multiple of 8 and at least 32; {bundle.size} is native.")
    if bundle.largest is not None and size > bundle.largest:
        raise ValueError(f"A side of {size} pixels is too large for {bundle.model}: its table of positions ends at {bundle.largest} pixels; {bundle.size} is native.")


def _check_decoder(decoder: str) -> None:
    if decoder not in DECODERS:
        raise ValueError(f"decoder is 'vae' or 'linear', not {decoder!r}.")


# --- the first world's model --------------------------------------------------------------------------------------------


def sample_latents(
    captions: Sequence[str],
    latent_frames: int,
    seeds: Sequence[int],
    patch: Callable | None = None,
    steps: int = 16,
    cfg: float = 3.0,
    folder: Path = CHECKPOINTS,
    batch: int = BATCH,
) -> torch.Tensor:
    """Latents [n, 16, T, 8, 8] in the VAE's units (the LATENT of KSampler), with euler and the simple schedule."""
    return draw(SHAPES, captions, seeds, patch, folder, latent_frames=latent_frames, settings=Settings(steps=steps, cfg=cfg), batch=batch)


def decode_clips(latents: torch.Tensor, decoder: str = "vae", folder: Path = CHECKPOINTS) -> torch.Tensor:
    """Frames [n, 4 T - 3, 64, 64, 3] in 0..1 of latents in the VAE's units. `decoder` is "vae", or "linear": instant and blurred."""
    return decode(SHAPES, latents, decoder, folder)


def sample_clips(
    captions: Sequence[str],
    latent_frames: int,
    seeds: Sequence[int],
    patch: Callable | None = None,
    steps: int = 16,
    cfg: float = 3.0,
    decoder: str = "vae",
    folder: Path = CHECKPOINTS,
) -> torch.Tensor:
    """Sample and decode: frames [n, 4 T - 3, 64, 64, 3] in 0..1. Native length is 6 latent frames (21 frames)."""
    return decode_clips(sample_latents(captions, latent_frames, seeds, patch, steps, cfg, folder), decoder, folder)
