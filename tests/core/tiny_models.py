"""A tiny random model of every family, made with the host's own classes, and what its attention calls are.

    host_inprocess.import_host()
    with torch.inference_mode():                     # as the server does
        model = tiny("wan")                          # Tiny: patcher, positive, negative, latent, facts; unpacks in this order
        out = sample(model.patcher, model)           # two Euler steps through the host's sampling, CFG on

``NAMES`` are all this host has; what they are made of is in ``tiny_recipes``. ``Facts.calls(text)`` lists the attention calls of one model call in order, written by hand from
the host's source and not by the adapters, as ``block kind: queries | keys``, where a side is a list of spans like
``text5 video3x2x3`` and keys are left out when they are the queries. ``text`` is the number of prompt tokens in that call.

Weights are random but seeded, fp32, with fan-in scaling, so outputs depend on every input. Models are cached per process;
never change their weights. ``prompts=(5, 3)`` gives positive and negative prompts of unequal length.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import host_inprocess
import torch
from attention_loom.bench.host import of_this_host
from tiny_recipes import RECIPES, Facts
from torch import Tensor

SEED = 20


class Tiny(NamedTuple):
    """A model with all that a sampling run needs. latent: fp32, zeros; positive, negative: host conditionings."""

    patcher: Any
    positive: list[Any]
    negative: list[Any]
    latent: Tensor
    facts: Facts


def _here() -> tuple[str, ...]:
    """The recipes whose model this host has, read from its source, as tests are named before the host is imported."""

    def says(file: str, text: str) -> bool:
        path = host_inprocess.host_dir() / "comfy" / file
        return not text or (path.is_file() and text in path.read_text(encoding="utf-8"))

    return tuple(name for name, recipe in RECIPES.items() if says("supported_models.py", f"\nclass {recipe.config}(") and says(*recipe.needs))


NAMES = _here() or tuple(RECIPES)


def here(*names: str) -> list[str]:
    """Those of these recipes whose model this host has; a name that no recipe has is an error."""
    return [name for name in names if RECIPES[name] and name in NAMES]


def tiny(name: str, prompts: tuple[int, int] | None = None, latent: tuple[int, ...] | None = None) -> Tiny:
    """A model and its inputs. prompts: tokens of the positive and the negative; latent: another latent shape."""
    recipe = RECIPES[name]
    g = torch.Generator().manual_seed(SEED)
    positive, negative = ([[torch.randn(1, n, recipe.width, generator=g), recipe.extra(g, n)]] for n in prompts or recipe.prompts)
    return Tiny(_model(name), positive, negative, torch.zeros(latent or recipe.latent), recipe.facts)


def sample(patcher: Any, model: Tiny, steps: int = 2, cfg: float = 3.0, sampler: str = "euler", **more: Any) -> Tensor:
    """The sampled latent (of two, the picture's), through ``comfy.sample.sample``: seeded noise, positive and negative conditioning."""
    import comfy.sample

    latent = model.latent if model.facts.sound is None else with_sound(model.latent, model.facts.sound)
    noise = comfy.sample.prepare_noise(latent, SEED)
    if model.facts.sigma is not None:
        more = {"sigmas": torch.linspace(model.facts.sigma, 0.0, steps + 1)} | more
    out = comfy.sample.sample(patcher, noise, steps, cfg, sampler, "simple", model.positive, model.negative, latent, disable_pbar=True, seed=SEED, **more)
    return out if model.facts.sound is None else out.unbind()[0]


def with_sound(picture: Tensor, shape: tuple[int, ...]) -> Any:
    import comfy.nested_tensor

    return comfy.nested_tensor.NestedTensor([picture, torch.zeros(shape)])


@cache
def _model(name: str) -> Any:
    """The ModelPatcher. Weights are inference tensors, as in the server, when called inside inference mode."""
    import comfy.model_patcher
    import comfy.sd
    import comfy.supported_models
    import comfy.utils

    recipe = RECIPES[name]
    config = getattr(comfy.supported_models, recipe.config)(of_this_host(recipe.unet))
    config.unet_config.update(recipe.forced)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    randomise(model.diffusion_model)
    if not recipe.loader:
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / f"{name}.safetensors")
        state = {k: v.contiguous() for k, v in model.diffusion_model.state_dict().items()}
        comfy.utils.save_torch_file(state, path, metadata=recipe.metadata)
        loaded = comfy.sd.load_diffusion_model(path, model_options={"dtype": torch.float32})
    if type(loaded.model) is not type(model):
        raise AssertionError(f"{name}: the host read {type(loaded.model).__name__} from a {type(model).__name__}")
    return loaded


def randomise(module: torch.nn.Module) -> None:
    """Seeded weights of ordinary size: matrices by fan-in, norms near one, the rest small."""
    g = torch.Generator().manual_seed(SEED)
    for key, p in (*module.named_parameters(), *((k, b) for k, b in module.named_buffers() if k.endswith(("pos_embed", "rope.inv_freq")))):
        value = torch.randn(p.shape, generator=g)
        if p.ndim >= 2:
            value /= max(1.0, p[0].numel()) ** 0.5
        elif "norm" in key and key.endswith(("weight", "scale")):
            value = 1 + 0.1 * value
        else:
            value *= 0.1
        p.data.copy_(value)
