"""Workflows for clips: longer ones, and self-attention that computes only a part."""

from __future__ import annotations

from dataclasses import replace

from .base import Node, Recipe, link, sampler, toy_branch, toy_model, toy_prompts


def longer_video_toy() -> Recipe:
    """Native length, then 4x as stock, RIFLEx and UltraViCo make it, from one seed, on the toy world's own model."""
    load, text, native, stock, riflex, ours = "Toy world model", "Prompt and length", "Native length (21 frames)", "4x, stock", "4x, RIFLEx", "4x, UltraViCo"
    nodes = {
        **toy_model(load),
        **toy_prompts("a red circle orbiting clockwise", text),
        "short": Node("EmptyHunyuanLatentVideo", {"width": 64, "height": 64, "length": 21, "batch_size": 1}, text, "Native: 21 frames, 6 latent"),
        "long": Node("EmptyHunyuanLatentVideo", {"width": 64, "height": 64, "length": 93, "batch_size": 1}, text, "4x: 93 frames, 24 latent"),
        "riflex": Node("LoomRIFLEx", {"model": link("shift"), "preset": "custom", "strength": 1.0, "k": 3}, riflex),
        "ultravico": Node("LoomUltraViCo", {"model": link("shift"), "preset": "custom", "alpha": 0.6, "strength": 1.0, "train_frames": 6, "first_frame": "off"}, ours),
    }
    toy_branch(nodes, "native", native, "shift", "short", "Native length")
    toy_branch(nodes, "stock", stock, "shift", "long", "4x, stock")
    toy_branch(nodes, "riflex", riflex, "riflex", "long", "4x, RIFLEx")
    toy_branch(nodes, "ultravico", ours, "ultravico", "long", "4x, UltraViCo")
    nodes["report"] = Node("LoomReport", {"model": link("ultravico"), "after": link("ultravico_sampler")}, ours)
    note = (
        "# Longer video (toy world)\n\n"
        "A 5-million-parameter Wan model trained on clips of 21 frames draws the same prompt and seed at native length and at four times that "
        "length: stock, with RIFLEx, with UltraViCo. Watch the shape and the path.\n\n"
        "Prompts: *a (red, green, blue, yellow, purple, white) (circle, square, triangle)* then *moving right / left / up / down*, *standing still* or "
        "*orbiting clockwise / counterclockwise*.\n\n"
        "**What ran** lists which attention calls were changed. For a real model open *longer_video_wan*; its alpha is 0.9, this tiny model wants less."
    )
    return Recipe(
        "longer_video_ultravico",
        {load: (0, 0), text: (1, 0), native: (2, 0), stock: (2, 1), riflex: (3, 0), ours: (3, 1)},
        nodes,
        note,
    )


WAN_FILES = "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"


def longer_video_wan() -> Recipe:
    """Wan 2.1 1.3B at three times its native length."""
    load, text, sample = "Model", "Prompt and length", "Sampling and video"
    unet, clip, vae = "wan2.1_t2v_1.3B_fp16.safetensors", "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan_2.1_vae.safetensors"

    def files(name: str, directory: str) -> list[dict[str, str]]:
        return [{"name": name, "url": f"{WAN_FILES}/{directory}/{name}", "directory": directory}]

    nodes = {
        "unet": Node("UNETLoader", {"unet_name": unet, "weight_dtype": "default"}, load, models=files(unet, "diffusion_models")),
        "clip": Node("CLIPLoader", {"clip_name": clip, "type": "wan", "device": "default"}, load, models=files(clip, "text_encoders")),
        "vae": Node("VAELoader", {"vae_name": vae}, load, models=files(vae, "vae")),
        "shift": Node("ModelSamplingSD3", {"model": link("unet"), "shift": 8.0}, load),
        "ultravico": Node("LoomUltraViCo", {"model": link("shift"), "preset": "auto", "alpha": 0.9, "strength": 1.0}, load),
        "positive": Node(
            "CLIPTextEncode",
            {"clip": link("clip"), "text": "a fox runs through fresh snow in a birch forest, the camera follows beside it, morning light, one continuous shot"},
            text,
            "Prompt",
        ),
        "negative": Node(
            "CLIPTextEncode", {"clip": link("clip"), "text": "static, blurry, low quality, worst quality, still picture, jpeg artifacts, ugly, deformed"}, text, "Negative"
        ),
        "latent": Node("EmptyHunyuanLatentVideo", {"width": 832, "height": 480, "length": 249, "batch_size": 1}, text, "249 frames: 63 latent, 3x"),
        "sampler": sampler("ultravico", "latent", sample, "KSampler", steps=30, cfg=6.0, sampler="uni_pc"),
        "decode": Node("VAEDecodeTiled", {"samples": link("sampler"), "vae": link("vae"), "tile_size": 256, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}, sample),
        "video": Node("CreateVideo", {"images": link("decode"), "fps": 16.0}, sample),
        "save": Node("SaveVideo", {"video": link("video"), "filename_prefix": "video/longer_video_wan", "format": "auto", "codec": "auto"}, sample),
        "report": Node("LoomReport", {"model": link("ultravico"), "after": link("sampler")}, sample),
    }
    note = (
        "# Longer video (Wan 2.1)\n\n"
        "249 frames in one run: three times the 81 frames Wan 2.1 was trained on. Take **Longer Video (UltraViCo)** out (bypass it) to see what the stock model does.\n\n"
        "- Attention costs 9x that of the native clip: start small.\n"
        "- *alpha* lower than 0.9: sharper, more motion, less memory of the start.\n"
        "- HunyuanVideo: load it instead; preset *auto* recognises it."
    )
    return Recipe("longer_video_wan", {load: (0, 0), text: (1, 0), sample: (2, 0)}, nodes, note)


def sparse_attention_toy() -> Recipe:
    """One clip dense and with three patterns at the same share of the attention, on the toy world's own model."""
    load, text, dense = "Toy world model", "Prompt and length", "Dense"
    nodes = {
        **toy_model(load),
        **toy_prompts("a green triangle moving right", text),
        "clip_length": Node("EmptyHunyuanLatentVideo", {"width": 64, "height": 64, "length": 21, "batch_size": 1}, text, "21 frames, 6 latent"),
    }
    toy_branch(nodes, "dense", dense, "shift", "clip_length", "Dense")
    groups = {load: (0, 0), text: (1, 0), dense: (2, 0)}
    for i, pattern in enumerate(("draft", "adaspa", "sliding_tile")):
        group = f"Sparse: {pattern}"
        groups[group] = (2 + (i + 1) % 2, (i + 1) // 2)
        nodes[pattern] = Node(
            "LoomSparseAttention",
            {"model": link("shift"), "pattern": pattern, "density": 0.3, "start_percent": 0.2, "dense_blocks": "0", "min_tokens": 0, "block_size": "4", "measure": False},
            group,
        )
        toy_branch(nodes, f"sparse_{pattern}", group, pattern, "clip_length", pattern)
    nodes["report"] = Node("LoomReport", {"model": link("adaspa"), "after": link("sparse_adaspa_sampler")}, "Sparse: adaspa")
    note = (
        "# Sparse attention (toy world)\n\n"
        "The same prompt and seed with all of the attention and with about a third of it, chosen by three patterns. On 96 tokens this saves no time; "
        "it shows what is lost. Real models start at 8,000 tokens: see *sparse_attention_wan*.\n\n"
        "**What Ran** shows which steps searched, which reused, and the share of pairs that was computed."
    )
    return Recipe("sparse_attention", groups, nodes, note)


def sparse_attention_wan() -> Recipe:
    """Wan 2.1 at 81 frames of 480p with radial attention."""
    recipe = longer_video_wan()
    nodes = dict(recipe.nodes)
    del nodes["ultravico"]
    nodes["sparse"] = Node(
        "LoomSparseAttention",
        {"model": link("shift"), "pattern": "radial", "density": 0.4, "start_percent": 0.25, "dense_blocks": "0"},
        "Model",
    )
    for name in ("sampler", "report"):
        old = nodes[name]
        nodes[name] = replace(old, inputs=old.inputs | {"model": link("sparse")})
    latent = nodes["latent"]
    nodes["latent"] = replace(latent, inputs=latent.inputs | {"length": 81}, title="81 frames: 21 latent, 32,760 tokens")
    save = nodes["save"]
    nodes["save"] = replace(save, inputs=save.inputs | {"filename_prefix": "video/sparse_attention_wan"})
    note = (
        "# Sparse attention (Wan 2.1)\n\n"
        "81 frames of 480p: the first quarter of the steps and the first block dense, the rest with radial attention.\n\n"
        "- The node times sparse against dense once and stays dense where your GPU gains nothing; **What Ran** says which.\n"
        "- Other patterns: *draft* and *adaspa* follow the content; *density* sets how much is computed.\n"
        "- Longer clips gain more. Chain **Longer Video (UltraViCo)** for clips beyond 81 frames."
    )
    return replace(recipe, name="sparse_attention_wan", nodes=nodes, note=note)


SD15 = "v1-5-pruned-emaonly-fp16.safetensors"
SD15_FILE = {"name": SD15, "url": f"https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{SD15}", "directory": "checkpoints"}
