"""What a workflow recipe is made of, and the branches that several share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...core.tracks import Tracks


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


def sampler(model: str, latent: str, group: str, title: str, steps: int, cfg: float, sampler: str = "euler") -> Node:
    """A KSampler with the nodes "positive" and "negative"."""
    return Node(
        "KSampler",
        {
            "model": link(model), "positive": link("positive"), "negative": link("negative"), "latent_image": link(latent),
            "seed": 7, "steps": steps, "cfg": cfg, "sampler_name": sampler, "scheduler": "simple", "denoise": 1.0,
        },
        group,
        title,
    )  # fmt: skip


def saved(sampled: str, vae: list[Any], group: str, prefix: str, key: str = "") -> dict[str, Node]:
    """Decode what the node ``sampled`` gives and save the pictures: nodes "decode" and "save", behind ``key`` if given. vae: a link."""
    decode, save = (f"{key}_decode", f"{key}_save") if key else ("decode", "save")
    return {
        decode: Node("VAEDecode", {"samples": link(sampled), "vae": vae}, group),
        save: Node("SaveImage", {"images": link(decode), "filename_prefix": f"attention_loom/{prefix}"}, group),
    }


SCENES_SD3 = ("scenes_sd3", "scenes_sd3_text", "scenes_picture_vae")


def toy_model(load: str, model: str = "toy_wan_t2v", text: str = "toy_umt5", vae: str = "toy_wan_vae", key: str = "shift") -> dict[str, Node]:
    """A flow model of a toy world with its text encoder and VAE: nodes "unet", ``key`` (the model to sample with), "clip" and "vae"."""
    return {
        "unet": Node("UNETLoader", {"unet_name": f"{model}.safetensors", "weight_dtype": "default"}, load),
        key: Node("ModelSamplingSD3", {"model": link("unet"), "shift": 3.0}, load),
        "clip": Node("ToyWorldTextEncoder", {"clip_name": f"{text}.safetensors"}, load),
        "vae": Node("VAELoader", {"vae_name": f"{vae}.safetensors"}, load),
    }


def toy_unet(load: str) -> dict[str, Node]:
    """The toy world's SD 1.5 with its text encoder and VAE: nodes "unet", "clip" and "vae"."""
    return {
        "unet": Node("ToyWorldUNet", {"unet_name": "scenes_sd15.safetensors"}, load),
        "clip": Node("ToyWorldTextEncoder", {"clip_name": "scenes_sd15_text.safetensors"}, load),
        "vae": Node("VAELoader", {"vae_name": "scenes_picture_vae.safetensors"}, load),
    }


def toy_prompts(prompt: str, group: str) -> dict[str, Node]:
    """The toy world's prompt and an empty negative one: nodes "positive" and "negative"."""
    return {
        "positive": Node("CLIPTextEncode", {"clip": link("clip"), "text": prompt}, group, "Prompt"),
        "negative": Node("CLIPTextEncode", {"clip": link("clip"), "text": ""}, group, "Negative (empty)"),
    }


def toy_branch(nodes: dict[str, Node], key: str, group: str, model: str, latent: str, title: str) -> None:
    """Sample, decode and save a clip of the toy model, as nodes whose names begin with ``key``."""
    nodes[f"{key}_sampler"] = sampler(model, latent, group, title, steps=16, cfg=3.0)
    nodes[f"{key}_decode"] = Node("VAEDecode", {"samples": link(f"{key}_sampler"), "vae": link("vae")}, group)
    nodes[f"{key}_save"] = Node(
        "SaveAnimatedWEBP",
        {"images": link(f"{key}_decode"), "filename_prefix": f"attention_loom/{key}", "fps": 8.0, "lossless": True, "quality": 80, "method": "default"},
        group,
    )


SD15 = "v1-5-pruned-emaonly-fp16.safetensors"
SD15_FILE = {"name": SD15, "url": f"https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{SD15}", "directory": "checkpoints"}


def picture_branch(nodes: dict[str, Node], key: str, group: str, model: str, title: str) -> None:
    """Sample, decode and save pictures of a checkpoint, as nodes whose names begin with ``key``."""
    nodes[f"{key}_sampler"] = sampler(model, "latent", group, title, steps=25, cfg=7.0, sampler="dpmpp_2m")
    nodes |= saved(f"{key}_sampler", link("checkpoint", 2), group, key, key)


def sd15(prompt: str, load: str, text: str, batch: int = 1) -> dict[str, Node]:
    """SD 1.5 with a prompt, an empty negative one and a latent of 512 x 512; ``load`` and ``text`` are groups."""
    return {
        "checkpoint": Node("CheckpointLoaderSimple", {"ckpt_name": SD15}, load, models=[SD15_FILE]),
        "positive": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": prompt}, text, "Prompt"),
        "negative": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": ""}, text, "Negative"),
        "latent": Node("EmptyLatentImage", {"width": 512, "height": 512, "batch_size": batch}, text),
    }


def track_editor(tracks: Tracks, group: str, title: str = "", preview: str = "whole path") -> Node:
    """A Draw Path node that holds a drawing. Its output 0 is the track, 1 the preview, 2 the JSON."""
    inputs = {"track": tracks.json(), "frames": tracks.frames, "width": tracks.width, "height": tracks.height, "preview": preview}
    return Node("LoomTrackEditor", inputs, group, title, width=500)
