"""Full-size models as the host builds them, without weights: class, configuration, latent and prompt of each, and a tiny double.

The configurations are those the host's own model detection arrives at for the released checkpoints. A double has the same
structure in a few small layers; it rehearses the code on a machine without a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

VIDEO_PATTERNS = ("radial", "sla_topk", "sliding_tile", "draft", "adaspa", "sparsed", "rettention", "clear")
IMAGE_PATTERNS = ("sla_topk", "sliding_tile", "clear", "draft", "adaspa", "sparsed", "rettention")


@dataclass(frozen=True)
class Architecture:
    """config: class in ``comfy.supported_models``; unet: its configuration. latent: shape of batch 1. prompt: (tokens, width).
    pooled: width of the pooled prompt, 0 = none. shape: name in :mod:`bench.shapes` of its largest attention call. frames: the
    trained length in latent frames, for runs beyond it; 0 = not longer than trained. timed: steps after the first one.
    """

    name: str
    title: str
    config: str
    unet: dict[str, Any]
    latent: tuple[int, ...]
    prompt: tuple[int, int]
    pooled: int = 0
    shape: str = ""
    patterns: tuple[str, ...] = VIDEO_PATTERNS
    frames: int = 0
    timed: int = 2
    small: dict[str, Any] = field(default_factory=dict)
    small_latent: tuple[int, ...] = ()
    small_prompt: tuple[int, int] = (5, 48)

    def tiny(self) -> Architecture:
        """The double."""
        pooled = self.small.get("vec_in_dim", self.pooled)
        frames = 2 if self.frames else 0
        return replace(self, unet=self.unet | self.small, latent=self.small_latent, prompt=self.small_prompt, pooled=pooled, frames=frames, timed=1)


_WAN: dict[str, Any] = dict(
    image_model="wan2.1", model_type="t2v", freq_dim=256, patch_size=(1, 2, 2), window_size=(-1, -1), qk_norm=True, cross_attn_norm=True, eps=1e-6,
    in_dim=16, out_dim=16,
)  # fmt: skip
_WAN_14B: dict[str, Any] = _WAN | dict(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
_WAN_1B: dict[str, Any] = _WAN | dict(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
_WAN_SMALL: dict[str, Any] = dict(small=dict(dim=256, ffn_dim=64, num_heads=2, num_layers=2), small_latent=(1, 16, 4, 16, 16), small_prompt=(5, 4096))
_HUNYUAN: dict[str, Any] = dict(
    image_model="hunyuan_video", in_channels=16, out_channels=16, patch_size=[1, 2, 2], vec_in_dim=768, context_in_dim=4096, hidden_size=3072, mlp_ratio=4.0,
    num_heads=24, depth=20, depth_single_blocks=40, axes_dim=[16, 56, 56], theta=256, qkv_bias=True, guidance_embed=True, byt5=False, meanflow=False,
    use_cond_type_embedding=False, vision_in_dim=None,
)  # fmt: skip
_FLUX: dict[str, Any] = dict(
    image_model="flux", guidance_embed=True, in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=4096, hidden_size=3072, mlp_ratio=4.0, num_heads=24,
    depth=19, depth_single_blocks=38, axes_dim=[16, 56, 56], theta=10000, patch_size=2, qkv_bias=True,
)  # fmt: skip
_FLUX_SMALL: dict[str, Any] = dict(
    small=dict(vec_in_dim=32, context_in_dim=48, hidden_size=64, mlp_ratio=2.0, num_heads=2, depth=1, depth_single_blocks=1, axes_dim=[4, 14, 14]),
    small_latent=(1, 16, 24, 24),
)
_SDXL: dict[str, Any] = dict(
    use_checkpoint=False, image_size=32, use_spatial_transformer=True, legacy=False, num_classes="sequential", adm_in_channels=2816, in_channels=4, out_channels=4,
    model_channels=320, num_res_blocks=[2, 2, 2], transformer_depth=[0, 0, 2, 2, 10, 10], transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
    channel_mult=[1, 2, 4], transformer_depth_middle=10, use_linear_in_transformer=True, context_dim=2048, num_head_channels=64,
    use_temporal_resblock=False, use_temporal_attention=False,
)  # fmt: skip

ARCHITECTURES = (
    Architecture("wan14b-720p", "Wan 2.1 14B, 720p, 81 frames", "WAN21_T2V", _WAN_14B, (1, 16, 21, 90, 160), (512, 4096), shape="wan14b-720p", timed=1, **_WAN_SMALL),
    Architecture("wan1.3b-480p", "Wan 2.1 1.3B, 480p, 81 frames", "WAN21_T2V", _WAN_1B, (1, 16, 21, 60, 104), (512, 4096), shape="wan1.3b-480p", timed=4, **_WAN_SMALL),
    Architecture(
        "hunyuan-720p", "HunyuanVideo, 720p, 129 frames", "HunyuanVideo", _HUNYUAN, (1, 16, 33, 90, 160), (256, 4096), 768, "hunyuan-720p", timed=1,
        small=dict(context_in_dim=48, hidden_size=256, num_heads=2, depth=1, depth_single_blocks=1), small_latent=(1, 16, 4, 16, 16),
    ),
    Architecture("flux-2048", "FLUX, 2048 x 2048", "Flux", _FLUX, (1, 16, 256, 256), (512, 4096), 768, "flux-2048", IMAGE_PATTERNS, timed=4, **_FLUX_SMALL),
    Architecture("flux-4096", "FLUX, 4096 x 4096", "Flux", _FLUX, (1, 16, 512, 512), (512, 4096), 768, "flux-4096", IMAGE_PATTERNS, timed=2, **_FLUX_SMALL),
    Architecture(
        "sdxl-2048", "SDXL, 2048 x 2048", "SDXL", _SDXL, (1, 4, 256, 256), (77, 2048), 1280, "sdxl-2048", IMAGE_PATTERNS, timed=6,
        small=dict(num_res_blocks=[1, 1, 1], transformer_depth=[0, 1, 1], transformer_depth_output=[0, 0, 1, 1, 1, 1], channel_mult=[1, 1, 1], transformer_depth_middle=1),
        small_latent=(1, 4, 32, 32), small_prompt=(5, 2048),
    ),
    Architecture(
        "wan1.3b-480p-3x", "Wan 2.1 1.3B, 480p, 241 frames", "WAN21_T2V", _WAN_1B, (1, 16, 61, 60, 104), (512, 4096), shape="wan1.3b-480p-3x", patterns=(), frames=21, timed=1,
        **_WAN_SMALL,
    ),
)  # fmt: skip
"""Those of the issue first; the last runs beyond its trained length, for UltraViCo in a whole step."""
