"""Video models that ComfyUI 0.3.75 lacks: CogVideoX, Kandinsky 5, MiniMax H3."""

from __future__ import annotations

from typing import Any

import torch

from .base import VIDEO_LATENT, Facts, Recipe, pooled, randn, twice

_COGVIDEO: dict[str, Any] = dict(
    image_model="cogvideox", num_attention_heads=2, attention_head_dim=64, time_embed_dim=64, num_layers=2, in_channels=16, patch_size=2, text_embed_dim=48,
    use_learned_positional_embeddings=False, use_rotary_positional_embeddings=True,
)  # fmt: skip


def _cogvideo(config: str, latent: tuple[int, ...] = VIDEO_LATENT, extra: Any = lambda g, n: {}, **more: Any) -> Recipe:
    unet = _COGVIDEO | more
    # the host scales noise up as for other models and does not scale it down for this one, which only its own VOID sampler makes up for
    facts = Facts("CogVideoX", unet["num_attention_heads"], (3, 2, 3), lambda n: twice(f"joint: text{n} video3x2x3"), sigma=1.0)
    return Recipe(config, unet, latent, 48, facts, loader=True, extra=extra)


_KANDINSKY = dict(
    image_model="kandinsky5", model_dim=128, ff_dim=64, time_dim=32, visual_embed_dim=132, num_text_blocks=2, num_visual_blocks=2,
)  # fmt: skip

_POOLED = pooled(768)


def _kandinsky(config: str = "Kandinsky5", latent: tuple[int, ...] = VIDEO_LATENT, extra: Any = _POOLED, grid: str = "video3x2x3", **more: Any) -> Recipe:
    def calls(n: int) -> list[str]:
        return [*twice(f"other: text{n}", kind="refiner"), *twice(f"self: {grid}", f"cross: {grid} | text{n}")]

    still = grid.startswith("image")
    facts = Facts("Kandinsky 5", 2, (1 if still else 3, 2, 3), calls, still)
    # the host reads neither the picture model's width nor the other axes from a file so small
    return Recipe(config, _KANDINSKY | more, latent, 3584, facts, loader=not more, extra=extra)


_MINIMAX = dict(
    image_model="minimax_h3", hidden_size=64, num_layers=2, token_refiner_num_layers=1, num_attention_heads=2, attention_head_dim=32, ffn_hidden_size=64, text_dim=48,
    timestep_input_dim=32, time_embed_hidden_size=32, time_embed_dim=16, rope_inv_freq_len=4,
)  # fmt: skip


def _minimax(between: str = "", latent: tuple[int, ...] = (1, 24, 3, 4, 6), extra: Any = lambda g, n: {}, **more: Any) -> Recipe:
    """between: what stands between text and sound."""
    facts = Facts("MiniMax H3", 2, (3, 2, 3), lambda n: twice(" ".join(f"joint: text{n} {between} other14 video3x2x3".split()), kind="double"), sound=(1, 32, 2, 7))
    return Recipe("MiniMaxH3", _MINIMAX | more, latent, 48, facts, loader=True, extra=extra)


def _keyframes(g: torch.Generator, n: int) -> dict[str, Any]:
    """A picture at the start, a clip with its sound and a sound alone."""
    frames = [
        {"resolved_frame_index": 0, "latent": randn(g, 1, 24, 1, 4, 6)},
        {"resolved_frame_index": 3, "latent": randn(g, 1, 24, 2, 4, 6), "audio_latent": randn(g, 1, 32, 2, 4)},
        {"resolved_frame_index": 5, "audio_latent": randn(g, 1, 32, 2, 2)},
    ]
    return {"minimax_keyframes": frames, "minimax_token_tags": torch.tensor([0] + [1] * (n - 1))}


def _references(g: torch.Generator, n: int) -> dict[str, Any]:
    blocks = [
        {"kind": "image", "latent_h": 4, "latent_w": 2, "latent": randn(g, 1, 24, 1, 4, 2)},
        {"kind": "audio", "ref_audio_t": 3, "audio_latent": randn(g, 1, 32, 2, 3)},
        {"kind": "video_audio", "ref_audio_t": 5, "latent_t": 2, "latent_h": 4, "latent_w": 4, "latent": randn(g, 1, 24, 2, 4, 4), "audio_latent": randn(g, 1, 32, 2, 5)},
    ]
    return {"minimax_refs": blocks}


RECIPES: dict[str, Recipe] = {
    "cogvideo": _cogvideo("CogVideoX_T2V"),
    "cogvideo_odd_size": _cogvideo("CogVideoX_T2V", (1, 16, 3, 3, 5)),
    # the host's positions need a width that three divides
    "cogvideo_learned_positions": _cogvideo("CogVideoX_T2V", num_attention_heads=3, use_learned_positional_embeddings=True, use_rotary_positional_embeddings=False),
    # two latent frames in a token; an odd number is filled up
    "cogvideo_15": _cogvideo("CogVideoX_T2V", (1, 16, 5, 4, 6), patch_size_t=2),
    "cogvideo_i2v": _cogvideo("CogVideoX_I2V", in_channels=32, extra=lambda g, n: {"concat_latent_image": randn(g, 1, 16, 1, 4, 6)}),
    "cogvideo_15_i2v": _cogvideo("CogVideoX_I2V", (1, 16, 5, 4, 6), patch_size_t=2, in_channels=32, ofs_embed_dim=64),
    "cogvideo_inpaint": _cogvideo("CogVideoX_Inpaint", (1, 16, 6, 4, 6), patch_size_t=2, in_channels=48, extra=lambda g, n: {"concat_latent_image": randn(g, 1, 32, 6, 4, 6)}),
    "kandinsky5": _kandinsky(),  # the host does not crop what it fills up, so odd sizes fail in it
    "kandinsky5_i2v": _kandinsky(extra=pooled(768, time_dim_replace=(1, 16, 1, 4, 6), concat_mask=(1, 1, 3, 4, 6))),
    "kandinsky5_image": _kandinsky("Kandinsky5Image", (1, 16, 4, 6), grid="image1x2x3", visual_embed_dim=64, axes_dims=(16, 24, 24), rope_scale_factor=(1.0, 1.0, 1.0)),
    "minimax_h3": _minimax(),
    "minimax_h3_odd_size": _minimax(latent=(1, 24, 3, 3, 5)),
    "minimax_h3_keyframes": _minimax("reference6 reference12 other8 other4", extra=_keyframes),
    "minimax_h3_references": _minimax("reference2 other6 other10 reference8", extra=_references),
}  # fmt: skip
