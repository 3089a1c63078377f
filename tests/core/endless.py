"""Runs the sampler of endless clips on a tiny model through the host's own guider, as SamplerCustomAdvanced does."""

import comfy.patcher_extension as extension
import comfy.sample
import comfy.samplers
import torch
from attention_loom.core.samplers.ouroboros import Ouroboros, Settings
from tiny_models import SEED

FRAMES, PARTITIONS = 3, 2
"""Of the tiny models' windows."""


def schedule(patcher, steps, name="simple"):
    return comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), name, steps)


def guider_of(model, patcher=None, cfg=3.0):
    guider = comfy.samplers.CFGGuider(patcher or model.patcher)
    guider.set_conds(model.positive, model.negative)
    guider.set_cfg(cfg)
    return guider


def make(model, frames, *, patcher=None, cfg=3.0, latent=None, sigmas=None, callback=None, seed=SEED, guider=None, mask=None, **settings):
    """The clip. latent: None = empty."""
    patcher = patcher or model.patcher
    latent = model.latent if latent is None else latent
    settings = Settings(frames, **({"partitions": PARTITIONS} | settings))
    window = settings.window or (latent.shape[0] if latent.ndim == 4 else latent.shape[2])
    sigmas = schedule(patcher, window * settings.partitions) if sigmas is None else sigmas
    noise = comfy.sample.prepare_noise(latent, seed)
    guider = guider or guider_of(model, patcher, cfg)
    return guider.sample(noise, latent, Ouroboros(settings), sigmas, denoise_mask=mask, callback=callback, disable_pbar=True, seed=seed)


def clip_of(model, seed=1):
    """A start clip, in the VAE's units."""
    return torch.randn(model.latent.shape, generator=torch.Generator().manual_seed(seed))


class Calls:
    """What the diffusion model was given, call by call."""

    def __init__(self, patcher):
        self.patcher, self.times, self.options = patcher.clone(), [], []
        self.patcher.add_wrapper_with_key(extension.WrappersMP.DIFFUSION_MODEL, "zz_test", self.see)

    def see(self, executor, x, t, *args, **kwargs):
        options = kwargs.get("transformer_options") or next(a for a in args if isinstance(a, dict))
        self.times.append(t.detach().clone())
        self.options.append(options)
        return executor(x, t, *args, **kwargs)
