"""LTX-Video, Mochi and Cosmos."""

from __future__ import annotations

import json

import later_hosts

from .base import VIDEO_LATENT, Facts, Recipe, mask, twice

_V = "video3x2x3"
_REF = "reference6"
_LTX = dict(image_model="ltxv", num_layers=2, attention_head_dim=32, num_attention_heads=2, cross_attention_dim=64, caption_channels=48)
_LTX_FILE = {"config": json.dumps({"transformer": {k: v for k, v in _LTX.items() if k not in ("image_model", "num_layers")}})}
_COSMOS = dict(
    max_img_h=16, max_img_w=16, max_frames=16, in_channels=16, out_channels=16, patch_spatial=2, patch_temporal=1, model_channels=64, concat_padding_mask=True,
    pos_emb_cls="rope3d", pos_emb_interpolation="crop", use_adaln_lora=True, adaln_lora_dim=16, num_blocks=2, num_heads=2, crossattn_emb_channels=48,
    extra_h_extrapolation_ratio=1.0, extra_w_extrapolation_ratio=1.0, extra_t_extrapolation_ratio=1.0,
    rope_h_extrapolation_ratio=1.0, rope_w_extrapolation_ratio=1.0, rope_t_extrapolation_ratio=2.0,
)  # fmt: skip


def _self_then_cross(n: int) -> list[str]:
    return twice(f"self: {_V}", f"cross: {_V} | text{n}")


RECIPES: dict[str, Recipe] = {
    # the host cannot run LTX without a text mask
    "ltx": Recipe("LTXV", _LTX, (1, 128, 3, 2, 3), 48, Facts("LTX", 2, (3, 2, 3), _self_then_cross), loader=True, metadata=_LTX_FILE, extra=lambda g, n: mask(n, n)),
    "ltx_padded_text": Recipe("LTXV", _LTX, (1, 128, 3, 2, 3), 48, Facts("LTX", 2, (3, 2, 3), _self_then_cross), extra=lambda g, n: mask(n - 1, n)),
    "ltx_guides": Recipe(
        "LTXV", _LTX, (1, 128, 4, 2, 3), 48, Facts("LTX", 2, (3, 2, 3), lambda n: twice(f"self: {_V} {_REF}", f"cross: {_V} {_REF} | text{n}")),
        extra=lambda g, n: mask(n, n) | later_hosts.ltx_guides(6),
    ),
    "mochi": Recipe(
        "GenmoMochi",
        dict(
            image_model="mochi_preview", depth=2, patch_size=2, num_heads=2, hidden_size_x=64, hidden_size_y=48, mlp_ratio_x=192.0, mlp_ratio_y=4.0, learn_sigma=False,
            in_channels=12, qk_norm=True, qkv_bias=False, out_bias=True, attn_drop=0.0, patch_embed_bias=True, posenc_preserve_area=True, timestep_mlp_bias=True,
            attend_to_padding=False, timestep_scale=1000.0, use_t5=True, t5_feat_dim=64, t5_token_length=256, rope_theta=10000.0,
        ),
        (1, 12, 3, 4, 6), 64, Facts("Mochi", 2, (3, 2, 3), lambda n: twice(f"joint: {_V} text{n - 1}", kind="double")),
        extra=lambda g, n: mask(n - 1, n),
    ),
    "cosmos": Recipe(
        "CosmosT2V",
        _COSMOS | dict(image_model="cosmos", block_config="FA-CA-MLP", pos_emb_learnable=False, block_x_format="THWBD", affline_emb_norm=True,
                       extra_per_block_abs_pos_emb=True, extra_per_block_abs_pos_emb_type="learnable"),
        VIDEO_LATENT, 48, Facts("Cosmos", 2, (3, 2, 3), _self_then_cross),
    ),
    "cosmos_predict2": Recipe(
        "CosmosT2IPredict2", _COSMOS | dict(image_model="cosmos_predict2", pos_emb_learnable=True, min_fps=1, max_fps=30, extra_per_block_abs_pos_emb=False, rope_enable_fps_modulation=False),
        VIDEO_LATENT, 48, Facts("Cosmos", 2, (3, 2, 3), _self_then_cross),
    ),
}  # fmt: skip
