"""Wan models that follow more than a text: sound, a face, a pose, music. Some are in later hosts only."""

from __future__ import annotations

from collections.abc import Callable

from .base import Recipe, clip, randn, twice
from .wan import wan


def _beside(picture: int = 0, front: str = "", behind: str = "", last: str = "", video: str = "video3x2x3", n: int = 2) -> Callable[[int], list[str]]:
    """Self-attention, cross-attention to a picture of so many tokens and to the text, in n blocks; last: one more call."""

    def calls(text: int) -> list[str]:
        own = " ".join(f"{front} {video} {behind}".split())
        return twice(f"self: {own}", *([f"cross: {own} | reference{picture}"] if picture else []), f"cross: {own} | text{text}", *([last] if last else []), n=n)

    return calls


_HANDED_ON = 'block(args["img"], context=args["txt"], e=args["vec"], freqs=args["pe"], transformer_options=args["transformer_options"])'
"""S2V's blocks are given the options on later hosts only."""
_CLIP = clip(257, 1280)

RECIPES: dict[str, Recipe] = {
    "wan_humo": wan(_beside(last="other: other6 | other16"), config="WAN21_HuMo", model_type="humo", extra=lambda g, n: {"audio_embed": randn(g, 1, 3, 8, 5, 1280)}),
    "wan_humo_reference": wan(
        _beside(behind="reference6", last="other: other6 | other16"), config="WAN21_HuMo", model_type="humo",
        extra=lambda g, n: {"audio_embed": randn(g, 1, 3, 8, 5, 1280), "reference_latents": [randn(g, 1, 16, 1, 4, 6)]},
    ),
    "wan_humo_silent": wan(_beside(), config="WAN21_HuMo", model_type="humo"),
    # five blocks, as the face acts behind every fifth
    "wan_animate": wan(
        _beside(257, n=5), config="WAN22_Animate", model_type="animate", in_dim=36, num_layers=5,
        extra=lambda g, n: _CLIP(g, n) | {"pose_video_latent": randn(g, 1, 16, 2, 4, 6), "face_video_pixels": randn(g, 1, 3, 1, 512, 512)},
    ),
    "wan_scail": wan(
        _beside(257, front="reference6", behind="other12"), config="WAN21_SCAIL", model_type="scail", in_dim=20,
        extra=lambda g, n: _CLIP(g, n) | {"reference_latents": [randn(g, 1, 16, 1, 4, 6)], "pose_video_latent": randn(g, 1, 16, 3, 4, 4)},
    ),
    "wan_scail_2": wan(
        _beside(257, front="reference12", behind="other12"), config="WAN21_SCAIL2", model_type="scail2", in_dim=20,
        extra=lambda g, n: _CLIP(g, n) | {"reference_latents": [randn(g, 1, 16, 1, 4, 6)] * 2, "pose_video_latent": randn(g, 1, 16, 3, 4, 4), "ref_mask_flag": False},
    ),
    # the host's loader puts music and sound behind certain blocks of the full size, so these two are made
    "wan_dancer": wan(
        _beside(514, video="video3x2x4"), config="WAN22_WanDancer", model_type="wandancer", in_dim=36, audio_inject_layers=[0], loader=False, latent=(1, 16, 3, 4, 8),
        extra=lambda g, n: _CLIP(g, n) | {"clip_vision_output_ref": _CLIP(g, n)["clip_vision_output"], "audio_embed": randn(g, 1, 12, 35), "fps": 24.0},
    ),
    "wan_s2v": wan(
        _beside(behind="reference16 other24", video="video3x4x4"), config="WAN22_S2V", model_type="s2v", audio_inject_layers=[0], loader=False, needs=("ldm/wan/model.py", _HANDED_ON), latent=(1, 16, 3, 8, 8),
        extra=lambda g, n: {"audio_embed": randn(g, 1, 25, 1024, 12), "reference_latents": [randn(g, 1, 16, 1, 8, 8)], "reference_motion": randn(g, 1, 16, 2, 8, 8)},
    ),
}  # fmt: skip
