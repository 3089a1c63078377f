"""Workflows for objects that follow a path."""

from __future__ import annotations

from ...core.tracks import KeyFrame, Track, Tracks
from .base import Node, Recipe, link, toy_branch, toy_model, track_editor
from .video import longer_video_wan

ARC = Tracks(
    81, 832, 480,
    (
        Track("panda", (
            KeyFrame(0, (0.04, 0.52, 0.28, 0.96), "ease_in_out"),
            KeyFrame(40, (0.38, 0.26, 0.6, 0.7), "ease_in_out"),
            KeyFrame(80, (0.66, 0.38, 0.98, 0.98)),
        )),
    ),
)  # fmt: skip
ACROSS = Tracks(33, 64, 64, (Track("square", (KeyFrame(0, (0.0, 0.0, 0.5, 0.5), "linear"), KeyFrame(32, (0.5, 0.5, 1.0, 1.0)))),))


def steer_object_toy() -> Recipe:
    """One clip of the toy model as it is, one with the object on a path."""
    load, text, stock, ours = "Toy world model", "Path and texts", "Stock", "On the path"
    nodes = {
        **toy_model(load, "scenes_wan_t2v", "scenes_wan_t2v_text"),
        "path": track_editor(ACROSS, text, "From corner to corner"),
        "positive": Node("CLIPTextEncode", {"clip": link("clip"), "text": "a red square moving right on a green background"}, text, "Prompt"),
        "front": Node("CLIPTextEncode", {"clip": link("clip"), "text": "a red square moving right on a green background"}, text, "Object"),
        "back": Node("CLIPTextEncode", {"clip": link("clip"), "text": "a green background"}, text, "Scene"),
        "negative": Node("CLIPTextEncode", {"clip": link("clip"), "text": ""}, text, "Negative (empty)"),
        "latent": Node("EmptyHunyuanLatentVideo", {"width": 64, "height": 64, "length": 33, "batch_size": 1}, text, "33 frames: 9 latent"),
        "steer": _steered(ours),
    }
    toy_branch(nodes, "steer_stock", stock, "shift", "latent", "Stock")
    toy_branch(nodes, "steer_path", ours, "steer", "latent", "On the path")
    nodes["steer_path_sampler"].inputs["positive"] = link("steer", 1)
    nodes["report"] = Node("LoomReport", {"model": link("steer"), "after": link("steer_path_sampler")}, ours)
    note = (
        "# An object on a path (toy world)\n\n"
        "The same prompt and seed twice: as the model likes, and with the object in the box that moves from corner to corner. Tokens of this tiny model are 16 pixels wide, so "
        "the path has nine places in all, and a decoder made for the other toy world blurs the picture.\n\n"
        "- Drag the boxes and queue again.\n"
        "- *mask_end* up: the path is held harder. *rope_end*: how long the object's tokens see each other as if it stood still.\n"
        "- For a real model open *steer_object_wan*."
    )
    return Recipe("steer_object", {load: (0, 0), text: (1, 0), stock: (2, 0), ours: (3, 0)}, nodes, note)


def steer_object_wan() -> Recipe:
    """Wan 2.1 1.3B, 81 frames: an object on a drawn path, its texts from one line."""
    recipe = longer_video_wan()
    load, text, sample = recipe.groups
    kept = {key: node for key, node in recipe.nodes.items() if key in ("unet", "clip", "vae", "shift", "negative")}
    kept["shift"].inputs["shift"] = 3.0
    nodes = kept | {
        "path": track_editor(ARC, text, "Path"),
        "line": Node(
            "LoomSplitPrompt",
            {
                "text": "a red panda with thick russet fur and a striped tail, walking steadily, its head turned to the camera, fur ruffled by the wind | "
                "a mossy forest floor between old fir trees, ferns, thin fog, soft morning light from the left, a still camera",
                "template": "a close-up of {subject}, filling the frame",
            },
            text,
        ),
        "positive": Node("CLIPTextEncode", {"clip": link("clip"), "text": link("line", 0)}, text, "Prompt"),
        "front": Node("CLIPTextEncode", {"clip": link("clip"), "text": link("line", 1)}, text, "Object"),
        "back": Node("CLIPTextEncode", {"clip": link("clip"), "text": link("line", 2)}, text, "Scene"),
        "latent": Node("EmptyHunyuanLatentVideo", {"width": 832, "height": 480, "length": 81, "batch_size": 1}, text, "81 frames: 21 latent"),
        "steer": _steered(sample),
        "sampler": recipe.nodes["sampler"],
        "decode": Node("VAEDecode", {"samples": link("sampler"), "vae": link("vae")}, sample),
        "video": recipe.nodes["video"],
        "save": Node("SaveVideo", {"video": link("video"), "filename_prefix": "video/steer_object_wan", "format": "auto", "codec": "auto"}, sample),
        "report": Node("LoomReport", {"model": link("steer"), "after": link("sampler")}, sample),
    }
    nodes["sampler"].inputs |= {"model": link("steer"), "positive": link("steer", 1), "steps": 50, "cfg": 5.0}
    note = (
        "# An object on a path (Wan 2.1)\n\n"
        "The panda follows the boxes: along the arc, and by their size away from the camera and back. Settings are the paper's: 50 steps, CFG 5, shift 3.\n\n"
        "- Draw in **Path**. Boxes should fit the object's shape, and consecutive ones overlap.\n"
        "- Write object | scene in one line, or put three texts of 80 to 100 words into the encoders. The scene must not name the object.\n"
        "- The object leaves the box late: raise *mask_end*. A second object appears: name it nowhere in the scene, lower *mask_end*."
    )
    return Recipe("steer_object_wan", {load: (0, 0), text: (1, 0), sample: (2, 0)}, nodes, note)


def _steered(group: str) -> Node:
    inputs = {"model": link("shift"), "base": link("positive"), "foreground": link("front"), "background": link("back"), "track": link("path")}
    return Node("LoomDiTraj", inputs | {"strength": 1.0, "mask_end": 0.6, "rope_end": 0.1}, group)
