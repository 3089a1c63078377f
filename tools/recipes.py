"""The bundled workflows as recipes: what each graph holds, how it is laid out, what its note says.

``tools/build_workflows.py`` turns a recipe into the two files users get: ``workflows/<name>.json`` (opens in the frontend)
and ``workflows/api/<name>.json`` (queued headless).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass
class Node:
    """One node: class, inputs ([id, slot] lists are links), group it stands in, title if not the class's own."""

    kind: str
    inputs: dict[str, Any]
    group: str
    title: str = ""
    models: list[dict[str, str]] = field(default_factory=list)
    width: int = 0


@dataclass
class Recipe:
    """One workflow. groups: title -> column; nodes by id; note: Markdown shown beside the graph."""

    name: str
    groups: dict[str, tuple[int, int]]
    nodes: dict[str, Node]
    note: str


def link(node: str, slot: int = 0) -> list[Any]:
    """A connection from an output slot."""
    return [node, slot]


def _sampler(model: str, latent: str, group: str, title: str, steps: int, cfg: float, sampler: str = "euler") -> Node:
    return Node(
        "KSampler",
        {
            "model": link(model), "positive": link("positive"), "negative": link("negative"), "latent_image": link(latent),
            "seed": 7, "steps": steps, "cfg": cfg, "sampler_name": sampler, "scheduler": "simple", "denoise": 1.0,
        },
        group,
        title,
    )  # fmt: skip


def _toy_branch(nodes: dict[str, Node], key: str, group: str, model: str, latent: str, title: str) -> None:
    nodes[f"{key}_sampler"] = _sampler(model, latent, group, title, steps=16, cfg=3.0)
    nodes[f"{key}_decode"] = Node("VAEDecode", {"samples": link(f"{key}_sampler"), "vae": link("vae")}, group)
    nodes[f"{key}_save"] = Node(
        "SaveAnimatedWEBP",
        {"images": link(f"{key}_decode"), "filename_prefix": f"attention_loom/{key}", "fps": 8.0, "lossless": True, "quality": 80, "method": "default"},
        group,
    )


def longer_video_toy() -> Recipe:
    """Native length, then 4x as stock, RIFLEx and UltraViCo make it, from one seed, on the toy world's own model."""
    load, text, native, stock, riflex, ours = "Toy world model", "Prompt and length", "Native length (21 frames)", "4x, stock", "4x, RIFLEx", "4x, UltraViCo"
    nodes = {
        "unet": Node("UNETLoader", {"unet_name": "toy_wan_t2v.safetensors", "weight_dtype": "default"}, load),
        "shift": Node("ModelSamplingSD3", {"model": link("unet"), "shift": 3.0}, load),
        "clip": Node("ToyWorldTextEncoder", {"clip_name": "toy_umt5.safetensors"}, load),
        "vae": Node("VAELoader", {"vae_name": "toy_wan_vae.safetensors"}, load),
        "positive": Node("CLIPTextEncode", {"clip": link("clip"), "text": "a red circle orbiting clockwise"}, text, "Prompt"),
        "negative": Node("CLIPTextEncode", {"clip": link("clip"), "text": ""}, text, "Negative (empty)"),
        "short": Node("EmptyHunyuanLatentVideo", {"width": 64, "height": 64, "length": 21, "batch_size": 1}, text, "Native: 21 frames, 6 latent"),
        "long": Node("EmptyHunyuanLatentVideo", {"width": 64, "height": 64, "length": 93, "batch_size": 1}, text, "4x: 93 frames, 24 latent"),
        "riflex": Node("LoomRIFLEx", {"model": link("shift"), "preset": "custom", "strength": 1.0, "k": 3}, riflex),
        "ultravico": Node("LoomUltraViCo", {"model": link("shift"), "preset": "custom", "alpha": 0.6, "strength": 1.0, "train_frames": 6, "first_frame": "off"}, ours),
    }
    _toy_branch(nodes, "native", native, "shift", "short", "Native length")
    _toy_branch(nodes, "stock", stock, "shift", "long", "4x, stock")
    _toy_branch(nodes, "riflex", riflex, "riflex", "long", "4x, RIFLEx")
    _toy_branch(nodes, "ultravico", ours, "ultravico", "long", "4x, UltraViCo")
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
        "sampler": _sampler("ultravico", "latent", sample, "KSampler", steps=30, cfg=6.0, sampler="uni_pc"),
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
        "unet": Node("UNETLoader", {"unet_name": "toy_wan_t2v.safetensors", "weight_dtype": "default"}, load),
        "shift": Node("ModelSamplingSD3", {"model": link("unet"), "shift": 3.0}, load),
        "clip": Node("ToyWorldTextEncoder", {"clip_name": "toy_umt5.safetensors"}, load),
        "vae": Node("VAELoader", {"vae_name": "toy_wan_vae.safetensors"}, load),
        "positive": Node("CLIPTextEncode", {"clip": link("clip"), "text": "a green triangle moving right"}, text, "Prompt"),
        "negative": Node("CLIPTextEncode", {"clip": link("clip"), "text": ""}, text, "Negative (empty)"),
        "clip_length": Node("EmptyHunyuanLatentVideo", {"width": 64, "height": 64, "length": 21, "batch_size": 1}, text, "21 frames, 6 latent"),
    }
    _toy_branch(nodes, "dense", dense, "shift", "clip_length", "Dense")
    groups = {load: (0, 0), text: (1, 0), dense: (2, 0)}
    for i, pattern in enumerate(("draft", "adaspa", "sliding_tile")):
        group = f"Sparse: {pattern}"
        groups[group] = (2 + (i + 1) % 2, (i + 1) // 2)
        nodes[pattern] = Node(
            "LoomSparseAttention",
            {"model": link("shift"), "pattern": pattern, "density": 0.3, "start_percent": 0.2, "dense_blocks": "0", "min_tokens": 0, "block_size": "4", "measure": False},
            group,
        )
        _toy_branch(nodes, f"sparse_{pattern}", group, pattern, "clip_length", pattern)
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


def _picture_branch(nodes: dict[str, Node], key: str, group: str, model: str, title: str) -> None:
    nodes[f"{key}_sampler"] = _sampler(model, "latent", group, title, steps=25, cfg=7.0, sampler="dpmpp_2m")
    nodes[f"{key}_decode"] = Node("VAEDecode", {"samples": link(f"{key}_sampler"), "vae": link("checkpoint", 2)}, group)
    nodes[f"{key}_save"] = Node("SaveImage", {"images": link(f"{key}_decode"), "filename_prefix": f"attention_loom/{key}"}, group)


def any_size_sd15() -> Recipe:
    """SD 1.5 well below its size, stock and with entropy scaling."""
    load, text, stock, ours = "Model", "Prompt and size", "Stock", "Any Size"
    nodes = {
        "checkpoint": Node("CheckpointLoaderSimple", {"ckpt_name": SD15}, load, models=[SD15_FILE]),
        "any_size": Node("LoomEntropyScale", {"model": link("checkpoint"), "strength": 1.0}, ours),
        "positive": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": "a photo of a corgi sitting on a park bench, full body, autumn leaves"}, text, "Prompt"),
        "negative": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": "blurry, low quality, cropped"}, text, "Negative"),
        "latent": Node("EmptyLatentImage", {"width": 320, "height": 320, "batch_size": 4}, text, "320 x 320, trained at 512"),
    }
    _picture_branch(nodes, "any_size_stock", stock, "checkpoint", "Stock")
    _picture_branch(nodes, "any_size", ours, "any_size", "Any Size")
    nodes["report"] = Node("LoomReport", {"model": link("any_size"), "after": link("any_size_sampler")}, ours)
    note = (
        "# Any size (SD 1.5)\n\n"
        "Four seeds at 320 x 320 from a model trained at 512 x 512, stock and with **Any Size**. Try 384 x 384, 448 x 640 and 768 x 512 as well.\n\n"
        "- *strength* 1 is the paper's rule; 2 is stronger.\n"
        "- From 2x per side on do not expect it to help: upscale in a second pass.\n"
        "- A model trained at another size: set *train_width* and *train_height*."
    )
    return Recipe("any_size_sd15", {load: (0, 0), text: (1, 0), stock: (2, 0), ours: (2, 1)}, nodes, note)


def place_subjects_sd15() -> Recipe:
    """Two subjects with their own descriptions in their own places, stock and with space-time attention."""
    load, text, stock, ours = "Model", "Prompt", "Stock", "Place Subjects"
    nodes = {
        "checkpoint": Node("CheckpointLoaderSimple", {"ckpt_name": SD15}, load, models=[SD15_FILE]),
        "positive": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": "a red fox and a snowy owl in a winter forest"}, text, "Prompt"),
        "negative": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": ""}, text, "Negative"),
        "latent": Node("EmptyLatentImage", {"width": 512, "height": 512, "batch_size": 4}, text),
        "place": Node(
            "LoomSpaceTime",
            {"model": link("checkpoint"), "clip": link("checkpoint", 1), "regions": "a red fox @ left\na snowy owl @ right", "strength": 1.0},
            ours,
        ),
    }
    _picture_branch(nodes, "place_stock", stock, "checkpoint", "Stock")
    _picture_branch(nodes, "place", ours, "place", "Place Subjects")
    nodes["report"] = Node("LoomReport", {"model": link("place"), "after": link("place_sampler")}, ours)
    note = (
        "# Place subjects (SD 1.5)\n\n"
        "Four seeds of one prompt, stock and with a description per place. One line per subject: *description @ place*; a place is *left*, *right*, *top*, "
        "*bottom*, *x, y* from 0 to 1, a box *left, top, right, bottom*, or *mask*.\n\n"
        "- Too strong: lower *strength*, or choose mode *convex*.\n"
        "- CFG 1 or a long negative prompt: mode *affine*.\n"
        "- SDXL and Wan work the same way."
    )
    return Recipe("place_subjects_sd15", {load: (0, 0), text: (1, 0), stock: (2, 0), ours: (2, 1)}, nodes, note)


FLUX = "flux1-dev-fp8.safetensors"
FLUX_FILE = {"name": FLUX, "url": f"https://huggingface.co/Comfy-Org/flux1-dev/resolve/main/{FLUX}", "directory": "checkpoints"}


def head_guidance_sd15() -> Recipe:
    """One prompt with CFG alone, with the host's perturbed-attention guidance, and with weakened heads at half its strength."""
    load, text, stock, host, ours = "Model", "Prompt", "CFG alone", "CFG and PAG", "CFG and Head Guidance"
    nodes = {
        "checkpoint": Node("CheckpointLoaderSimple", {"ckpt_name": SD15}, load, models=[SD15_FILE]),
        "positive": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": "a photo of an old bicycle leaning on a stone wall, ivy, morning light"}, text, "Prompt"),
        "negative": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": ""}, text, "Negative"),
        "latent": Node("EmptyLatentImage", {"width": 512, "height": 512, "batch_size": 4}, text),
        "pag": Node("PerturbedAttentionGuidance", {"model": link("checkpoint"), "scale": 3.0}, host),
        "heads": Node("LoomSoftPAG", {"model": link("checkpoint"), "preset": "auto", "scale": 3.0, "u": 0.5}, ours),
    }
    for key, group, model, title in (("cfg", stock, "checkpoint", "CFG alone"), ("pag_cfg", host, "pag", "PAG"), ("head_guidance", ours, "heads", "Head Guidance")):
        _picture_branch(nodes, key, group, model, title)
    nodes["report"] = Node("LoomReport", {"model": link("heads"), "after": link("head_guidance_sampler")}, ours)
    note = (
        "# Head guidance (SD 1.5)\n\n"
        "Four seeds with CFG alone, with the host's **Perturbed-Attention Guidance**, and with **Head Guidance** on the same middle block at half its *u*: a softer push "
        "at the same cost, one more evaluation per step.\n\n"
        "- *heads* takes single heads and blocks: `m0`, `u0.4`, `d4-d8`, `L9H3@0.3`.\n"
        "- Burnt or smooth pictures: lower *u* or *scale*, lower the CFG, or set *rescale* to 0.7.\n"
        "- Two of these nodes add up."
    )
    return Recipe("head_guidance_sd15", {load: (0, 0), text: (1, 0), stock: (2, 0), host: (2, 1), ours: (3, 0)}, nodes, note)


def head_guidance_flux() -> Recipe:
    """FLUX.1 dev without CFG: stock, and pushed away from a prediction in which one published head is weakened."""
    load, text, stock, ours = "Model", "Prompt", "Stock", "Head Guidance"
    sampling = {
        "positive": link("guidance"), "negative": link("negative"), "latent_image": link("latent"),
        "seed": 7, "steps": 15, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
    }  # fmt: skip
    nodes = {
        "checkpoint": Node("CheckpointLoaderSimple", {"ckpt_name": FLUX}, load, models=[FLUX_FILE]),
        "heads": Node("LoomSoftPAG", {"model": link("checkpoint"), "preset": "FLUX: vintage film", "scale": 8.0, "u": 1.0}, ours),
        "positive": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": "a street market in the rain, people with umbrellas, candid photograph"}, text, "Prompt"),
        "negative": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": ""}, text, "Not read at CFG 1"),
        "guidance": Node("FluxGuidance", {"conditioning": link("positive"), "guidance": 3.5}, text),
        "latent": Node("EmptySD3LatentImage", {"width": 512, "height": 512, "batch_size": 1}, text, "512 x 512, as in the paper"),
    }
    for key, group, model in (("flux_stock", stock, "checkpoint"), ("flux_heads", ours, "heads")):
        nodes[f"{key}_sampler"] = Node("KSampler", {"model": link(model), **sampling}, group, group)
        nodes[f"{key}_decode"] = Node("VAEDecode", {"samples": link(f"{key}_sampler"), "vae": link("checkpoint", 2)}, group)
        nodes[f"{key}_save"] = Node("SaveImage", {"images": link(f"{key}_decode"), "filename_prefix": f"attention_loom/{key}"}, group)
    nodes["report"] = Node("LoomReport", {"model": link("heads"), "after": link("flux_heads_sampler")}, ours)
    note = (
        "# Head guidance (FLUX.1 dev)\n\n"
        "The same prompt and seed, stock and with one head of block 51 weakened in an extra evaluation per step. The paper names this head's effect *vintage film*; the other "
        "*FLUX* presets are heads from its figures as well. They are examples, no promise.\n\n"
        "- *auto* takes blocks in the middle of the model instead: structure, not a look. Start there with *scale* 3 and *u* 0.5.\n"
        "- The paper's own pictures were made with a distilled guidance of 0; here it is the usual 3.5.\n"
        "- Other models: their heads are other heads. Find them with **Attention Inspector**."
    )
    return Recipe("head_guidance_flux", {load: (0, 0), text: (1, 0), stock: (2, 0), ours: (2, 1)}, nodes, note)


def keep_subjects_sd15() -> Recipe:
    """A prompt of two things of which one often gets lost, stock and with A-STAR."""
    load, text, stock, ours = "Model", "Prompt", "Stock", "Keep Every Subject"
    prompt = "a cat and a frog sitting in a garden"
    nodes = {
        "checkpoint": Node("CheckpointLoaderSimple", {"ckpt_name": SD15}, load, models=[SD15_FILE]),
        "positive": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": prompt}, text, "Prompt"),
        "negative": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": ""}, text, "Negative"),
        "latent": Node("EmptyLatentImage", {"width": 512, "height": 512, "batch_size": 1}, text),
        "keep": Node("LoomAStar", {"model": link("checkpoint"), "clip": link("checkpoint", 1), "prompt": prompt, "concepts": "cat\nfrog", "strength": 1.0}, ours),
    }
    _picture_branch(nodes, "keep_stock", stock, "checkpoint", "Stock")
    _picture_branch(nodes, "keep", ours, "keep", "Keep Every Subject")
    nodes["keep_sampler"].inputs["positive"] = link("keep", 1)
    nodes["report"] = Node("LoomReport", {"model": link("keep"), "after": link("keep_sampler")}, ours)
    note = (
        "# Keep every subject (SD 1.5)\n\n"
        "One prompt and seed, stock and with **Keep Every Subject (A-STAR)**. Write the prompt into the node and below it the things to keep, one per line, in "
        "words of the prompt; connect its output *positive* to the sampler.\n\n"
        "- Takes about two and a half times as long.\n"
        "- Still one thing missing: *repeats* 2 to 5. Picture torn: lower *strength*.\n"
        "- *loss* attend_excite is the older method, to compare."
    )
    return Recipe("keep_subjects_sd15", {load: (0, 0), text: (1, 0), stock: (2, 0), ours: (2, 1)}, nodes, note)


def inspect_attention_toy() -> Recipe:
    """What the heads of the toy world's own model do in a clip of three times its length."""
    load, text, sample, look = "Toy world model", "Prompt and length", "Inspect and sample", "Pictures"
    prompt = "a red circle moving right"
    nodes = {
        "unet": Node("UNETLoader", {"unet_name": "toy_wan_t2v.safetensors", "weight_dtype": "default"}, load),
        "shift": Node("ModelSamplingSD3", {"model": link("unet"), "shift": 3.0}, load),
        "clip": Node("ToyWorldTextEncoder", {"clip_name": "toy_umt5.safetensors"}, load),
        "vae": Node("VAELoader", {"vae_name": "toy_wan_vae.safetensors"}, load),
        "positive": Node("CLIPTextEncode", {"clip": link("clip"), "text": prompt}, text, "Prompt"),
        "negative": Node("CLIPTextEncode", {"clip": link("clip"), "text": ""}, text, "Negative (empty)"),
        "latent": Node("EmptyHunyuanLatentVideo", {"width": 64, "height": 64, "length": 69, "batch_size": 1}, text, "3x: 69 frames, 18 latent"),
        "inspector": Node(
            "LoomInspector",
            {
                "model": link("shift"), "steps": "0.15, 0.45, 0.75", "words": "red, circle", "prompt": prompt,
                "clip": link("clip"), "conditioning": link("positive"), "points": "0.5,0.5", "rows": 256,
            },
            sample,
        ),
    }  # fmt: skip
    _toy_branch(nodes, "inspect", sample, "inspector", "latent", "Sample")
    nodes["pictures"] = Node(
        "LoomInspectorPictures",
        {
            "inspection": link("inspector", 1),
            "after": link("inspect_sampler"),
            "picture": "all",
            "measure": "distance",
            "order": "lowest",
            "top_heads": 6,
            "image": link("inspect_decode"),
        },
        look,
    )
    note = (
        "# Inspect attention (toy world)\n\n"
        "The small Wan model draws 18 latent frames; it was trained on 6. The picture *Attention over distance in time* shows where its heads meet distances they do not "
        "know, and suggests *train_frames* for **Longer Video (UltraViCo)**.\n\n"
        "- The image is bit for bit that of the graph without the inspector.\n"
        "- *heads* of **Attention Pictures** goes into *found_heads* of **Head Guidance (SoftPAG)**."
    )
    return Recipe("inspect_attention", {load: (0, 0), text: (1, 0), sample: (2, 0), look: (3, 0)}, nodes, note)


def inspect_attention_sd15() -> Recipe:
    """Words of a prompt over the picture, and what the heads of SD 1.5 do."""
    load, text, sample, look = "Model", "Prompt", "Inspect and sample", "Pictures"
    prompt = "a corgi with a red scarf sitting beside a blue bicycle"
    nodes = {
        "checkpoint": Node("CheckpointLoaderSimple", {"ckpt_name": SD15}, load, models=[SD15_FILE]),
        "positive": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": prompt}, text, "Prompt"),
        "negative": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": ""}, text, "Negative"),
        "latent": Node("EmptyLatentImage", {"width": 512, "height": 512, "batch_size": 1}, text),
        "inspector": Node(
            "LoomInspector",
            {
                "model": link("checkpoint"), "steps": "0.15, 0.45, 0.75", "words": "corgi, red scarf, bicycle", "prompt": prompt,
                "clip": link("checkpoint", 1), "conditioning": link("positive"), "points": "0.5,0.5",
            },
            sample,
        ),
    }  # fmt: skip
    _picture_branch(nodes, "inspect", sample, "inspector", "Sample")
    nodes["pictures"] = Node(
        "LoomInspectorPictures",
        {
            "inspection": link("inspector", 1),
            "after": link("inspect_sampler"),
            "picture": "all",
            "measure": "distance",
            "order": "lowest",
            "top_heads": 24,
            "image": link("inspect_decode"),
        },
        look,
    )
    note = (
        "# Inspect attention (SD 1.5)\n\n"
        "Reads three of 25 steps: where each word acts, how far every head looks, which heads are alike. The same two nodes work on SDXL, SD3, FLUX, Qwen-Image, Z-Image and "
        "video models.\n\n"
        "- *words* are words of the prompt as it is written; separate them by commas.\n"
        "- *heads* of **Attention Pictures** goes into *found_heads* of **Head Guidance (SoftPAG)**.\n"
        "- *json* holds all numbers."
    )
    return Recipe("inspect_attention_sd15", {load: (0, 0), text: (1, 0), sample: (2, 0), look: (3, 0)}, nodes, note)


def keep_background_sd15() -> Recipe:
    """A reference picture and a new subject in it, with the mask that was measured."""
    load, text, ours, seen = "Model", "Prompt and reference", "Keep the Background", "What was measured"
    prompt = "a deer standing in a forest, photo"
    nodes = {
        "checkpoint": Node("CheckpointLoaderSimple", {"ckpt_name": SD15}, load, models=[SD15_FILE]),
        "photo": Node("LoadImage", {"image": "example.png"}, text, "Reference: your own picture"),
        "scaled": Node("ImageScale", {"image": link("photo"), "upscale_method": "lanczos", "width": 512, "height": 512, "crop": "center"}, text),
        "reference": Node("VAEEncode", {"pixels": link("scaled"), "vae": link("checkpoint", 2)}, text),
        "negative": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": ""}, text, "Negative"),
        "latent": Node("EmptyLatentImage", {"width": 512, "height": 512, "batch_size": 1}, text),
        "keep": Node(
            "LoomGradSAM", {"model": link("checkpoint"), "clip": link("checkpoint", 1), "prompt": prompt, "subjects": "deer", "strength": 1.0, "reference": link("reference")}, ours
        ),
    }
    _picture_branch(nodes, "background", ours, "keep", "Keep the Background")
    nodes["background_sampler"].inputs |= {"positive": link("keep", 1), "sampler_name": "euler_ancestral", "steps": 45, "cfg": 8.0}
    nodes["mask"] = Node("LoomSubjectMask", {"subject": link("keep", 3), "after": link("background_sampler"), "number": 0, "image": link("background_decode")}, seen)
    nodes["report"] = Node("LoomReport", {"model": link("keep"), "after": link("background_sampler")}, seen)
    note = (
        "# Keep the background (SD 1.5)\n\n"
        "Load a picture of a place without a subject of its own, and name the subject in the prompt and below it in *subjects*. At three steps the node measures which "
        "cells of the latent depend on that word and takes the others from your picture.\n\n"
        "- Subject cut off: lower *threshold* or more *dilate*. Too little of your picture: higher *threshold*, or a further point in *steps* such as 0.8.\n"
        "- The sampler starts from an empty latent at denoise 1.\n"
        "- **Subject Mask** shows the masks and hands them on."
    )
    return Recipe("keep_background_sd15", {load: (0, 0), text: (1, 0), ours: (2, 0), seen: (3, 0)}, nodes, note)


SCENES = "a large red circle and a small blue square on a grey background\na green triangle on a black background\na striped yellow square and a white circle on a blue background"


def find_heads_toy() -> Recipe:
    """Heads of the toy world's SD3 model that make a picture more colourful, searched, then used."""
    load, text, search, stock, ours = "Toy world model", "Prompt and size", "Search", "Stock", "Head Guidance"
    nodes = {
        "unet": Node("UNETLoader", {"unet_name": "scenes_sd3.safetensors", "weight_dtype": "default"}, load),
        "model": Node("ModelSamplingSD3", {"model": link("unet"), "shift": 3.0}, load),
        "clip": Node("ToyWorldTextEncoder", {"clip_name": "scenes_sd3_text.safetensors"}, load),
        "vae": Node("VAELoader", {"vae_name": "scenes_picture_vae.safetensors"}, load),
        "positive": Node("CLIPTextEncode", {"clip": link("clip"), "text": "a large red circle and a small blue square on a grey background"}, text, "Prompt"),
        "negative": Node("CLIPTextEncode", {"clip": link("clip"), "text": ""}, text, "Negative (empty)"),
        "latent": Node("EmptySD3LatentImage", {"width": 128, "height": 128, "batch_size": 1}, text),
        "scorer": Node("LoomPictureScorer", {"measure": "colourfulness", "weight": 1.0}, search),
        "hunter": Node(
            "LoomHeadHunter",
            {
                "model": link("model"), "positive": link("positive"), "vae": link("vae"), "latent": link("latent"), "clip": link("clip"), "scorer": link("scorer"),
                "prompts": SCENES, "name": "toy colourful", "per_round": 2, "pairs": 3, "steps": 8, "keep_layers": 1.0,
            },
            search,
        ),
        "heads": Node("LoomSoftPAG", {"model": link("model"), "preset": "auto", "scale": 3.0, "u": 0.5, "found_heads": link("hunter")}, ours),
    }  # fmt: skip
    for key, group, model in (("toy_stock", stock, "model"), ("toy_heads", ours, "heads")):
        nodes[f"{key}_sampler"] = _sampler(model, "latent", group, group, steps=16, cfg=3.0)
        nodes[f"{key}_decode"] = Node("VAEDecode", {"samples": link(f"{key}_sampler"), "vae": link("vae")}, group)
        nodes[f"{key}_save"] = Node("SaveImage", {"images": link(f"{key}_decode"), "filename_prefix": f"attention_loom/{key}"}, group)
    note = (
        "# Find guidance heads (toy world)\n\n"
        "Searches the nine heads of a tiny SD3 model for those whose weakening makes pictures more colourful: three prompts, one seed each, 8 steps. The preview shows "
        "before and after and the score of every head; the heads then guide the picture on the right at half the strength.\n\n"
        "- Interrupt it and queue it again: it goes on where it was.\n"
        "- Any goal: another *measure*, a reference picture of yours, or several **Picture Scorer** in a chain.\n"
        "- The heads lie in output/attention_loom/heads; **Load Heads** reads them later."
    )
    return Recipe("find_heads", {load: (0, 0), text: (1, 0), search: (2, 0), stock: (3, 0), ours: (3, 1)}, nodes, note)


def find_heads_sd15() -> Recipe:
    """Heads of SD 1.5 whose weakening makes pictures look like one of yours, searched on three prompts."""
    load, text, search, stock, ours = "Model", "Prompt", "Search", "CFG alone", "CFG and the heads found"
    nodes = {
        "checkpoint": Node("CheckpointLoaderSimple", {"ckpt_name": SD15}, load, models=[SD15_FILE]),
        "positive": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": "a lighthouse on a cliff, evening"}, text, "Prompt"),
        "negative": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": ""}, text, "Negative"),
        "latent": Node("EmptyLatentImage", {"width": 512, "height": 512, "batch_size": 1}, text),
        "reference": Node("LoadImage", {"image": "example.png"}, search, "A picture whose look you want"),
        "scorer": Node("LoomPictureScorer", {"measure": "reference look", "weight": 1.0, "reference": link("reference")}, search),
        "hunter": Node(
            "LoomHeadHunter",
            {
                "model": link("checkpoint"), "positive": link("positive"), "vae": link("checkpoint", 2), "latent": link("latent"), "clip": link("checkpoint", 1),
                "negative": link("negative"), "scorer": link("scorer"), "prompts": "a lighthouse on a cliff\na bowl of fruit on a table\na portrait of an old fisherman",
                "name": "my look", "per_round": 3, "rounds": 2, "pairs": 3, "steps": 12, "cfg": 4.0,
            },
            search,
        ),
        "heads": Node("LoomSoftPAG", {"model": link("checkpoint"), "preset": "auto", "scale": 3.0, "u": 0.7, "found_heads": link("hunter")}, ours),
    }  # fmt: skip
    _picture_branch(nodes, "look_stock", stock, "checkpoint", "CFG alone")
    _picture_branch(nodes, "look_heads", ours, "heads", "Head Guidance")
    note = (
        "# Find guidance heads (SD 1.5)\n\n"
        "Load a picture whose colours and edges you like. The search weakens every layer, then every head of the better half, in small runs of three prompts, and keeps "
        "what brings the pictures closest to it. It says how long that takes before it starts; *minutes* is the limit.\n\n"
        "- Too long: fewer *pairs*, *rounds* or *steps*, a lower *keep_layers*, or set *if_longer* to *search as far as it gets*.\n"
        "- Interrupted or restarted: queue it again with the same settings and it goes on.\n"
        "- Too strong afterwards: lower *u* or *scale* in **Head Guidance**; no new search is needed.\n"
        "- Heads belong to the checkpoint they were found on. Open *use_found_heads_sd15* to use them another day."
    )
    return Recipe("find_heads_sd15", {load: (0, 0), text: (1, 0), search: (2, 0), stock: (3, 0), ours: (3, 1)}, nodes, note)


def use_found_heads_sd15() -> Recipe:
    """Heads found another day, from their file."""
    load, text, ours = "Model and heads", "Prompt", "CFG and the heads found"
    nodes = {
        "checkpoint": Node("CheckpointLoaderSimple", {"ckpt_name": SD15}, load, models=[SD15_FILE]),
        "found": Node("LoomLoadHeads", {"name": "my look"}, load),
        "positive": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": "a narrow street in an old town, evening"}, text, "Prompt"),
        "negative": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": ""}, text, "Negative"),
        "latent": Node("EmptyLatentImage", {"width": 512, "height": 512, "batch_size": 4}, text),
        "heads": Node("LoomSoftPAG", {"model": link("checkpoint"), "preset": "auto", "scale": 3.0, "u": 0.7, "found_heads": link("found")}, ours),
    }
    _picture_branch(nodes, "found_heads", ours, "heads", "Head Guidance")
    note = (
        "# Use found heads (SD 1.5)\n\n"
        "Loads heads that *find_heads_sd15* wrote to output/attention_loom/heads, also of a search that was interrupted, and guides four pictures with them."
    )
    return Recipe("use_found_heads_sd15", {load: (0, 0), text: (1, 0), ours: (2, 0)}, nodes, note)


RECIPES = (
    longer_video_toy,
    longer_video_wan,
    sparse_attention_toy,
    sparse_attention_wan,
    any_size_sd15,
    place_subjects_sd15,
    keep_subjects_sd15,
    keep_background_sd15,
    head_guidance_sd15,
    head_guidance_flux,
    inspect_attention_toy,
    inspect_attention_sd15,
    find_heads_toy,
    find_heads_sd15,
    use_found_heads_sd15,
)
