"""Which checkpoint files belong together, how they are sampled, and how the host loads them.

    model, clip = load(BUNDLES["sd3"], CHECKPOINTS)

`sampling` draws from a bundle. Everything goes through ComfyUI's own loaders, but for the text encoders and the small U-Net, which `comfy_node` loads
into the host's own classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import world
from .host import load_host
from .scenes import Caption
from .scoreboard.checkpoints import checked


@dataclass(frozen=True)
class Settings:
    """What KSampler is told. `shift` is that of ModelSamplingSD3; None leaves the model's own noise schedule."""

    steps: int = 16
    cfg: float = 3.0
    sampler: str = "euler"
    scheduler: str = "simple"
    shift: float | None = 3.0


@dataclass(frozen=True)
class Bundle:
    """Files of one model and its native sampling.

    family: class of the host's model object. size: pixels of a native picture; largest: pixels beyond which the model has no positions.
    latent_frames: of a native clip, None for pictures. first_world: its captions are those of `world`, not of `scenes`.
    """

    name: str
    model: str
    text: str
    vae: str
    family: str
    size: int
    latent_frames: int | None
    settings: Settings = Settings()
    largest: int | None = None
    first_world: bool = False

    @property
    def moving(self) -> bool:
        """Whether it draws clips."""
        return self.latent_frames is not None

    def parse(self, caption: str) -> Any:
        """The caption as an object; a ValueError in one sentence if this model was not made for it."""
        if self.first_world:
            return world.Caption.parse(caption)
        parsed = Caption.parse(caption)
        if parsed.moving != self.moving:
            wants = "clips, so every object needs a motion ('standing still' is one)" if self.moving else "pictures, so no object may have a motion"
            raise ValueError(f"{caption!r} does not fit {self.model}: it draws {wants}.")
        return parsed


def _scenes(name: str, vae: str, family: str, size: int, latent_frames: int | None, settings: Settings, largest: int | None = None) -> Bundle:
    files = (f"scenes_{name}.safetensors", f"scenes_{name}_text.safetensors", f"scenes_{vae}.safetensors")
    return Bundle(name, *files, family, size, latent_frames, settings, largest)


SHAPES = Bundle("shapes", "toy_wan_t2v.safetensors", "toy_umt5.safetensors", "toy_wan_vae.safetensors", "WAN21", world.SIZE, 6, first_world=True)
"""The first world's model."""
FLOW = Settings()
NOISE = Settings(steps=20, sampler="dpmpp_2m", scheduler="normal", shift=None)
BUNDLES = {
    bundle.name: bundle
    for bundle in (
        _scenes("wan_t2v", "wan_vae", "WAN21", 64, 9, FLOW),
        _scenes("wan_forcing", "wan_vae", "WAN21", 64, 9, FLOW),
        _scenes("sd3", "picture_vae", "SD3", 128, None, FLOW, largest=256),
        _scenes("sd15", "picture_vae", "BaseModel", 128, None, NOISE),
    )
}
"""The second world's models by name."""


@lru_cache(maxsize=3)
def load(bundle: Bundle, folder: Path) -> tuple[Any, Any]:
    """MODEL (with the bundle's shift) and CLIP from the files in `folder`; a ValueError in one sentence if they are not the bundle's."""
    folder = Path(folder)
    checked(folder, ((bundle.model, "diffusion_models"), (bundle.text, "text_encoders")))
    load_host()
    import torch

    from .comfy_node import load_text_encoder

    with torch.inference_mode():
        model = _model(bundle, folder / bundle.model)
        clip = load_text_encoder(str(folder / bundle.text))
    return with_shift(model, bundle.settings.shift), clip


@lru_cache(maxsize=2)
def load_vae(bundle: Bundle, folder: Path) -> Any:
    """VAE of a bundle, as VAELoader makes it; a ValueError in one sentence if the file is absent, broken or foreign."""
    folder = Path(folder)
    checked(folder, ((bundle.vae, "vae"),))
    load_host()
    import comfy.sd
    import comfy.utils
    import torch

    with torch.inference_mode():
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(folder / bundle.vae)))
    wanted = 3 if bundle.moving else 2  # axes of a latent beside batch and channels
    if vae.first_stage_model is None or vae.latent_dim != wanted:
        raise ValueError(f"{folder / bundle.vae} is no VAE of {'clips' if bundle.moving else 'pictures'}; put the toy world's own {bundle.vae} there.")
    return vae


def with_shift(model: Any, shift: float | None) -> Any:
    """The MODEL through the host's ModelSamplingSD3, or as it is."""
    if shift is None:
        return model
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, shift)[0]


def _model(bundle: Bundle, path: Path) -> Any:
    if bundle.family == "BaseModel":  # the U-Net, which the host's own loader does not know in this size
        from .comfy_node import load_unet

        return load_unet(str(path))
    import comfy.sd

    try:
        model = comfy.sd.load_diffusion_model(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path} holds no diffusion model that ComfyUI knows ({' '.join(str(error).split())[:200]}).") from error
    found = type(model.model).__name__
    if found != bundle.family:
        raise ValueError(f"{path} holds a model of class {found}, and {bundle.name} is of class {bundle.family}; put the toy world's own file there.")
    return model


def release() -> None:
    """Forget all loaded models."""
    load.cache_clear()
    load_vae.cache_clear()


def changed(settings: Settings, **values: Any) -> Settings:
    """The settings with some values replaced; None keeps a value."""
    return replace(settings, **{name: value for name, value in values.items() if value is not None})
