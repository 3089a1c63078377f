"""Anima, Krea 2, Ideogram 4, Lens, JoyImage, Mage-Flow, Z-Image, PixelDiT and PiD in the space of pixels: picture models of later hosts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from .base import Facts, Recipe, mask, randn, twice
from .pictures import RECIPES as _EARLIER

_I = "image1x2x3"
_GRID = (1, 2, 3)

_ANIMA = dict(
    image_model="anima", max_img_h=16, max_img_w=16, max_frames=16, in_channels=16, out_channels=16, patch_spatial=2, patch_temporal=1, model_channels=64,
    concat_padding_mask=True, pos_emb_cls="rope3d", pos_emb_learnable=True, pos_emb_interpolation="crop", min_fps=1, max_fps=30, use_adaln_lora=True, adaln_lora_dim=16,
    num_blocks=2, num_heads=2, crossattn_emb_channels=1024, extra_per_block_abs_pos_emb=False, rope_h_extrapolation_ratio=4.0, rope_w_extrapolation_ratio=4.0,
    rope_t_extrapolation_ratio=1.0, rope_enable_fps_modulation=False,
)  # fmt: skip
_KREA = dict(image_model="krea2", features=64, tdim=32, txtdim=16, heads=2, kvheads=1, multiplier=1, layers=2, patch=2, channels=16, txtlayers=3, txtheads=2, txtkvheads=2)
_IDEOGRAM = dict(num_attention_heads=2, attention_head_dim=32, intermediate_size=64, adaln_dim=16, llm_features_dim=48, mrope_section=[8, 4, 4])
_LENS = dict(image_model="lens", in_channels=128, out_channels=32, num_layers=2, num_attention_heads=2, enc_hidden_dim=16, selected_layer_index=(0, 1, 2))
_JOY = dict(image_model="joyimage", in_channels=16, hidden_size=256, patch_size=[1, 2, 2], num_layers=2, num_attention_heads=2, text_dim=4096)
_MAGE = dict(image_model="mage_flow", in_channels=128, num_layers=2, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=48, axes_dims_rope=(8, 12, 12))
_Z_IMAGE = _EARLIER["z_image"].unet | dict(image_model="zimage_pixel", patch_size=4, in_channels=3, decoder_hidden_size=16, decoder_num_res_blocks=1, decoder_max_freqs=2)
_PIXELDIT = dict(
    image_model="pixeldit_t2i", num_groups=2, hidden_size=64, pixel_hidden_size=4, pixel_attn_hidden_size=32, pixel_num_groups=2, patch_depth=2, pixel_depth=2, patch_size=4,
    txt_embed_dim=48, txt_max_length=8,
)  # fmt: skip


def _anima_text(g: torch.Generator, n: int) -> dict[str, Any]:
    """The prompt's T5 tokens, which another tokeniser counts, and their weights."""
    return {"t5xxl_ids": torch.randint(2, 32000, (n + 2,), generator=g), "t5xxl_weights": torch.ones(n + 2)}


def _krea_calls(behind: str = "") -> Any:
    def calls(n: int) -> list[str]:
        joint = f"joint: text{n} {_I} {behind}".strip()
        return [*twice("other: other3", kind="layer_refiner"), *twice(f"other: text{n}", kind="refiner"), *twice(joint, kind="single")]

    return calls


def _pixel_calls(n: int) -> list[str]:
    return [*twice(f"joint: text{min(n, 8)} {_I}", kind="patch"), *twice(f"self: {_I}", kind="pixel")]


_HIDREAM_O1 = dict(
    image_model="hidream_o1",
    text_config_overrides=dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32, rope_dims=[8, 4, 4]),
    vision_config_overrides=dict(hidden_size=32, num_heads=2, intermediate_size=32, depth=1),
)  # fmt: skip


def _prompt_ids(references: int = 0) -> Any:
    """The prompt as the text encoder gives it: numbers of tokens, three of a template in front and the token for the time behind."""

    def extra(g: torch.Generator, n: int) -> dict[str, Any]:
        ids = torch.cat([torch.randint(0, 150000, (1, n + 3), generator=g), torch.tensor([[151673]])], 1)
        return {"text_input_ids": ids} | ({"reference_latents": [torch.rand(1, 64, 96, 3, generator=g)] * references} if references else {})

    return extra


def _hidream_o1_calls(front: str = "", behind: str = "") -> Any:
    def calls(n: int) -> list[str]:
        text = f"{front} text{n + 1}" if front else f"text{n + 4}"
        pictures = f"{_I} {behind}".strip()
        return twice(f"joint: text1 {pictures} | {text} {pictures}")

    return calls


def _still(family: str, calls: Any) -> Facts:
    return Facts(family, 2, _GRID, calls, still=True)


def _omni(g: torch.Generator, n: int) -> dict[str, Any]:
    """Two reference pictures, the first of them also as an image encoder sees it, and the texts before them."""
    seen = SimpleNamespace(image_sizes=[(3, 32, 48)], last_hidden_state=randn(g, 1, 6, 24))
    texts = [randn(g, 1, m, 48) for m in (2, 1)]
    return {"reference_latents": [randn(g, 1, 3, 8, 8), randn(g, 1, 3, 4, 12)], "clip_vision_outputs": [seen], "reference_latents_text_embeds": texts}


def _omni_calls(n: int) -> list[str]:
    words, seen, pictures = f"other2 other30 other1 other31 text{n} other{32 - n}", "reference6 other26 other64", f"reference4 other28 reference3 other29 {_I} other26"
    refined = [f"context_refiner 0 other: {words}", f"siglip_refiner 0 other: {seen}", f"noise_refiner 0 self: {pictures}"]
    return [*refined, *twice(f"joint: {words} {seen} {pictures}")]


def _low(g: torch.Generator, n: int) -> dict[str, Any]:
    """The latent picture that PiD decodes."""
    return {"lq_latent": randn(g, 1, 16, 2, 2), "degrade_sigma": torch.tensor([0.2])}


RECIPES: dict[str, Recipe] = {
    "anima": Recipe(
        "Anima", _ANIMA, (1, 16, 1, 3, 5), 1024, _still("Anima", lambda n: twice(f"self: {_I}", f"cross: {_I} | text512")), extra=_anima_text,
    ),
    "krea2": Recipe("Krea2", _KREA, (1, 16, 1, 4, 6), 48, _still("Krea 2", _krea_calls())),
    "krea2_odd_size": Recipe("Krea2", _KREA, (1, 16, 1, 3, 5), 48, _still("Krea 2", _krea_calls())),
    "krea2_references": Recipe(
        "Krea2", _KREA, (1, 16, 1, 4, 6), 48, _still("Krea 2", _krea_calls("reference10")),
        extra=lambda g, n: {"reference_latents": [randn(g, 1, 16, 1, 4, 4), randn(g, 1, 16, 1, 3, 6)], "reference_latents_method": "index_timestep_zero"},
    ),
    "krea2_references_unheeded": Recipe(
        "Krea2", _KREA, (1, 16, 1, 4, 6), 48, _still("Krea 2", _krea_calls()), extra=lambda g, n: {"reference_latents": [randn(g, 1, 16, 1, 4, 4)]},
    ),
    "ideogram4": Recipe(
        "Ideogram4", dict(image_model="ideogram4", in_channels=128, num_layers=2), (1, 128, 2, 3), 48, _still("Ideogram 4", lambda n: twice(f"joint: text{n} {_I}", kind="single")),
        forced=_IDEOGRAM,
    ),
    "ideogram4_padded_text": Recipe(
        "Ideogram4", dict(image_model="ideogram4", in_channels=128, num_layers=2), (1, 128, 2, 3), 48, _still("Ideogram 4", lambda n: twice(f"joint: text{n} {_I}", kind="single")),
        forced=_IDEOGRAM, extra=lambda g, n: mask(n - 1, n),
    ),
    "lens": Recipe("Lens", _LENS, (1, 128, 2, 3), 48, _still("Lens", lambda n: twice(f"joint: {_I} text{n}", kind="double")), loader=True),
    "lens_padded_text": Recipe("Lens", _LENS, (1, 128, 2, 3), 48, _still("Lens", lambda n: twice(f"joint: {_I} text{n}", kind="double")), extra=lambda g, n: mask(n - 1, n)),
    "joyimage": Recipe("JoyImage", _JOY, (1, 16, 1, 4, 6), 4096, _still("JoyImage", lambda n: twice(f"joint: {_I} text{n}", kind="double")), loader=True),
    "joyimage_edit": Recipe(
        "JoyImage", _JOY, (1, 16, 1, 3, 5), 4096, _still("JoyImage", lambda n: twice(f"joint: {_I} reference10 text{n}", kind="double")),
        extra=lambda g, n: {"reference_latents": [randn(g, 1, 16, 1, 4, 4), randn(g, 1, 16, 1, 3, 6)]},
    ),
    "mage_flow": Recipe("MageFlow", _MAGE, (1, 128, 2, 3), 48, _still("Mage-Flow", lambda n: twice(f"joint: text{n} {_I}", kind="double"))),
    "mage_flow_edit": Recipe(
        "MageFlow", _MAGE, (1, 128, 2, 3), 48, _still("Mage-Flow", lambda n: twice(f"joint: text{n} {_I} reference10", kind="double")),
        extra=lambda g, n: {"reference_latents": [randn(g, 1, 128, 2, 2), randn(g, 1, 128, 2, 3)]} | mask(n - 1, n),
    ),
    "z_image_pixel": Recipe("ZImagePixelSpace", _Z_IMAGE, (1, 3, 7, 10), 48, _still("Lumina 2 / Z-Image", _EARLIER["z_image"].facts.calls)),
    "z_image_pixel_references": Recipe(
        "ZImagePixelSpace", _Z_IMAGE | dict(siglip_feat_dim=24), (1, 3, 8, 12), 48, _still("Lumina 2 / Z-Image", _omni_calls), extra=_omni,
    ),
    "z_image_pixel_references_alone": Recipe(
        "ZImagePixelSpace", _Z_IMAGE, (1, 3, 8, 12), 48,
        _still("Lumina 2 / Z-Image", lambda n: [
            f"context_refiner 0 other: other32 text{n} other{32 - n}", f"noise_refiner 0 self: reference4 other28 {_I} other26",
            *twice(f"joint: other32 text{n} other{32 - n} reference4 other28 {_I} other26"),
        ]),
        extra=lambda g, n: {"reference_latents": [randn(g, 1, 3, 8, 8)]},
    ),
    "pixeldit": Recipe("PixelDiTT2I", _PIXELDIT, (1, 3, 8, 12), 48, _still("PixelDiT / PiD", _pixel_calls)),
    "pixeldit_odd_size": Recipe("PixelDiTT2I", _PIXELDIT, (1, 3, 7, 10), 48, _still("PixelDiT / PiD", _pixel_calls), prompts=(9, 7)),
    "pid": Recipe(
        "PiD", _PIXELDIT | dict(image_model="pid", lq_hidden_dim=8, lq_num_res_blocks=1, sr_scale=4, latent_spatial_down_factor=1), (1, 3, 8, 12), 48,
        _still("PixelDiT / PiD", _pixel_calls), extra=_low,
    ),
    "pid_pixel_blocks": Recipe(
        "PiD", _PIXELDIT | dict(image_model="pid", lq_hidden_dim=8, lq_num_res_blocks=1, sr_scale=4, latent_spatial_down_factor=1, pit_lq_inject=True, lq_gate_per_token=True),
        (1, 3, 8, 12), 48, _still("PixelDiT / PiD", _pixel_calls), extra=_low,
    ),
    "hidream_o1": Recipe("HiDreamO1", _HIDREAM_O1, (1, 3, 64, 96), 1, _still("HiDream-O1", _hidream_o1_calls()), extra=_prompt_ids()),
    "hidream_o1_references": Recipe(
        "HiDreamO1", _HIDREAM_O1, (1, 3, 64, 96), 1, _still("HiDream-O1", _hidream_o1_calls("text3 reference128", "reference6")), extra=_prompt_ids(1),
    ),
}  # fmt: skip
