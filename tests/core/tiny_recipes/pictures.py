"""FLUX, Chroma, SD3, Qwen-Image, Lumina 2 and Z-Image."""

from __future__ import annotations

from collections.abc import Callable

from .base import Facts, Recipe, pooled, randn, twice

_FLUX = dict(
    image_model="flux", guidance_embed=True, in_channels=16, out_channels=16, vec_in_dim=32, context_in_dim=48, hidden_size=64, mlp_ratio=2.0, num_heads=2,
    depth=1, depth_single_blocks=2, axes_dim=[4, 14, 14], theta=10000, patch_size=2, qkv_bias=True,
)  # fmt: skip


def flux_calls(grid: str = "image1x2x3", behind: str = "", front: str = "") -> Callable[[int], list[str]]:
    def calls(n: int) -> list[str]:
        joint = " ".join(f"{front} text{n} {grid} {behind}".split())
        return [f"double 0 joint: {joint}", *twice(f"joint: {joint}", kind="single")]

    return calls


_LUMINA = dict(
    image_model="lumina2", patch_size=2, in_channels=16, dim=64, cap_feat_dim=48, n_layers=2, n_refiner_layers=1, qk_norm=True, n_heads=2, n_kv_heads=1,
    axes_dims=[8, 12, 12], axes_lens=[300, 512, 512], rope_theta=10000.0, ffn_dim_multiplier=4.0,
)  # fmt: skip


def _lumina_calls(n: int) -> list[str]:
    return [f"context_refiner 0 other: text{n}", "noise_refiner 0 self: image1x2x3", *twice(f"joint: text{n} image1x2x3")]


def _z_image_calls(n: int) -> list[str]:
    text, image = f"text{n} other{32 - n}", "image1x2x3 other26"
    return [f"context_refiner 0 other: {text}", f"noise_refiner 0 self: {image}", *twice(f"joint: {text} {image}")]


RECIPES: dict[str, Recipe] = {
    "flux": Recipe("Flux", _FLUX, (1, 16, 4, 6), 48, Facts("FLUX", 2, (1, 2, 3), flux_calls(), still=True), extra=pooled(32)),
    "flux_odd_size": Recipe("Flux", _FLUX, (1, 16, 3, 5), 48, Facts("FLUX", 2, (1, 2, 3), flux_calls(), still=True), extra=pooled(32)),
    "flux_references": Recipe(
        "Flux", _FLUX, (1, 16, 4, 6), 48, Facts("FLUX", 2, (1, 2, 3), flux_calls(behind="reference10"), still=True),
        extra=lambda g, n: pooled(32)(g, n) | {"reference_latents": [randn(g, 1, 16, 4, 4), randn(g, 1, 16, 3, 6)]},
    ),
    "flux2": Recipe(
        "Flux2",
        _FLUX | dict(image_model="flux2", in_channels=128, out_channels=128, vec_in_dim=None, axes_dim=[8, 8, 8, 8], theta=2000, patch_size=1, qkv_bias=False,
                     global_modulation=True, mlp_silu_act=True, ops_bias=False, default_ref_method="index", ref_index_scale=10.0),
        (1, 128, 2, 3), 48, Facts("FLUX", 2, (1, 2, 3), lambda n: flux_calls()(512), still=True), extra=pooled(32),
    ),
    "chroma": Recipe(
        "Chroma",
        dict(image_model="chroma", in_channels=64, out_channels=64, context_in_dim=48, hidden_size=64, mlp_ratio=2.0, num_heads=2, depth=1, depth_single_blocks=2,
             axes_dim=[4, 14, 14], theta=10000, patch_size=2, qkv_bias=True, in_dim=64, out_dim=64, hidden_dim=64, n_layers=1),
        (1, 16, 4, 6), 48, Facts("FLUX", 2, (1, 2, 3), flux_calls(), still=True),
        # the host hands references to Chroma, which drops them
        extra=lambda g, n: pooled(32)(g, n) | {"reference_latents": [randn(g, 1, 16, 4, 4)]},
    ),
    "sd3": Recipe(
        "SD3",
        dict(in_channels=16, patch_size=2, out_channels=16, depth=2, input_size=None, adm_in_channels=32, num_patches=64, pos_embed_max_size=8, qk_norm="rms",
             context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 48, "out_features": 128}}, pos_embed_scaling_factor=None,
             x_block_self_attn_layers=[0]),
        (1, 16, 4, 6), 48,
        Facts("SD3", 2, (1, 2, 3), lambda n: [f"double 0 joint: text{n} image1x2x3", "double 0 self: image1x2x3", f"double 1 joint: text{n} image1x2x3"], still=True),
        loader=True, extra=pooled(32),
    ),
    "qwen_image": Recipe(
        "QwenImage",
        dict(image_model="qwen_image", in_channels=64, num_layers=2, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=48, axes_dims_rope=(8, 12, 12), out_channels=16),
        (1, 16, 1, 4, 6), 48, Facts("Qwen-Image", 2, (1, 2, 3), lambda n: twice(f"joint: text{n} image1x2x3", kind="double"), still=True),
    ),
    "qwen_image_edit": Recipe(
        "QwenImage",
        dict(image_model="qwen_image", in_channels=64, num_layers=2, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=48, axes_dims_rope=(8, 12, 12), out_channels=16),
        (1, 16, 1, 4, 6), 48, Facts("Qwen-Image", 2, (1, 2, 3), lambda n: twice(f"joint: text{n} image1x2x3 reference8", kind="double"), still=True),
        extra=lambda g, n: {"reference_latents": [randn(g, 1, 16, 1, 4, 4), randn(g, 1, 16, 1, 4, 4)]},
    ),
    "lumina2": Recipe("Lumina2", _LUMINA, (1, 16, 4, 6), 48, Facts("Lumina 2 / Z-Image", 2, (1, 2, 3), _lumina_calls, still=True)),
    "z_image": Recipe(
        "ZImage", _LUMINA | dict(dim=256, n_kv_heads=2, axes_dims=[32, 48, 48], rope_theta=256.0, z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32),
        (1, 16, 4, 6), 48, Facts("Lumina 2 / Z-Image", 2, (1, 2, 3), _z_image_calls, still=True),
    ),
}  # fmt: skip
