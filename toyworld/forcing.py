"""A noise level for every latent frame: a plain reference for checkpoints trained with diffusion forcing (Chen et al. 2024, arXiv 2407.01392).

The host's samplers know one level per clip, so the model is called directly, with times [B, T]. Two things are shown with it: `pyramid` draws clips
whose later frames are denoised later, and `level_errors` compares the prediction error under mixed levels with that under one level.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import latent
from .bundles import Bundle, load
from .host import CHECKPOINTS
from .sampling import noise_of
from .scenes import render
from .scenes.layout import Scene

GRID = 9  # levels of the error table: one for each frame of a native clip


def velocity(model: Any, x: torch.Tensor, levels: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Predicted noise minus clean of a flow model for x [B, 16, T, h, w] = (1 - level) clean + level noise, levels [B, T] in 0..1."""
    if levels.shape != (x.shape[0], x.shape[2]):
        raise ValueError(f"Levels have one value per clip and latent frame, [{x.shape[0]}, {x.shape[2]}], not {list(levels.shape)}.")
    return model.model.diffusion_model(x, levels * 1000, context=context).float()


def pyramid_levels(sigmas: torch.Tensor, frames: int, delay: int) -> torch.Tensor:
    """Levels [K + 1, frames] of K Euler steps: every frame walks down `sigmas` [S + 1], each frame `delay` steps after the one before it."""
    step = torch.arange(len(sigmas) + delay * (frames - 1))[:, None] - delay * torch.arange(frames)
    return sigmas[step.clamp(0, len(sigmas) - 1)]


def pyramid(bundle: Bundle, captions: Sequence[str], seeds: Sequence[int], delay: int, folder: Path = CHECKPOINTS, latent_frames: int | None = None) -> torch.Tensor:
    """Latents [n, 16, T, h, w] in the VAE's units, drawn with the bundle's settings and a pyramid of levels; `delay` 0 is one level."""
    if not captions or len(captions) != len(seeds):
        raise ValueError(f"{len(captions)} captions need as many seeds (at least one), not {len(seeds)}.")
    for caption in captions:
        bundle.parse(caption)
    model, clip = load(bundle, Path(folder))
    import comfy.model_management
    import comfy.samplers

    comfy.model_management.load_models_gpu([model])
    settings = bundle.settings
    with torch.inference_mode():
        x = torch.cat([noise_of(seed, latent_frames or bundle.latent_frames, bundle.size) for seed in seeds]).to(model.load_device)
        levels = pyramid_levels(comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), settings.scheduler, settings.steps), x.shape[2], delay).to(x)
        context = _contexts(clip, [*captions, *[""] * len(captions)]).to(x)
        for now, after in itertools.pairwise(levels):
            both = velocity(model, torch.cat([x, x]), now.expand(2 * len(x), -1), context)
            guess, bare = both.chunk(2)
            x = x + (after - now)[None, None, :, None, None] * (bare + settings.cfg * (guess - bare))
        return model.get_model_object("latent_format").process_out(x.cpu())


def level_errors(bundle: Bundle, shown: Sequence[Scene], folder: Path = CHECKPOINTS, seed: int = 0) -> dict[str, torch.Tensor]:
    """Prediction error of every clip under mixed levels, as a ratio to its error under one level: {"ascending": [n], "independent": [n]}.

    Levels are the middles of GRID equal parts of 0..1. "independent" gives every frame another one, nine times, so that each (frame, level) comes once;
    "ascending" rises from the first frame to the last. Each is compared with the same frames at the same levels when the whole clip has that
    one level, and with the same noise: 1 means that mixed neighbours cost nothing, less that cleaner neighbours help.
    """
    model, clip = load(bundle, Path(folder))
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    clean = torch.stack([latent.encode(render(scene, size=bundle.size)) for scene in shown])
    if clean.shape[2] != GRID:
        raise ValueError(f"The table of levels wants clips of {GRID} latent frames, not {clean.shape[2]}.")
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    grid = (torch.arange(GRID) + 0.5) / GRID
    order = torch.randperm(GRID, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        context = _contexts(clip, [str(scene.caption) for scene in shown])

        def errors(levels: torch.Tensor) -> torch.Tensor:
            mix = levels[None, None, :, None, None]
            guess = velocity(model, ((1 - mix) * clean + mix * noise).to(model.load_device), levels.expand(len(clean), -1).to(model.load_device), context.to(model.load_device))
            return (guess.cpu() - (noise - clean)).square().mean((1, 3, 4))  # [n, T]

        one = torch.stack([errors(level.expand(GRID)) for level in grid], 1)  # [n, level, frame]
        mixed = sum(errors(grid[(order + shift) % GRID]) for shift in range(GRID))
        rising = errors(grid)
    same = one.diagonal(dim1=1, dim2=2)
    return {"ascending": rising.sum(1) / same.sum(1), "independent": mixed.sum(1) / one.sum((1, 2))}


def _contexts(clip: Any, captions: Sequence[str]) -> torch.Tensor:
    known = {text: clip.encode_from_tokens(clip.tokenize(text)) for text in {*captions}}
    return torch.cat([known[text] for text in captions])
