"""Small pictures of what was learned so far, drawn with the model as it stands in the middle of a training: each concept alone, and all together."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..differentiable import plain

if TYPE_CHECKING:
    from .trainer import Training

SEED = 7


@dataclass(frozen=True)
class Sketcher:
    """steps: of a plain Euler sampler; cfg: guidance scale; template: of the prompts, as in :class:`words.Prompts`, None = that of the training."""

    steps: int = 12
    cfg: float = 5.0
    template: str | None = None

    def __call__(self, training: Training, model: Any, options: dict[str, Any], device: torch.device) -> None:
        """Add one latent (as the model has them) per prompt to the training's sketches."""
        prompts = training.prompts
        kept, prompts.template = prompts.template, self.template or prompts.template
        try:
            orders = [(c,) for c in training.every] + ([training.every] if len(training.every) > 1 else [])
            for order in orders:
                name = " + ".join(prompts.concepts[c].name for c in order)
                training.sketches.append((training.done, name, self._draw(training, model, options, order, device)))
        finally:
            prompts.template = kept

    def _draw(self, training: Training, model: Any, options: dict[str, Any], order: tuple[int, ...], device: torch.device) -> Tensor:
        from comfy.samplers import calculate_sigmas

        from .trainer import predicted

        latent = plain(training.lesson.latent)
        texts = [plain(training.prompts.encode(training.prompts.write(order)))]
        if self.cfg != 1.0:
            texts.append(plain(training.prompts.encode(training.prompts.plain(""))))
        sigmas = plain(calculate_sigmas(model.model_sampling, "normal", self.steps)).to(device)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(SEED)).to(device)
        empty = torch.zeros_like(noise)
        x = model.model_sampling.noise_scaling(sigmas[:1], noise, empty, True)
        for now, then in pairwise(sigmas):
            clean = [predicted(model, options, x, now[None], text, empty) for text in texts]
            guided = clean[0] if len(clean) == 1 else clean[1] + self.cfg * (clean[0] - clean[1])
            x = guided + (x - guided) * (then / now)
        return x.cpu()


def rough(latent: Tensor, latent_format: Any) -> Any:
    """A PIL picture of a latent as the model has it, by the host's own rough colours; None where the format has none."""
    import latent_preview

    factors = latent_format.latent_rgb_factors
    if factors is None:
        return None
    previewer = latent_preview.Latent2RGBPreviewer(factors, getattr(latent_format, "latent_rgb_factors_bias", None), getattr(latent_format, "latent_rgb_factors_reshape", None))
    return previewer.decode_latent_to_preview(plain(latent).float())
