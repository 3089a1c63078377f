"""One look of a model at a picture: the latent with a little noise, seen once with its prompt and without CFG, and what attention there was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attach import METHODS, attach
from ..columns import Collector, Columns
from ..errors import LoomError
from ..methods.attencraft import Capture, ConceptMaps
from .layers import Reading
from .self_map import SelfMap

STEPS = 1000
"""Noise levels a model was trained on."""


@dataclass(frozen=True, eq=False)
class Seen:
    """words [G, y, x]: attention on each asked group of tokens, mean over layers, heads and looks; places: the self map of all looks; sigma: noise level."""

    words: Tensor
    places: SelfMap
    sigma: float


def reader(model: Any, reading: Reading, into: Capture, hold_start: bool = False) -> Any:
    """A clone on which nothing of this pack acts but the reader: masks are those of the model itself, LoRAs on it included."""
    clone = attach(model, ConceptMaps(reading, into, hold_start))
    options = clone.model_options["transformer_options"]
    options[METHODS] = options[METHODS][-1:]
    return clone


def look(model: Any, positive: Any, latent: Tensor, reading: Reading, groups: tuple[tuple[int, ...], ...], timestep: float, seed: int, looks: int = 1) -> Seen:
    """Look ``looks`` times, each with a noise of its own.

    positive: host conditioning; latent [1, C, (1,) h, w] in the VAE's units; groups: positions of tokens in the prompt; timestep: 0 to 999 of
    the training's. Raises LoomError where no map was found.
    """
    into = Capture()
    clone = reader(model, reading, into)
    sigma = sigma_at(clone.get_model_object("model_sampling"), timestep)
    generator = torch.Generator().manual_seed(seed)
    context, places, words = int(positive[0][0].shape[1]), SelfMap(), []
    for _ in range(looks):
        into.words, into.places = Collector(Columns(reading.words, groups), context), places
        _call(clone, positive, latent, torch.randn(latent.shape, generator=generator), sigma)
        if into.words.maps is None or not places.layers:
            raise LoomError("no attention was seen in the layers that are read; another node replaces the attention of these blocks: take it out.")
        words.append(into.words.maps[0, :, 0])
    return Seen(torch.stack(words).mean(0), places, sigma)


def sigma_at(sampling: Any, timestep: float) -> float:
    """The noise level of a training timestep in the host's units; on flow models the share of noise itself."""
    from comfy.model_sampling import ModelSamplingDiscrete

    from ..latent import is_flow

    if is_flow(sampling):
        return max(timestep, 1.0) / STEPS
    if isinstance(sampling, ModelSamplingDiscrete):
        return float(sampling.sigma(torch.tensor(float(timestep))))
    return float(sampling.percent_to_sigma(1.0 - max(timestep, 1.0) / STEPS))  # continuous schedules count time in their own way


def _call(model: Any, positive: Any, latent: Tensor, noise: Tensor, sigma: float) -> None:
    """One evaluation of the positive prompt within the host's own sampling: models are loaded, conditionings prepared, everything is put back after it."""
    from comfy.samplers import CFGGuider

    guider = CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    guider.sample(noise, latent, OneCall(), torch.tensor([sigma, 0.0]), disable_pbar=True, seed=0)


class OneCall:
    """A sampler that evaluates the model once and keeps nothing of the result."""

    def sample(
        self, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor, latent_image: Tensor, denoise_mask: Any = None, disable_pbar: bool = False
    ) -> Tensor:
        """As the host calls it."""
        from comfy.samplers import calc_cond_batch

        model = guider.inner_model
        noised = model.model_sampling.noise_scaling(sigmas[:1], noise, latent_image)
        calc_cond_batch(model, [guider.conds["positive"]], noised, sigmas[:1].expand(len(noised)), extra_args["model_options"])
        return latent_image

    def max_denoise(self, guider: Any, sigmas: Tensor) -> bool:
        """The noise level is one that the model knows."""
        return False
