"""Sample many clips of the shapes world through ComfyUI's own loaders, sampler and VAE, in this process.

    frames = sample_clips(["a red circle moving right"] * 8, latent_frames=18, seeds=range(8), patch=my_node_on)

`patch` receives the loaded MODEL (a `ModelPatcher`) and returns the one to sample: that is where a node of the pack is attached. The same
caption and seed give the same noise whatever the batch, so two calls that differ only in `patch` are paired.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch

from . import latent, world
from .host import CHECKPOINTS, load_host

SHIFT = 3.0  # the flow shift of training; ComfyUI's default for Wan is 8
BATCH = 16  # clips denoised together


@lru_cache(maxsize=2)
def _loaded(folder: Path):
    """MODEL, CLIP and VAE of the committed checkpoints, as UNETLoader, the toy text encoder node and VAELoader make them."""
    load_host()
    import comfy.sd
    import comfy.utils
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    from . import text_encoder

    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model(str(folder / "toy_wan_t2v.safetensors"))
        model = ModelSamplingSD3().patch(model, SHIFT)[0]
        clip = text_encoder.load(folder / "toy_umt5.safetensors")
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(folder / "toy_wan_vae.safetensors")))
    return model, clip, vae


def _check_folder(folder: Path) -> None:
    missing = [name for name in ("toy_wan_t2v", "toy_umt5", "toy_wan_vae") if not (folder / f"{name}.safetensors").is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}.safetensors; train it with `python -m attention_loom.toyworld.train` and `.train_vae`.")


def noise_of(seed: int, latent_frames: int) -> torch.Tensor:
    """The noise [1, 16, T, 8, 8] that KSampler would draw for this seed and one clip."""
    return torch.randn(1, 16, latent_frames, world.SIZE // 8, world.SIZE // 8, generator=torch.manual_seed(seed))


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
    captions, seeds = list(captions), list(seeds)
    if len(captions) != len(seeds):
        raise ValueError(f"{len(captions)} captions need as many seeds, not {len(seeds)}.")
    for caption in captions:
        world.Caption.parse(caption)
    _check_folder(Path(folder))
    model, clip, _ = _loaded(Path(folder))
    import comfy.sample

    model = patch(model) if patch else model
    with torch.inference_mode():
        contexts = {text: clip.encode_from_tokens(clip.tokenize(text)) for text in {*captions, ""}}
        out = []
        for start in range(0, len(captions), batch):
            part, part_seeds = captions[start : start + batch], seeds[start : start + batch]
            noise = torch.cat([noise_of(seed, latent_frames) for seed in part_seeds])
            positive = [[torch.cat([contexts[text] for text in part]), {}]]
            negative = [[contexts[""].repeat(len(part), 1, 1), {}]]
            out.append(comfy.sample.sample(model, noise, steps, cfg, "euler", "simple", positive, negative, torch.zeros_like(noise), disable_pbar=True, seed=part_seeds[0]))
    return torch.cat(out)


def decode_clips(latents: torch.Tensor, decoder: str = "vae", folder: Path = CHECKPOINTS) -> torch.Tensor:
    """Frames [n, 4 T - 3, 64, 64, 3] in 0..1 of latents in the VAE's units. `decoder` is "vae", or "linear": instant and blurred."""
    if decoder not in ("vae", "linear"):
        raise ValueError(f"decoder is 'vae' or 'linear', not {decoder!r}.")
    _check_folder(Path(folder))
    _, _, vae = _loaded(Path(folder))
    with torch.inference_mode():
        if decoder == "vae":
            return torch.cat([vae.decode(latents[i : i + 8]).reshape(len(latents[i : i + 8]), -1, world.SIZE, world.SIZE, 3) for i in range(0, len(latents), 8)])
        import comfy.latent_formats

        normalised = comfy.latent_formats.Wan21().process_in(latents)
        coarse = torch.stack([latent.decode(clip) for clip in normalised])
        flat = coarse.flatten(0, 1).permute(0, 3, 1, 2)
        fine = torch.nn.functional.interpolate(flat, (world.SIZE, world.SIZE), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
        return fine.reshape(*coarse.shape[:2], world.SIZE, world.SIZE, 3)


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
