"""Which family a model belongs to."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ..errors import UnsupportedModel
from .base import Family


@lru_cache(maxsize=1)
def families() -> tuple[Family, ...]:
    """All adapters, most specific first."""
    from . import cosmos, flux, hunyuan_video, ltx, ltx_av, lumina, mochi, qwen_image, sd3, unet, wan

    return (
        wan.Wan(),
        hunyuan_video.HunyuanVideo(),
        ltx_av.LTXAV(),
        ltx.LTX(),
        mochi.Mochi(),
        cosmos.Cosmos(),
        flux.Flux(),
        sd3.SD3(),
        qwen_image.QwenImage(),
        lumina.Lumina(),
        unet.UNet(),
    )


def family_of(model: Any) -> Family:
    """The adapter of a diffusion model (``patcher.model.diffusion_model``).

    Raises UnsupportedModel naming the class, the reason if known, and what is supported.
    """
    names = [c.__name__ for c in type(model).__mro__]
    for family in families():
        for refused, reason in family.refused.items():
            if refused in names:
                raise UnsupportedModel(f"{refused} cannot be used: {reason}. Use another {family.name} model.")
    for family in families():
        if family.matches(model):
            return family
    known = ", ".join(f.name for f in families())
    raise UnsupportedModel(f"the model class {names[0]} is not known to Attention Loom; supported are {known}.")
