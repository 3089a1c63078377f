"""SD 1.5, SDXL, SDXS and SVD."""

from __future__ import annotations

from collections.abc import Callable

from .base import Facts, Recipe, pooled

_UNET = dict(
    use_checkpoint=False, image_size=32, use_spatial_transformer=True, legacy=False, adm_in_channels=None, in_channels=4, out_channels=4, model_channels=320,
    num_res_blocks=[1, 1], transformer_depth=[1, 2], transformer_depth_output=[1, 1, 2, 2], channel_mult=[1, 1], transformer_depth_middle=1,
    use_linear_in_transformer=False, context_dim=768, use_temporal_resblock=False, use_temporal_attention=False,
)  # fmt: skip


def _unet_layers(layers: list[tuple[str, str]]) -> Callable[[int], list[str]]:
    return lambda n: [f"{block} {part}" for block, grid in layers for part in (f"self: image1x{grid}", f"cross: image1x{grid} | text{n}")]


_SD15_LAYERS = [
    ("input 1.0", "4x6"), ("input 3.0", "2x3"), ("input 3.1", "2x3"), ("middle 0.0", "2x3"),
    ("output 0.0", "2x3"), ("output 0.1", "2x3"), ("output 1.0", "2x3"), ("output 1.1", "2x3"), ("output 2.0", "4x6"), ("output 3.0", "4x6"),
]  # fmt: skip
_KOALA_LAYERS = [
    *((f"input 3.{i}", "2x3") for i in range(2)), *((f"input 5.{i}", "1x2") for i in range(5)), ("middle 0.0", "1x2"),
    *((f"output {b}.{i}", "1x2") for b in (0, 1) for i in range(5)), *((f"output {b}.{i}", "2x3") for b in (2, 3) for i in range(2)),
]  # fmt: skip


def _sdxs_calls(n: int) -> list[str]:
    """At the top both attentions of a layer read the text, and there is no middle."""
    calls = _unet_layers([layer for layer in _SD15_LAYERS if layer[0] != "middle 0.0"])(n)
    return [call.replace("self: image1x4x6", f"cross: image1x4x6 | text{n}") for call in calls]


def _svd_calls(n: int) -> list[str]:
    out = []
    for block, size in (("input 1", "4x6"), ("input 3", "2x3"), ("middle 0", "2x3"), ("output 0", "2x3"), ("output 1", "2x3"), ("output 2", "4x6"), ("output 3", "4x6")):
        out += [f"{block}.0 self: image1x{size}", f"{block}.0 cross: image1x{size} | text{n}", f"{block}.1 self: video3x1x1", f"{block}.1 cross: video3x1x1 | text{n}"]
    return out


RECIPES: dict[str, Recipe] = {
    "sd15": Recipe(
        "SD15", _UNET, (1, 4, 4, 6), 768, Facts("SD 1.5 / SDXL", 8, (1, 4, 6), _unet_layers(_SD15_LAYERS), still=True), loader=True, joined=True,
    ),
    "sdxl": Recipe(
        "KOALA_700M",
        _UNET | dict(num_res_blocks=[1, 1, 1], transformer_depth=[0, 2, 5], transformer_depth_output=[0, 0, 2, 2, 5, 5], channel_mult=[1, 1, 1], num_classes="sequential",
                     use_linear_in_transformer=True, context_dim=2048, adm_in_channels=2816),
        (1, 4, 4, 6), 2048, Facts("SD 1.5 / SDXL", 5, (1, 4, 6), _unet_layers(_KOALA_LAYERS), still=True), loader=True, extra=pooled(1280), joined=True,
    ),
    "sdxs": Recipe(
        "SD15", _UNET | dict(transformer_depth_middle=-2, disable_self_attentions=[True, False]), (1, 4, 4, 6), 768, Facts("SD 1.5 / SDXL", 8, (1, 4, 6), _sdxs_calls, still=True), joined=True,
    ),
    "svd": Recipe(
        "SVD_img2vid",
        _UNET | dict(in_channels=8, model_channels=64, transformer_depth=[1, 1], transformer_depth_output=[1, 1, 1, 1], use_linear_in_transformer=True, context_dim=48,
                     num_classes="sequential", adm_in_channels=768, extra_ff_mix_layer=True, use_spatial_context=True, merge_strategy="learned_with_images", merge_factor=0.0,
                     video_kernel_size=[3, 1, 1], use_temporal_resblock=True, use_temporal_attention=True, disable_temporal_crossattention=False),
        (3, 4, 4, 6), 48, Facts("SD 1.5 / SDXL", 1, (3, 4, 6), _svd_calls), joined=True,
    ),
}  # fmt: skip
