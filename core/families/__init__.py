"""Which family a model belongs to."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ..errors import UnsupportedModel
from .base import Family

_WITHOUT = "calls its attention without the options by which a pack reaches it"
OUT_OF_REACH = {"ErnieImageModel": f"ERNIE-Image {_WITHOUT}", "PixArtMS": f"PixArt {_WITHOUT}", "HunYuanDiT": f"HunyuanDiT {_WITHOUT}"}
"""Classes of whole families that cannot be hooked, with the reason."""


@lru_cache(maxsize=1)
def families() -> tuple[Family, ...]:
    """All adapters, most specific first."""
    from . import (
        anima,
        aura,
        cogvideo,
        cosmos,
        flux,
        hidream,
        hidream_o1,
        hunyuan_video,
        ideogram,
        joyimage,
        kandinsky5,
        krea,
        lens,
        ltx,
        ltx_av,
        lumina,
        mage_flow,
        minimax_h3,
        mochi,
        omnigen,
        pixeldit,
        qwen_image,
        sd3,
        unet,
        wan,
    )

    return (
        wan.Wan(),
        hunyuan_video.HunyuanVideo(),
        ltx_av.LTXAV(),
        ltx.LTX(),
        mochi.Mochi(),
        anima.Anima(),
        cosmos.Cosmos(),
        cogvideo.CogVideoX(),
        kandinsky5.Kandinsky5(),
        minimax_h3.MiniMaxH3(),
        flux.Flux(),
        sd3.SD3(),
        mage_flow.MageFlow(),
        qwen_image.QwenImage(),
        lumina.Lumina(),
        hidream.HiDream(),
        omnigen.OmniGen2(),
        aura.AuraFlow(),
        hidream_o1.HiDreamO1(),
        krea.Krea(),
        ideogram.Ideogram(),
        lens.Lens(),
        joyimage.JoyImage(),
        pixeldit.PixelDiT(),
        unet.UNet(),
    )


def known_words() -> str:
    """Names of the families whose joint attention tells where words act, for messages."""
    return ", ".join(f.name for f in families() if f.word_stacks)


def family_of(model: Any) -> Family:
    """The adapter of a diffusion model (``patcher.model.diffusion_model``).

    Raises UnsupportedModel naming the class, the reason if known, and what is supported.
    """
    for name in (c.__name__ for c in type(model).__mro__):
        if name in OUT_OF_REACH:
            raise UnsupportedModel(f"{name} cannot be used: {OUT_OF_REACH[name]}.")
    for family in families():
        refused = family.refuses(model)
        if refused is not None:
            raise UnsupportedModel(f"{refused} cannot be used: {family.refused[refused]}. Use another {family.name} model.")
    for family in families():
        if family.matches(model):
            return family
    known = ", ".join(f.name for f in families())
    raise UnsupportedModel(f"the model class {type(model).__name__} is not known to Attention Loom; supported are {known}.")
