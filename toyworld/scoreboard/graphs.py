"""API-format graphs of the toy world's video model, wired as a user would wire them.

Contract of every graph on the scoreboard: node ``sampler`` is the KSampler that the clock watches, node ``save`` is a SaveAnimatedWEBP
(lossless) of the clip, node ``report``, if there is one, is a What Ran whose text is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SAMPLER, SAVE, REPORT = "sampler", "save", "report"
SHIFT, CFG = 3.0, 3.0
"""Flow shift of training and guidance of the length study."""
WAN = (("toy_wan_t2v.safetensors", "diffusion_models"), ("toy_umt5.safetensors", "text_encoders"), ("toy_wan_vae.safetensors", "vae"))


@dataclass(frozen=True)
class Shot:
    """One clip to draw. latent_frames T gives 4 T - 3 frames."""

    caption: str
    seed: int
    latent_frames: int
    steps: int


def text_to_video(*chain: tuple[str, dict[str, Any]]) -> Callable[[Shot], dict[str, Any]]:
    """Graph builder with nodes (class, inputs) chained between model and sampler; none is the stock model.

    Example: ``text_to_video(("LoomRIFLEx", {"preset": "custom", "strength": 1.0, "k": 2}))(Shot("a red circle moving right", 7, 12, 16))``.
    """

    def build(shot: Shot) -> dict[str, Any]:
        nodes = _around(shot)
        model = ["shift", 0]
        for number, (kind, inputs) in enumerate(chain, 1):
            nodes[f"method_{number}"] = {"class_type": kind, "inputs": {"model": model, **inputs}}
            model = [f"method_{number}", 0]
        nodes[SAMPLER]["inputs"]["model"] = model
        if any(kind.startswith("Loom") for kind, _ in chain):
            nodes[REPORT] = {"class_type": "LoomReport", "inputs": {"model": model, "after": [SAMPLER, 0]}}
        return nodes

    return build


def _around(shot: Shot) -> dict[str, Any]:
    """Everything but the method's own nodes."""
    sampling = {"seed": shot.seed, "steps": shot.steps, "cfg": CFG, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    saving = {"filename_prefix": "scoreboard/clip", "fps": 8.0, "lossless": True, "quality": 80, "method": "fastest"}
    length = 4 * shot.latent_frames - 3
    return {
        "unet": {"class_type": "UNETLoader", "inputs": {"unet_name": WAN[0][0], "weight_dtype": "default"}},
        "shift": {"class_type": "ModelSamplingSD3", "inputs": {"model": ["unet", 0], "shift": SHIFT}},
        "clip": {"class_type": "ToyWorldTextEncoder", "inputs": {"clip_name": WAN[1][0]}},
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": WAN[2][0]}},
        "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": shot.caption}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": ""}},
        "latent": {"class_type": "EmptyHunyuanLatentVideo", "inputs": {"width": 64, "height": 64, "length": length, "batch_size": 1}},
        SAMPLER: {"class_type": "KSampler", "inputs": {"positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["latent", 0], **sampling}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": [SAMPLER, 0], "vae": ["vae", 0]}},
        SAVE: {"class_type": "SaveAnimatedWEBP", "inputs": {"images": ["decode", 0], **saving}},
    }
