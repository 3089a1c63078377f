"""HunyuanVideo and its relatives."""

from __future__ import annotations

from collections.abc import Callable

import later_hosts

from .base import VIDEO_LATENT, Facts, Recipe, clip, mask, pooled, twice

_V = "video3x2x3"
_REF = "reference6"
_HUNYUAN = dict(
    image_model="hunyuan_video", in_channels=16, patch_size=[1, 2, 2], out_channels=16, vec_in_dim=768, axes_dim=[16, 56, 56], meanflow=False,
    context_in_dim=48, hidden_size=256, mlp_ratio=4.0, num_heads=2, depth=1, depth_single_blocks=2, theta=256, qkv_bias=True, byt5=False,
    guidance_embed=True, use_cond_type_embedding=False, vision_in_dim=None,
)  # fmt: skip


def _hunyuan_calls(front: str = "", between: str = "", behind: str = "", grid: str = _V) -> Callable[[int], list[str]]:
    def calls(n: int) -> list[str]:
        picture, text = f"{front} {grid}", f"{between} text{n} {behind}"
        joint = " ".join((f"{text} {picture}" if later_hosts.hunyuan_text_first() else f"{picture} {text}").split())
        return [*twice(f"other: text{n}", kind="refiner"), f"double 0 joint: {joint}", *twice(f"joint: {joint}", kind="single")]

    return calls


RECIPES: dict[str, Recipe] = {
    "hunyuan_video": Recipe(
        "HunyuanVideo", _HUNYUAN, VIDEO_LATENT, 48, Facts("HunyuanVideo", 2, (3, 2, 3), _hunyuan_calls()), loader=True, extra=pooled(768),
    ),
    "hunyuan_video_padded_text": Recipe(
        "HunyuanVideo",
        _HUNYUAN,
        VIDEO_LATENT,
        48,
        Facts("HunyuanVideo", 2, (3, 2, 3), _hunyuan_calls()),
        extra=lambda g, n: pooled(768)(g, n) | mask(n - 1, n),
        prompts=(5, 3),  # the host joins text masks of one batch row only
    ),
    "hunyuan_video_reference": Recipe(
        "HunyuanVideo", _HUNYUAN, VIDEO_LATENT, 48, Facts("HunyuanVideo", 2, (3, 2, 3), _hunyuan_calls(front=_REF)), loader=True,
        extra=pooled(768, ref_latent=(1, 16, 1, 4, 6)), prompts=(5, 3),  # with more than one batch row the host's reference code fails
    ),
    "hunyuan_video_15": Recipe(
        "HunyuanVideo15", _HUNYUAN | dict(in_channels=65, out_channels=32, vec_in_dim=None, byt5=True, use_cond_type_embedding=True, vision_in_dim=1152, guidance_embed=False),
        (1, 32, 3, 4, 6), 48, Facts("HunyuanVideo", 2, (3, 2, 3), _hunyuan_calls(between="reference9 other4")), loader=True,
        extra=lambda g, n: pooled(768, conditioning_byt5small=(1, 4, 1472))(g, n) | clip(9, 1152)(g, n),
    ),
    "hunyuan_image": Recipe(
        "HunyuanImage21", _HUNYUAN | dict(in_channels=64, out_channels=64, vec_in_dim=None, byt5=True, patch_size=[2, 2], axes_dim=[64, 64], guidance_embed=False),
        (1, 64, 4, 6), 48, Facts("HunyuanVideo", 2, (1, 2, 3), _hunyuan_calls(behind="other4", grid="image1x2x3"), still=True), loader=True,
        extra=pooled(768, conditioning_byt5small=(1, 4, 1472)),
    ),
}  # fmt: skip
