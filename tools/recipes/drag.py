"""Workflows for objects that are dragged to another place."""

from __future__ import annotations

from ...core.tracks import KeyFrame, Track, Tracks
from .base import SCENES_SD3, SD15, SD15_FILE, Node, Recipe, link, sampler, saved, toy_model, track_editor
from .subjects import SDXL, SDXL_FILE

GLIGEN = "gligen_sd14_textbox_pruned.safetensors"
GLIGEN_FILE = {"name": GLIGEN, "url": f"https://huggingface.co/comfyanonymous/GLIGEN_pruned_safetensors/resolve/main/{GLIGEN}", "directory": "gligen"}
ACROSS = Tracks(2, 128, 128, (Track("square", (KeyFrame(0, (0.08, 0.34, 0.4, 0.66)), KeyFrame(1, (0.58, 0.34, 0.9, 0.66)))),))


def drag_object_toy() -> Recipe:
    """The toy world's SD3 model: a picture is drawn, then its object goes along a drawn arrow."""
    load, text, before, ours = "Toy world model", "Picture and drag", "As drawn", "Dragged"
    nodes = {
        **toy_model(load, *SCENES_SD3),
        "positive": Node("CLIPTextEncode", {"clip": link("clip"), "text": "a striped red square on the left on a green background"}, text, "Picture"),
        "plain": Node("CLIPTextEncode", {"clip": link("clip"), "text": "a striped red square on a green background"}, text, "The same, without the place"),
        "negative": Node("CLIPTextEncode", {"clip": link("clip"), "text": ""}, text, "Negative (empty)"),
        "latent": Node("EmptySD3LatentImage", {"width": 128, "height": 128, "batch_size": 1}, text),
        "path": track_editor(ACROSS, text, "From where to where"),
        "first": _sampler("shift", "positive", "latent", before, 16, 3.0),
        **saved("first", link("vae"), before, "drag_before", "first"),
        "drag": Node(
            "LoomDiffUHaul",
            {
                "model": link("shift"),
                "positive": link("plain"),
                "latent": link("first"),
                "clip": link("clip"),
                "track": link("path"),
                "caption": "a striped red square",
                "redraw_cells": 1.0,
            },
            ours,
        ),
    }
    _dragged(nodes, ours, link("vae"), 16, 3.0, "drag_after")
    nodes["path"].inputs["background"] = link("first_decode")
    note = (
        "# Drag an object (toy world)\n\n"
        "A picture is drawn, then its square goes where the second box says. The same works with a picture of yours: connect *VAE Encode* in place of the first sampler.\n\n"
        "- Key frame 0 in **Draw Path** is where the object is, key frame 1 where it goes; drag the boxes and queue again.\n"
        "- All three outputs of **Drag Object** go to the sampler.\n"
        "- A tiny model on 8 x 8 tokens. For a real one open *drag_object_sd15* or *drag_object_sdxl*."
    )
    return Recipe("drag_object", {load: (0, 0), text: (1, 0), before: (2, 0), ours: (3, 0)}, nodes, note)


def drag_object_boxes_toy() -> Recipe:
    """The toy world's SD 1.5 with its GLIGEN: the object's box is moved."""
    load, text, before, ours = "Toy world model", "Picture, box and mask", "As drawn", "Dragged"
    words = "a dotted blue circle"
    nodes = {
        "unet": Node("ToyWorldUNet", {"unet_name": "scenes_sd15.safetensors"}, load),
        "gligen": Node("GLIGENLoader", {"gligen_name": "scenes_sd15_gligen.safetensors"}, load),
        "clip": Node("ToyWorldTextEncoder", {"clip_name": "scenes_sd15_text.safetensors"}, load),
        "vae": Node("VAELoader", {"vae_name": "scenes_picture_vae.safetensors"}, load),
        "positive": Node("CLIPTextEncode", {"clip": link("clip"), "text": f"{words} on the left on a grey background"}, text, "Picture"),
        "plain": Node("CLIPTextEncode", {"clip": link("clip"), "text": f"{words} on a grey background"}, text, "The same, without the place"),
        "negative": Node("CLIPTextEncode", {"clip": link("clip"), "text": ""}, text, "Negative (empty)"),
        "latent": Node("EmptySD3LatentImage", {"width": 128, "height": 128, "batch_size": 1}, text),
        "box": Node(
            "GLIGENTextBoxApply",
            {"conditioning_to": link("plain"), "clip": link("clip"), "gligen_textbox_model": link("gligen"), "text": words, "width": 48, "height": 48, "x": 8, "y": 40},
            text,
            "A box where the object is now",
        ),
        "mask": Node("LoomPlaceMasks", {"places": f"{words} @ 0.24, 0.5, 0.22", "width": 128, "height": 128}, text, "Where the object is"),
        "first": _sampler("unet", "positive", "latent", before, 20, 3.0),
        **saved("first", link("vae"), before, "drag_boxes_before", "first"),
        "drag": Node(
            "LoomDiffUHaul", {"model": link("unet"), "positive": link("box"), "latent": link("first"), "mask": link("mask"), "dx": 64, "dy": 0, "redraw_cells": 1.0}, ours
        ),
    }
    _dragged(nodes, ours, link("vae"), 20, 3.0, "drag_boxes_after")
    for key in ("first", "sampler"):
        nodes[key].inputs |= {"sampler_name": "dpmpp_2m", "scheduler": "normal"}
    note = (
        "# Drag an object, with boxes (toy world)\n\n"
        "The paper's way: the prompt is grounded by GLIGEN, the object's box stands where the object is **now**, and **Drag Object** moves it and keeps its text out of the rest of the picture.\n\n"
        "- *dx* in pixels of the mask; 64 is half of this tiny picture.\n"
        "- For a real model open *drag_object_sd15*."
    )
    return Recipe("drag_object_boxes", {load: (0, 0), text: (1, 0), before: (2, 0), ours: (3, 0)}, nodes, note)


def drag_object_sd15() -> Recipe:
    """SD 1.5 with GLIGEN: a picture of yours, an object in a box, a mask painted on the picture."""
    load, text, ours = "Model", "Picture, mask and boxes", "Dragged"
    nodes = {
        "checkpoint": Node("CheckpointLoaderSimple", {"ckpt_name": SD15}, load, models=[SD15_FILE]),
        "gligen": Node("GLIGENLoader", {"gligen_name": GLIGEN}, load, models=[GLIGEN_FILE]),
        "picture": Node("LoadImage", {"image": "example.png"}, text, "Your picture, 512 x 512: paint over the object (Open in MaskEditor)"),
        "encoded": Node("VAEEncode", {"pixels": link("picture"), "vae": link("checkpoint", 2)}, text),
        "prompt": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": "a red vase on a wooden table in front of a white wall"}, text, "Prompt of the whole picture"),
        "negative": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": ""}, text, "Negative"),
        "box": Node(
            "GLIGENTextBoxApply",
            {
                "conditioning_to": link("prompt"), "clip": link("checkpoint", 1), "gligen_textbox_model": link("gligen"), "text": "a red vase", "width": 160, "height": 224, "x": 64, "y": 176,
            },
            text,
            "A box where the object is now; one such node per object",
        ),
        "drag": Node(
            "LoomDiffUHaul",
            {"model": link("checkpoint"), "positive": link("box"), "latent": link("encoded"), "mask": link("picture", 1), "dx": 208, "dy": 0},
            ours,
        ),
    }  # fmt: skip
    _dragged(nodes, ours, link("checkpoint", 2), 50, 7.5, "drag_object_sd15")
    note = (
        "# Drag an object (SD 1.5 with GLIGEN)\n\n"
        "The setting of the paper, with GLIGEN in the place of its own grounded model.\n\n"
        "1. Load a picture of 512 x 512, open it in the mask editor and paint over the object.\n"
        "2. Write the prompt, and one *GLIGEN Textbox Apply* for each object, where it is **now**. Drag Object moves the box of the one under the mask.\n"
        "3. Set *dx* and *dy* in pixels, and *scale*. Queue.\n\n"
        "Shadows: raise *redraw_cells*. Steps and CFG are the paper's guess, 50 and 7.5. Not measured on this model."
    )
    return Recipe("drag_object_sd15", {load: (0, 0), text: (1, 0), ours: (2, 0)}, nodes, note)


def drag_object_sdxl() -> Recipe:
    """SDXL: a picture of yours, captions in their places."""
    load, text, ours = "Model", "Picture and mask", "Dragged"
    nodes = {
        "checkpoint": Node("CheckpointLoaderSimple", {"ckpt_name": SDXL}, load, models=[SDXL_FILE]),
        "picture": Node("LoadImage", {"image": "example.png"}, text, "Your picture, 1024 x 1024: paint over the object (Open in MaskEditor)"),
        "encoded": Node("VAEEncode", {"pixels": link("picture"), "vae": link("checkpoint", 2)}, text),
        "prompt": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": "a red vase and a bowl of lemons on a wooden table"}, text, "Prompt of the whole picture"),
        "negative": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": "blurry, deformed"}, text, "Negative"),
        "drag": Node(
            "LoomDiffUHaul",
            {
                "model": link("checkpoint"), "positive": link("prompt"), "latent": link("encoded"), "mask": link("picture", 1), "clip": link("checkpoint", 1), "dx": 384, "dy": 0,
                "caption": "a red vase", "others": "a bowl of lemons @ 0.05, 0.55, 0.3, 0.8",
            },
            ours,
        ),
    }  # fmt: skip
    _dragged(nodes, ours, link("checkpoint", 2), 50, 7.5, "drag_object_sdxl")
    note = (
        "# Drag an object (SDXL)\n\n"
        "SDXL has no GLIGEN, so each object's caption is read in its place.\n\n"
        "1. Load a picture, open it in the mask editor and paint over the object.\n"
        "2. *caption*: what it is. *others*: further objects with their places, one per line, or nothing.\n"
        "3. Set *dx* and *dy* in pixels, or connect **Draw Path**. Queue.\n\n"
        "The object comes back at its old place: *anchor_schedule* source first holds the picture harder, layout first less. Not measured on this model."
    )
    return Recipe("drag_object_sdxl", {load: (0, 0), text: (1, 0), ours: (2, 0)}, nodes, note)


def _dragged(nodes: dict[str, Node], group: str, vae: list[object], steps: int, cfg: float, prefix: str) -> None:
    """Sampler, decoder and report behind the node "drag"."""
    nodes["sampler"] = _sampler("drag", "drag", "drag", group, steps, cfg)
    nodes["sampler"].inputs |= {"positive": link("drag", 2), "latent_image": link("drag", 1)}
    nodes |= saved("sampler", vae, group, prefix)
    nodes["redrawn"] = Node("MaskToImage", {"mask": link("drag", 3)}, group)
    nodes["shown"] = Node("PreviewImage", {"images": link("redrawn")}, group, "What is drawn anew")
    nodes["report"] = Node("LoomReport", {"model": link("drag"), "after": link("sampler")}, group)


def _sampler(model: str, positive: str, latent: str, group: str, steps: int, cfg: float) -> Node:
    node = sampler(model, latent, group, "", steps, cfg)
    node.inputs["positive"] = link(positive)
    return node
