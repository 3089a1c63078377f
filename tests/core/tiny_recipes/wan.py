"""Wan 2.1 and 2.2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .base import VIDEO_LATENT, Facts, Recipe, clip, randn, twice

_WAN = dict(
    image_model="wan2.1", model_type="t2v", dim=256, ffn_dim=64, freq_dim=256, num_heads=2, num_layers=2, patch_size=(1, 2, 2), window_size=(-1, -1),
    qk_norm=True, cross_attn_norm=True, eps=1e-6, in_dim=16, out_dim=16,
)  # fmt: skip
_V = "video3x2x3"
_REF = "reference6"


def wan(
    calls: Callable[[int], list[str]], *, config: str = "WAN21_T2V", latent: tuple[int, ...] = VIDEO_LATENT, loader: bool = True, needs: tuple[str, str] = ("", ""), **more: Any
) -> Recipe:
    """A recipe; more: entries of the configuration, and extra."""
    extra = more.pop("extra", lambda g, n: {})
    grid = (latent[2], latent[3] // 2, latent[4] // 2)
    return Recipe(config, _WAN | more, latent, 4096, Facts("Wan", 2, grid, calls), loader=loader, extra=extra, needs=needs)


def _wan_calls(n: int) -> list[str]:
    return twice(f"self: {_V}", f"cross: {_V} | text{n}")


RECIPES: dict[str, Recipe] = {
    "wan": wan(_wan_calls),
    "wan_ti2v": wan(_wan_calls, config="WAN22_T2V", latent=(1, 48, 3, 4, 6), in_dim=48, out_dim=48),
    "wan_i2v": wan(
        lambda n: twice(f"self: {_V}", f"cross: {_V} | reference257", f"cross: {_V} | text{n}"), config="WAN21_I2V",
        model_type="i2v", in_dim=36, extra=clip(257, 1280),
    ),
    # without a CLIP picture the host reads the whole prompt through the picture's projections as well
    "wan_i2v_blind": wan(
        lambda n: twice(f"self: {_V}", f"cross: {_V} | text{n}", f"cross: {_V} | text{n}"), config="WAN21_I2V", model_type="i2v", in_dim=36,
    ),
    "wan_fun_reference": wan(
        lambda n: twice(f"self: {_REF} {_V}", f"cross: {_REF} {_V} | text{n}"), in_dim_ref_conv=16,
        extra=lambda g, n: {"reference_latents": [randn(g, 1, 16, 1, 4, 6)]},
    ),
    "wan_phantom": wan(
        lambda n: twice(f"self: {_V} reference12", f"cross: {_V} reference12 | text{n}"),
        extra=lambda g, n: {"time_dim_concat": randn(g, 1, 16, 2, 4, 6)},
    ),
    "wan_vace": wan(
        lambda n: [f"{b} {p}" for b in ("block 0", "vace 0", "block 1") for p in (f"self: {_V}", f"cross: {_V} | text{n}")],
        config="WAN21_Vace", model_type="vace", vace_layers=1, vace_in_dim=96,
    ),
    "wan_camera": wan(
        lambda n: twice(f"self: {_V}", f"cross: {_V} | reference257", f"cross: {_V} | text{n}"), config="WAN21_Camera",
        model_type="camera", in_dim=32, extra=lambda g, n: clip(257, 1280)(g, n) | {"camera_conditions": randn(g, 1, 24, 3, 32, 48)},
    ),
}  # fmt: skip
