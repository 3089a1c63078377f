"""A small U-Net with a real CLIP text encoder of the host's own classes, random but seeded, for tests that need words.

host_inprocess.import_host()
with torch.inference_mode():                     # as the server does
    model, clip = with_words(tmp_path)           # MODEL, CLIP; tmp_path is its folder of embeddings
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tiny_models import randomise

CLIP = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2, hidden_act="quick_gelu", max_position_embeddings=77, eos_token_id=49407)
UNET = dict(
    use_checkpoint=False, image_size=32, use_spatial_transformer=True, legacy=False, adm_in_channels=None, in_channels=4, out_channels=4, model_channels=64,
    num_res_blocks=[1, 1], transformer_depth=[1, 1], transformer_depth_output=[1, 1, 1, 1], channel_mult=[1, 1], transformer_depth_middle=1,
    use_linear_in_transformer=False, context_dim=32, num_heads=4, num_head_channels=-1, use_temporal_resblock=False, use_temporal_attention=False,
)  # fmt: skip
LATENT = (1, 4, 8, 12)


def with_words(embeddings: Path) -> tuple[Any, Any]:
    """MODEL and CLIP. The model is cached per process: never change its weights."""
    return _model(), _clip(embeddings)


@cache
def _model() -> Any:
    import comfy.model_patcher
    import comfy.supported_models

    class Small(comfy.supported_models.SD15):
        unet_extra_config: dict[str, Any] = {}  # heads are those above

    config = Small(UNET)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    randomise(model.diffusion_model)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def _clip(embeddings: Path) -> Any:
    import comfy.sd

    return comfy.sd.load_text_encoder_state_dicts(
        [dict(_text())], embedding_directory=str(embeddings), clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION, model_options={"model_config": CLIP, "clip_l_model_config": CLIP}
    )


@cache
def _text() -> dict[str, torch.Tensor]:
    import comfy.clip_model
    import comfy.ops

    text = comfy.clip_model.CLIPTextModel(CLIP, torch.float32, "cpu", comfy.ops.disable_weight_init)
    randomise(text)
    text.text_model.embeddings.token_embedding.weight.data.mul_(32**0.5)
    return text.state_dict()
