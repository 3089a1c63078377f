"""HiDream, OmniGen2, Boogu, AuraFlow, Chroma Radiance and LongCat-Image."""

from __future__ import annotations

from typing import Any

import torch

from .base import Facts, Recipe, mask, pooled, randn, twice
from .pictures import flux_calls

_I = "image1x2x3"
_LLAMA = 7


def _llama(g: torch.Generator, n: int) -> dict[str, Any]:
    """HiDream's other prompt, [B, layers of Llama, N, C]."""
    return pooled(32, conditioning_llama3=(1, 2, _LLAMA, 40))(g, n)


def _hidream_calls(n: int) -> list[str]:
    joint = f"joint: {_I} text{n} other{2 * _LLAMA}"
    return [f"double 0 {joint}", *twice(joint, kind="single")]


_HIDREAM = dict(
    image_model="hidream", attention_head_dim=32, num_attention_heads=2, axes_dims_rope=[8, 12, 12], caption_channels=[48, 40], max_resolution=[16, 16], in_channels=16,
    out_channels=16, llama_layers=[0, 1, 1], num_layers=1, num_single_layers=2, num_routed_experts=2, num_activated_experts=1, patch_size=2, text_emb_dim=32,
)  # fmt: skip

_OMNIGEN = dict(
    image_model="omnigen2", axes_dim_rope=[8, 12, 12], axes_lens=[300, 64, 64], hidden_size=64, num_attention_heads=2, num_kv_heads=1, multiple_of=64, num_layers=2,
    num_refiner_layers=2, text_feat_dim=48,
)  # fmt: skip
_BOOGU = {k: v for k, v in _OMNIGEN.items() if k != "text_feat_dim"} | dict(image_model="boogu", instruction_feat_dim=48, num_double_stream_layers=2)
_REF = "reference10"


def _pictures(g: torch.Generator, n: int) -> dict[str, Any]:
    """Two reference pictures, the second of an odd size, and the mask the host counts the text by."""
    return mask(n, n) | {"reference_latents": [randn(g, 1, 16, 4, 4), randn(g, 1, 16, 3, 6)]}


def _refined(n: int, reference: str = "") -> list[str]:
    refiners = [*twice(f"other: text{n}", kind="context_refiner"), *twice(f"self: {_I}", kind="noise_refiner")]
    return refiners + (twice(f"other: {reference}", kind="ref_image_refiner") if reference else [])


def _omnigen_calls(n: int, reference: str = "") -> list[str]:
    return [*_refined(n, reference), *twice(f"joint: {' '.join(f'text{n} {reference} {_I}'.split())}")]


def _boogu_calls(n: int, reference: str = "") -> list[str]:
    pictures = f"{reference} {_I}".strip()
    joint = f"joint: text{n} {pictures}"
    return [*_refined(n, reference), *twice(joint, f"self: {pictures}", kind="double"), *twice(joint, kind="single")]


_AURA = dict(max_seq=64, cond_seq_dim=2048, in_channels=4, out_channels=4, dim=64, n_layers=3, n_double_layers=1, n_heads=2, global_conddim=64)


def _aura_calls(n: int) -> list[str]:
    joint = f"joint: other8 text{n} {_I}"
    return [f"double 0 {joint}", *twice(joint, kind="single")]


_RADIANCE = dict(
    image_model="chroma_radiance", in_channels=3, out_channels=3, context_in_dim=48, hidden_size=64, mlp_ratio=2.0, num_heads=2, depth=1, depth_single_blocks=2, axes_dim=[4, 14, 14],
    theta=10000, patch_size=16, qkv_bias=True, in_dim=64, out_dim=64, hidden_dim=64, n_layers=1, nerf_hidden_size=16, nerf_mlp_ratio=2, nerf_depth=1, nerf_max_freqs=4,
    nerf_tile_size=512, nerf_final_head_type="conv", nerf_embedder_dtype=torch.float32,
)  # fmt: skip
_LONGCAT = dict(
    image_model="flux", guidance_embed=False, in_channels=16, out_channels=16, vec_in_dim=None, context_in_dim=3584, hidden_size=256, mlp_ratio=4.0, num_heads=2, depth=1,
    depth_single_blocks=2, axes_dim=[16, 56, 56], theta=10000, patch_size=2, qkv_bias=True,
)  # fmt: skip


RECIPES: dict[str, Recipe] = {
    "hidream": Recipe("HiDream", _HIDREAM, (1, 16, 4, 6), 48, Facts("HiDream-I1", 2, (1, 2, 3), _hidream_calls, still=True), extra=_llama),
    "hidream_odd_size": Recipe("HiDream", _HIDREAM, (1, 16, 3, 5), 48, Facts("HiDream-I1", 2, (1, 2, 3), _hidream_calls, still=True), extra=_llama),
    # the host counts the text by its mask, and cannot run without
    "omnigen2": Recipe("Omnigen2", _OMNIGEN, (1, 16, 4, 6), 48, Facts("OmniGen2 / Boogu", 2, (1, 2, 3), _omnigen_calls, still=True), extra=lambda g, n: mask(n, n)),
    "omnigen2_references": Recipe(
        "Omnigen2", _OMNIGEN, (1, 16, 3, 5), 48, Facts("OmniGen2 / Boogu", 2, (1, 2, 3), lambda n: _omnigen_calls(n, _REF), still=True), extra=_pictures,
    ),
    "boogu": Recipe("Boogu", _BOOGU, (1, 16, 3, 5), 48, Facts("OmniGen2 / Boogu", 2, (1, 2, 3), _boogu_calls, still=True), extra=lambda g, n: mask(n, n)),
    "boogu_references": Recipe(
        "Boogu", _BOOGU, (1, 16, 4, 6), 48, Facts("OmniGen2 / Boogu", 2, (1, 2, 3), lambda n: _boogu_calls(n, _REF), still=True), extra=_pictures,
    ),
    "aura_flow": Recipe("AuraFlow", _AURA, (1, 4, 4, 6), 2048, Facts("AuraFlow", 2, (1, 2, 3), _aura_calls, still=True)),
    "aura_flow_odd_size": Recipe("AuraFlow", _AURA, (1, 4, 3, 5), 2048, Facts("AuraFlow", 2, (1, 2, 3), _aura_calls, still=True)),
    "chroma_radiance": Recipe("ChromaRadiance", _RADIANCE, (1, 3, 32, 40), 48, Facts("FLUX", 2, (1, 2, 3), flux_calls(), still=True), extra=pooled(32)),
    "longcat_image": Recipe("LongCatImage", _LONGCAT, (1, 16, 4, 6), 3584, Facts("FLUX", 2, (1, 2, 3), flux_calls(), still=True), loader=True),
    "longcat_image_edit": Recipe(
        "LongCatImage", _LONGCAT, (1, 16, 3, 5), 3584, Facts("FLUX", 2, (1, 2, 3), flux_calls(behind=_REF), still=True), loader=True,
        extra=lambda g, n: {"reference_latents": [randn(g, 1, 16, 4, 4), randn(g, 1, 16, 3, 6)]},
    ),
}  # fmt: skip
