"""A tiny random model of every family, made with the host's own classes, and what its attention calls are.

    host_inprocess.import_host()
    with torch.inference_mode():                     # as the server does
        model = tiny("wan")                          # Tiny: patcher, positive, negative, latent, facts; unpacks in this order
        out = sample(model.patcher, model)           # two Euler steps through the host's sampling, CFG on

``NAMES`` are all there is. ``Facts.calls(text)`` lists the attention calls of one model call in order, written by hand from
the host's source and not by the adapters, as ``block kind: queries | keys``, where a side is a list of spans like
``text5 video3x2x3`` and keys are left out when they are the queries. ``text`` is the number of prompt tokens in that call.

Weights are random but seeded, fp32, with fan-in scaling, so outputs depend on every input. Models are cached per process;
never change their weights. ``prompts=(5, 3)`` gives positive and negative prompts of unequal length.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import later_hosts
import torch
from attention_loom.bench.host import of_this_host
from torch import Tensor

SEED = 20


@dataclass(frozen=True)
class Facts:
    """What is true of a tiny model, independent of our code.

    family: name the user reads. heads: of every attention. grid: (T, Y, X) tokens. blocks: (kind, index) in order of
    execution, only where it is worth writing down. calls: see the module.
    """

    family: str
    heads: int
    grid: tuple[int, int, int]
    calls: Callable[[int], list[str]]
    still: bool = False


class Tiny(NamedTuple):
    """A model with all that a sampling run needs. latent: fp32, zeros; positive, negative: host conditionings."""

    patcher: Any
    positive: list[Any]
    negative: list[Any]
    latent: Tensor
    facts: Facts


@dataclass(frozen=True)
class Recipe:
    """How to make one. config: class in ``comfy.supported_models``; unet: its unet_config. loader: save it and load it
    through ``comfy.sd.load_diffusion_model`` (with this metadata). width: of the prompt; extra(generator) -> more entries
    of the conditioning. joined: prompts of unequal length run in one batch, repeated to a common length (U-Nets); otherwise in
    a call each. prompts: tokens of the positive and the negative.
    """

    config: str
    unet: dict[str, Any]
    latent: tuple[int, ...]
    width: int
    facts: Facts
    loader: bool = False
    metadata: dict[str, str] | None = None
    extra: Callable[[torch.Generator, int], dict[str, Any]] = field(default=lambda g, n: {})
    joined: bool = False
    prompts: tuple[int, int] = (5, 5)


def twice(*parts: str, kind: str = "block", n: int = 2) -> list[str]:
    """The same calls in blocks 0 to n-1; each part is "kind: layout"."""
    return [f"{kind} {i} {part}" for i in range(n) for part in parts]


def _randn(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g)


# --- the table --------------------------------------------------------------------------------------------------------

_WAN = dict(
    image_model="wan2.1", model_type="t2v", dim=256, ffn_dim=64, freq_dim=256, num_heads=2, num_layers=2, patch_size=(1, 2, 2), window_size=(-1, -1),
    qk_norm=True, cross_attn_norm=True, eps=1e-6, in_dim=16, out_dim=16,
)  # fmt: skip
_WAN_LATENT = (1, 16, 3, 4, 6)
_V = "video3x2x3"


def _wan(name: str, calls: Callable[[int], list[str]], *, config: str = "WAN21_T2V", latent: tuple[int, ...] = _WAN_LATENT, **more: Any) -> Recipe:
    extra = more.pop("extra", lambda g, n: {})
    return Recipe(config, _WAN | more, latent, 4096, Facts("Wan", 2, (3, 2, 3), calls), loader=True, extra=extra)


def _wan_calls(n: int) -> list[str]:
    return twice(f"self: {_V}", f"cross: {_V} | text{n}")


def _clip(tokens: int, width: int) -> Callable[[torch.Generator, int], dict[str, Any]]:
    def extra(g: torch.Generator, n: int) -> dict[str, Any]:
        states = _randn(g, 1, tokens, width)
        return {"clip_vision_output": SimpleNamespace(penultimate_hidden_states=states, last_hidden_state=states)}

    return extra


_HUNYUAN = dict(
    image_model="hunyuan_video", in_channels=16, patch_size=[1, 2, 2], out_channels=16, vec_in_dim=768, axes_dim=[16, 56, 56], meanflow=False,
    context_in_dim=48, hidden_size=256, mlp_ratio=4.0, num_heads=2, depth=1, depth_single_blocks=2, theta=256, qkv_bias=True, byt5=False,
    guidance_embed=True, use_cond_type_embedding=False, vision_in_dim=None,
)  # fmt: skip


def _hunyuan_calls(front: str = "", between: str = "", behind: str = "", grid: str = _V) -> Callable[[int], list[str]]:
    def calls(n: int) -> list[str]:
        picture, text = f"{front} {grid}", f"{between} text{n} {behind}"
        joint = " ".join((f"{text} {picture}" if later_hosts.hunyuan_text_first() else f"{picture} {text}").split())
        return [*twice(f"other: text{n}", kind="refiner"), f"double 0 joint: {joint}", *twice(f"joint: {joint}", kind="single")]

    return calls


def _pooled(width: int, **tensors: tuple[int, ...]) -> Callable[[torch.Generator, int], dict[str, Any]]:
    return lambda g, n: {"pooled_output": _randn(g, 1, width)} | {k: _randn(g, *shape) for k, shape in tensors.items()}


_FLUX = dict(
    image_model="flux", guidance_embed=True, in_channels=16, out_channels=16, vec_in_dim=32, context_in_dim=48, hidden_size=64, mlp_ratio=2.0, num_heads=2,
    depth=1, depth_single_blocks=2, axes_dim=[4, 14, 14], theta=10000, patch_size=2, qkv_bias=True,
)  # fmt: skip


def _flux_calls(grid: str = "image1x2x3", behind: str = "", front: str = "") -> Callable[[int], list[str]]:
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


_UNET = dict(
    use_checkpoint=False, image_size=32, use_spatial_transformer=True, legacy=False, adm_in_channels=None, in_channels=4, out_channels=4, model_channels=320,
    num_res_blocks=[1, 1], transformer_depth=[1, 2], transformer_depth_output=[1, 1, 2, 2], channel_mult=[1, 1], transformer_depth_middle=1,
    use_linear_in_transformer=False, context_dim=768, use_temporal_resblock=False, use_temporal_attention=False,
)  # fmt: skip


def _unet_layers(layers: list[tuple[str, str]]) -> Callable[[int], list[str]]:
    return lambda n: [f"{block} {part}" for block, grid in layers for part in (f"self: image1x{grid}", f"cross: image1x{grid} | text{n}")]


_SD15_LAYERS = [
    ("input 1.0", "4x6"), ("input 3.0", "2x3"), ("input 3.1", "2x3"), ("middle 0.0", "2x3"),
    ("output 0.0", "2x3"), ("output 0.1", "2x3"), ("output 1.0", "2x3"), ("output 1.1", "2x3"), ("output 2.0", "4x6"), ("output 3.0", "4x6"),
]  # fmt: skip
_KOALA_LAYERS = [
    *((f"input 3.{i}", "2x3") for i in range(2)), *((f"input 5.{i}", "1x2") for i in range(5)), ("middle 0.0", "1x2"),
    *((f"output {b}.{i}", "1x2") for b in (0, 1) for i in range(5)), *((f"output {b}.{i}", "2x3") for b in (2, 3) for i in range(2)),
]  # fmt: skip


def _svd_calls(n: int) -> list[str]:
    out = []
    for block, size in (("input 1", "4x6"), ("input 3", "2x3"), ("middle 0", "2x3"), ("output 0", "2x3"), ("output 1", "2x3"), ("output 2", "4x6"), ("output 3", "4x6")):
        out += [f"{block}.0 self: image1x{size}", f"{block}.0 cross: image1x{size} | text{n}", f"{block}.1 self: video3x1x1", f"{block}.1 cross: video3x1x1 | text{n}"]
    return out


_COSMOS = dict(
    max_img_h=16, max_img_w=16, max_frames=16, in_channels=16, out_channels=16, patch_spatial=2, patch_temporal=1, model_channels=64, concat_padding_mask=True,
    pos_emb_cls="rope3d", pos_emb_interpolation="crop", use_adaln_lora=True, adaln_lora_dim=16, num_blocks=2, num_heads=2, crossattn_emb_channels=48,
    extra_h_extrapolation_ratio=1.0, extra_w_extrapolation_ratio=1.0, extra_t_extrapolation_ratio=1.0,
    rope_h_extrapolation_ratio=1.0, rope_w_extrapolation_ratio=1.0, rope_t_extrapolation_ratio=2.0,
)  # fmt: skip

_REF = "reference6"
_LTX = dict(image_model="ltxv", num_layers=2, attention_head_dim=32, num_attention_heads=2, cross_attention_dim=64, caption_channels=48)
_LTX_FILE = {"config": json.dumps({"transformer": {k: v for k, v in _LTX.items() if k not in ("image_model", "num_layers")}})}


def _mask(valid: int, n: int) -> dict[str, Any]:
    return {"attention_mask": torch.tensor([[1] * valid + [0] * (n - valid)])}


RECIPES: dict[str, Recipe] = {
    "wan": _wan("wan", _wan_calls),
    "wan_ti2v": _wan("wan_ti2v", _wan_calls, config="WAN22_T2V", latent=(1, 48, 3, 4, 6), in_dim=48, out_dim=48),
    "wan_i2v": _wan(
        "wan_i2v", lambda n: twice(f"self: {_V}", f"cross: {_V} | reference257", f"cross: {_V} | text{n}"), config="WAN21_I2V",
        model_type="i2v", in_dim=36, extra=_clip(257, 1280),
    ),
    # without a CLIP picture the host reads the whole prompt through the picture's projections as well
    "wan_i2v_blind": _wan(
        "wan_i2v_blind", lambda n: twice(f"self: {_V}", f"cross: {_V} | text{n}", f"cross: {_V} | text{n}"), config="WAN21_I2V", model_type="i2v", in_dim=36,
    ),
    "wan_fun_reference": _wan(
        "wan_fun_reference", lambda n: twice(f"self: {_REF} {_V}", f"cross: {_REF} {_V} | text{n}"), in_dim_ref_conv=16,
        extra=lambda g, n: {"reference_latents": [_randn(g, 1, 16, 1, 4, 6)]},
    ),
    "wan_phantom": _wan(
        "wan_phantom", lambda n: twice(f"self: {_V} reference12", f"cross: {_V} reference12 | text{n}"),
        extra=lambda g, n: {"time_dim_concat": _randn(g, 1, 16, 2, 4, 6)},
    ),
    "wan_vace": _wan(
        "wan_vace",
        lambda n: [f"{b} {p}" for b in ("block 0", "vace 0", "block 1") for p in (f"self: {_V}", f"cross: {_V} | text{n}")],
        config="WAN21_Vace", model_type="vace", vace_layers=1, vace_in_dim=96,
    ),
    "wan_camera": _wan(
        "wan_camera", lambda n: twice(f"self: {_V}", f"cross: {_V} | reference257", f"cross: {_V} | text{n}"), config="WAN21_Camera",
        model_type="camera", in_dim=32, extra=lambda g, n: _clip(257, 1280)(g, n) | {"camera_conditions": _randn(g, 1, 24, 3, 32, 48)},
    ),
    "hunyuan_video": Recipe(
        "HunyuanVideo", _HUNYUAN, _WAN_LATENT, 48, Facts("HunyuanVideo", 2, (3, 2, 3), _hunyuan_calls()), loader=True, extra=_pooled(768),
    ),
    "hunyuan_video_padded_text": Recipe(
        "HunyuanVideo",
        _HUNYUAN,
        _WAN_LATENT,
        48,
        Facts("HunyuanVideo", 2, (3, 2, 3), _hunyuan_calls()),
        extra=lambda g, n: _pooled(768)(g, n) | _mask(n - 1, n),
        prompts=(5, 3),  # the host joins text masks of one batch row only
    ),
    "hunyuan_video_reference": Recipe(
        "HunyuanVideo", _HUNYUAN, _WAN_LATENT, 48, Facts("HunyuanVideo", 2, (3, 2, 3), _hunyuan_calls(front=_REF)), loader=True,
        extra=_pooled(768, ref_latent=(1, 16, 1, 4, 6)), prompts=(5, 3),  # with more than one batch row the host's reference code fails
    ),
    "hunyuan_video_15": Recipe(
        "HunyuanVideo15", _HUNYUAN | dict(in_channels=65, out_channels=32, vec_in_dim=None, byt5=True, use_cond_type_embedding=True, vision_in_dim=1152, guidance_embed=False),
        (1, 32, 3, 4, 6), 48, Facts("HunyuanVideo", 2, (3, 2, 3), _hunyuan_calls(between="reference9 other4")), loader=True,
        extra=lambda g, n: _pooled(768, conditioning_byt5small=(1, 4, 1472))(g, n) | _clip(9, 1152)(g, n),
    ),
    "hunyuan_image": Recipe(
        "HunyuanImage21", _HUNYUAN | dict(in_channels=64, out_channels=64, vec_in_dim=None, byt5=True, patch_size=[2, 2], axes_dim=[64, 64], guidance_embed=False),
        (1, 64, 4, 6), 48, Facts("HunyuanVideo", 2, (1, 2, 3), _hunyuan_calls(behind="other4", grid="image1x2x3"), still=True), loader=True,
        extra=_pooled(768, conditioning_byt5small=(1, 4, 1472)),
    ),
    # the host cannot run LTX without a text mask
    "ltx": Recipe("LTXV", _LTX, (1, 128, 3, 2, 3), 48, Facts("LTX", 2, (3, 2, 3), _wan_calls), loader=True, metadata=_LTX_FILE, extra=lambda g, n: _mask(n, n)),
    "ltx_padded_text": Recipe("LTXV", _LTX, (1, 128, 3, 2, 3), 48, Facts("LTX", 2, (3, 2, 3), _wan_calls), extra=lambda g, n: _mask(n - 1, n)),
    "ltx_guides": Recipe(
        "LTXV", _LTX, (1, 128, 4, 2, 3), 48, Facts("LTX", 2, (3, 2, 3), lambda n: twice(f"self: {_V} {_REF}", f"cross: {_V} {_REF} | text{n}")),
        extra=lambda g, n: _mask(n, n) | later_hosts.ltx_guides(6),
    ),
    "mochi": Recipe(
        "GenmoMochi",
        dict(
            image_model="mochi_preview", depth=2, patch_size=2, num_heads=2, hidden_size_x=64, hidden_size_y=48, mlp_ratio_x=192.0, mlp_ratio_y=4.0, learn_sigma=False,
            in_channels=12, qk_norm=True, qkv_bias=False, out_bias=True, attn_drop=0.0, patch_embed_bias=True, posenc_preserve_area=True, timestep_mlp_bias=True,
            attend_to_padding=False, timestep_scale=1000.0, use_t5=True, t5_feat_dim=64, t5_token_length=256, rope_theta=10000.0,
        ),
        (1, 12, 3, 4, 6), 64, Facts("Mochi", 2, (3, 2, 3), lambda n: twice(f"joint: {_V} text{n - 1}", kind="double")),
        extra=lambda g, n: _mask(n - 1, n),
    ),
    "cosmos": Recipe(
        "CosmosT2V",
        _COSMOS | dict(image_model="cosmos", block_config="FA-CA-MLP", pos_emb_learnable=False, block_x_format="THWBD", affline_emb_norm=True,
                       extra_per_block_abs_pos_emb=True, extra_per_block_abs_pos_emb_type="learnable"),
        _WAN_LATENT, 48, Facts("Cosmos", 2, (3, 2, 3), _wan_calls),
    ),
    "cosmos_predict2": Recipe(
        "CosmosT2IPredict2", _COSMOS | dict(image_model="cosmos_predict2", pos_emb_learnable=True, min_fps=1, max_fps=30, extra_per_block_abs_pos_emb=False, rope_enable_fps_modulation=False),
        _WAN_LATENT, 48, Facts("Cosmos", 2, (3, 2, 3), _wan_calls),
    ),
    "flux": Recipe("Flux", _FLUX, (1, 16, 4, 6), 48, Facts("FLUX", 2, (1, 2, 3), _flux_calls(), still=True), extra=_pooled(32)),
    "flux_odd_size": Recipe("Flux", _FLUX, (1, 16, 3, 5), 48, Facts("FLUX", 2, (1, 2, 3), _flux_calls(), still=True), extra=_pooled(32)),
    "flux_references": Recipe(
        "Flux", _FLUX, (1, 16, 4, 6), 48, Facts("FLUX", 2, (1, 2, 3), _flux_calls(behind="reference10"), still=True),
        extra=lambda g, n: _pooled(32)(g, n) | {"reference_latents": [_randn(g, 1, 16, 4, 4), _randn(g, 1, 16, 3, 6)]},
    ),
    "flux2": Recipe(
        "Flux2",
        _FLUX | dict(image_model="flux2", in_channels=128, out_channels=128, vec_in_dim=None, axes_dim=[8, 8, 8, 8], theta=2000, patch_size=1, qkv_bias=False,
                     global_modulation=True, mlp_silu_act=True, ops_bias=False, default_ref_method="index", ref_index_scale=10.0),
        (1, 128, 2, 3), 48, Facts("FLUX", 2, (1, 2, 3), lambda n: _flux_calls()(512), still=True), extra=_pooled(32),
    ),
    "chroma": Recipe(
        "Chroma",
        dict(image_model="chroma", in_channels=64, out_channels=64, context_in_dim=48, hidden_size=64, mlp_ratio=2.0, num_heads=2, depth=1, depth_single_blocks=2,
             axes_dim=[4, 14, 14], theta=10000, patch_size=2, qkv_bias=True, in_dim=64, out_dim=64, hidden_dim=64, n_layers=1),
        (1, 16, 4, 6), 48, Facts("FLUX", 2, (1, 2, 3), _flux_calls(), still=True),
        # the host hands references to Chroma, which drops them
        extra=lambda g, n: _pooled(32)(g, n) | {"reference_latents": [_randn(g, 1, 16, 4, 4)]},
    ),
    "sd3": Recipe(
        "SD3",
        dict(in_channels=16, patch_size=2, out_channels=16, depth=2, input_size=None, adm_in_channels=32, num_patches=64, pos_embed_max_size=8, qk_norm="rms",
             context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 48, "out_features": 128}}, pos_embed_scaling_factor=None,
             x_block_self_attn_layers=[0]),
        (1, 16, 4, 6), 48,
        Facts("SD3", 2, (1, 2, 3), lambda n: [f"double 0 joint: text{n} image1x2x3", "double 0 self: image1x2x3", f"double 1 joint: text{n} image1x2x3"], still=True),
        loader=True, extra=_pooled(32),
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
        extra=lambda g, n: {"reference_latents": [_randn(g, 1, 16, 1, 4, 4), _randn(g, 1, 16, 1, 4, 4)]},
    ),
    "lumina2": Recipe("Lumina2", _LUMINA, (1, 16, 4, 6), 48, Facts("Lumina 2 / Z-Image", 2, (1, 2, 3), _lumina_calls, still=True)),
    "z_image": Recipe(
        "ZImage", _LUMINA | dict(dim=256, n_kv_heads=2, axes_dims=[32, 48, 48], rope_theta=256.0, z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32),
        (1, 16, 4, 6), 48, Facts("Lumina 2 / Z-Image", 2, (1, 2, 3), _z_image_calls, still=True),
    ),
    "sd15": Recipe(
        "SD15", _UNET, (1, 4, 4, 6), 768, Facts("SD 1.5 / SDXL", 8, (1, 4, 6), _unet_layers(_SD15_LAYERS), still=True), loader=True, joined=True,
    ),
    "sdxl": Recipe(
        "KOALA_700M",
        _UNET | dict(num_res_blocks=[1, 1, 1], transformer_depth=[0, 2, 5], transformer_depth_output=[0, 0, 2, 2, 5, 5], channel_mult=[1, 1, 1], num_classes="sequential",
                     use_linear_in_transformer=True, context_dim=2048, adm_in_channels=2816),
        (1, 4, 4, 6), 2048, Facts("SD 1.5 / SDXL", 5, (1, 4, 6), _unet_layers(_KOALA_LAYERS), still=True), loader=True, extra=_pooled(1280), joined=True,
    ),
    "svd": Recipe(
        "SVD_img2vid",
        _UNET | dict(in_channels=8, model_channels=64, transformer_depth=[1, 1], transformer_depth_output=[1, 1, 1, 1], use_linear_in_transformer=True, context_dim=48,
                     num_classes="sequential", adm_in_channels=768, extra_ff_mix_layer=True, use_spatial_context=True, merge_strategy="learned_with_images", merge_factor=0.0,
                     video_kernel_size=[3, 1, 1], use_temporal_resblock=True, use_temporal_attention=True, disable_temporal_crossattention=False),
        (3, 4, 4, 6), 48, Facts("SD 1.5 / SDXL", 1, (3, 4, 6), _svd_calls), joined=True,
    ),
}  # fmt: skip

NAMES = tuple(RECIPES)


# --- making them ------------------------------------------------------------------------------------------------------


def tiny(name: str, prompts: tuple[int, int] | None = None, latent: tuple[int, ...] | None = None) -> Tiny:
    """A model and its inputs. prompts: tokens of the positive and the negative; latent: another latent shape."""
    recipe = RECIPES[name]
    g = torch.Generator().manual_seed(SEED)
    positive, negative = ([[_randn(g, 1, n, recipe.width), recipe.extra(g, n)]] for n in prompts or recipe.prompts)
    return Tiny(_model(name), positive, negative, torch.zeros(latent or recipe.latent), recipe.facts)


def sample(patcher: Any, model: Tiny, steps: int = 2, cfg: float = 3.0, sampler: str = "euler", **more: Any) -> Tensor:
    """The sampled latent, through ``comfy.sample.sample``: seeded noise, positive and negative conditioning."""
    import comfy.sample

    noise = comfy.sample.prepare_noise(model.latent, SEED)
    return comfy.sample.sample(patcher, noise, steps, cfg, sampler, "simple", model.positive, model.negative, model.latent, disable_pbar=True, seed=SEED, **more)


@cache
def _model(name: str) -> Any:
    """The ModelPatcher. Weights are inference tensors, as in the server, when called inside inference mode."""
    import comfy.model_patcher
    import comfy.sd
    import comfy.supported_models
    import comfy.utils

    recipe = RECIPES[name]
    config = getattr(comfy.supported_models, recipe.config)(of_this_host(recipe.unet))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    randomise(model.diffusion_model)
    if not recipe.loader:
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / f"{name}.safetensors")
        state = {k: v.contiguous() for k, v in model.diffusion_model.state_dict().items()}
        comfy.utils.save_torch_file(state, path, metadata=recipe.metadata)
        loaded = comfy.sd.load_diffusion_model(path, model_options={"dtype": torch.float32})
    if type(loaded.model) is not type(model):
        raise AssertionError(f"{name}: the host read {type(loaded.model).__name__} from a {type(model).__name__}")
    return loaded


def randomise(module: torch.nn.Module) -> None:
    """Seeded weights of ordinary size: matrices by fan-in, norms near one, the rest small."""
    g = torch.Generator().manual_seed(SEED)
    for key, p in (*module.named_parameters(), *((k, b) for k, b in module.named_buffers() if k.endswith("pos_embed"))):
        value = torch.randn(p.shape, generator=g)
        if p.ndim >= 2:
            value /= max(1.0, p[0].numel()) ** 0.5
        elif "norm" in key and key.endswith(("weight", "scale")):
            value = 1 + 0.1 * value
        else:
            value *= 0.1
        p.data.copy_(value)
