"""Workflows for clips without an end: the queue, its tail, prompts over time, the subject."""

from __future__ import annotations

from .base import Node, Recipe, link, toy_model, toy_prompts
from .video import longer_video_wan

ORBIT = "a red circle orbiting clockwise"


def _branch(nodes: dict[str, Node], key: str, group: str, endless: str, guider: str) -> None:
    """Sample, decode and save a clip of the toy model, as nodes whose names begin with ``key``."""
    nodes[f"{key}_sampler"] = _sampler(endless, guider, group)
    nodes[f"{key}_decode"] = Node("LoomDecodeEndless", {"samples": link(f"{key}_sampler"), "vae": link("vae"), "method": "auto"}, group)
    nodes[f"{key}_save"] = Node(
        "SaveAnimatedWEBP",
        {"images": link(f"{key}_decode"), "filename_prefix": f"attention_loom/{key}", "fps": 8.0, "lossless": True, "quality": 80, "method": "default"},
        group,
    )


def _sampler(endless: str, guider: str, group: str) -> Node:
    """SamplerCustomAdvanced with the nodes "noise", "sigmas" and "latent"."""
    links = {"noise": link("noise"), "guider": link(guider), "sampler": link(endless), "sigmas": link("sigmas"), "latent_image": link("latent")}
    return Node("SamplerCustomAdvanced", links, group)


def _guider(model: str, positive: str, cfg: float, group: str) -> Node:
    return Node("CFGGuider", {"model": link(model), "positive": link(positive, 1 if positive == "subject" else 0), "negative": link("negative"), "cfg": cfg}, group)


def _scheduler(model: str, group: str) -> Node:
    return Node("BasicScheduler", {"model": link(model), "scheduler": "simple", "steps": link("coherent", 1), "denoise": 1.0}, group, "Steps come from Endless Video")


def endless_video_toy() -> Recipe:
    """Four clips of 93 frames by a model for 21: fresh noise, coherent tail, with the subject kept, and with prompts over time."""
    load, text = "Toy world model", "Prompt, noise, schedule"
    fresh, coherent, subject, scenes = "Fresh noise (FIFO)", "Coherent tail", "Coherent tail, subject kept", "Prompts over time"
    size = {"frames": 24, "window": 6, "partitions": 2}
    nodes = {
        **toy_model(load),
        **toy_prompts(ORBIT, text),
        "latent": Node("EmptyHunyuanLatentVideo", {"width": 64, "height": 64, "length": 21, "batch_size": 1}, text, "One window: 21 frames, 6 latent"),
        "noise": Node("RandomNoise", {"noise_seed": 7}, text),
        "fresh": Node("LoomOuroboros", size | {"tail": "fresh noise"}, fresh),
        "coherent": Node("LoomOuroboros", size | {"tail": "coherent"}, coherent),
        "sigmas": _scheduler("shift", text),
        "guider": _guider("shift", "positive", 3.0, text),
        "subject": Node("LoomEndlessSubject", {"model": link("shift"), "clip": link("clip"), "prompt": ORBIT, "subject": "red circle", "strength": 1.0, "guidance": 0.0}, subject),
        "subject_guider": _guider("subject", "subject", 3.0, subject),
        "scenes": Node("LoomEndlessPrompts", {"clip": link("clip"), "text": "0: a red circle moving right\n10: a blue square moving right"}, scenes),
        "scenes_guider": _guider("shift", "scenes", 3.0, scenes),
    }
    for key, group, endless, guider in (
        ("endless_fresh", fresh, "fresh", "guider"),
        ("endless_coherent", coherent, "coherent", "guider"),
        ("endless_subject", subject, "coherent", "subject_guider"),
        ("endless_scenes", scenes, "coherent", "scenes_guider"),
    ):
        _branch(nodes, key, group, endless, guider)
    nodes["report"] = Node("LoomReport", {"model": link("subject"), "after": link("endless_subject_sampler")}, subject)
    note = (
        "# Endless video (toy world)\n\n"
        "A tiny Wan model trained on clips of 21 frames makes 93, frame by frame from a queue: with fresh noise at its tail (FIFO), with a coherent tail (Ouroboros), with the "
        "subject kept as well, and with a prompt that changes.\n\n"
        "- *frames* may be any number; memory stays the same. Interrupt, and what has been made is decoded and saved.\n"
        "- *save_queue* and *resume_from* go on with a clip later.\n"
        "- For a real model open *endless_video_wan*."
    )
    return Recipe("endless_video", {load: (0, 0), text: (1, 0), fresh: (2, 0), coherent: (2, 1), subject: (3, 0), scenes: (3, 1)}, nodes, note)


def endless_video_wan() -> Recipe:
    """Wan 2.1 1.3B: 237 frames from a window of 81, with a prompt that changes, to a video file."""
    recipe = longer_video_wan()
    _, text, sample = recipe.groups
    kept = {key: node for key, node in recipe.nodes.items() if key in ("unet", "clip", "vae", "shift", "negative")}
    nodes = kept | {
        "scenes": Node(
            "LoomEndlessPrompts",
            {
                "clip": link("clip"),
                "text": "0: a red fox runs through fresh snow in a birch forest, the camera follows beside it, morning light\n"
                "30: a red fox walks along a frozen river, snow on the banks, the camera follows beside it, evening light",
            },
            text,
        ),
        "latent": Node("EmptyHunyuanLatentVideo", {"width": 832, "height": 480, "length": 81, "batch_size": 1}, text, "One window: 81 frames, 21 latent"),
        "noise": Node("RandomNoise", {"noise_seed": 7}, text),
        "coherent": Node("LoomOuroboros", {"frames": 60, "window": 21, "partitions": 4, "tail": "coherent", "save_queue": "fox"}, sample),
        "sigmas": _scheduler("shift", sample),
        "guider": _guider("shift", "scenes", 6.0, sample),
        "sampler": _sampler("coherent", "guider", sample),
        "decode": Node("LoomDecodeEndless", {"samples": link("sampler"), "vae": link("vae"), "method": "auto"}, sample),
        "video": Node("CreateVideo", {"images": link("decode"), "fps": 16.0}, sample),
        "save": Node("SaveVideo", {"video": link("video"), "filename_prefix": "video/endless_video_wan", "format": "auto", "codec": "auto"}, sample),
    }
    note = (
        "# Endless video (Wan 2.1)\n\n"
        "60 latent frames, 237 of video, from windows of 81. Ask for as many as you like: memory does not grow, and an interrupt keeps what was made.\n\n"
        "- Cost: 8 model calls per latent frame, and 63 latent frames of warm-up before the first. *partitions* 2 halves both.\n"
        "- The queue is saved as *fox*: write the name into *resume_from*, set *fixed* seed, and the clip goes on.\n"
        "- Put **Keep Subject in Endless Video** between model and guider to hold the fox together."
    )
    return Recipe("endless_video_wan", recipe.groups, nodes, note)
