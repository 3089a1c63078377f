"""Workflows for pictures: other sizes, subjects in their places, none lost, backgrounds kept."""

from __future__ import annotations

from .base import SD15, SD15_FILE, Node, Recipe, link, picture_branch, sd15


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
    picture_branch(nodes, "any_size_stock", stock, "checkpoint", "Stock")
    picture_branch(nodes, "any_size", ours, "any_size", "Any Size")
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
        **sd15("a red fox and a snowy owl in a winter forest", load, text, batch=4),
        "place": Node(
            "LoomSpaceTime",
            {"model": link("checkpoint"), "clip": link("checkpoint", 1), "regions": "a red fox @ left\na snowy owl @ right", "strength": 1.0},
            ours,
        ),
    }
    picture_branch(nodes, "place_stock", stock, "checkpoint", "Stock")
    picture_branch(nodes, "place", ours, "place", "Place Subjects")
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


def keep_subjects_sd15() -> Recipe:
    """A prompt of two things of which one often gets lost, stock and with A-STAR."""
    load, text, stock, ours = "Model", "Prompt", "Stock", "Keep Every Subject"
    prompt = "a cat and a frog sitting in a garden"
    nodes = {
        **sd15(prompt, load, text),
        "keep": Node("LoomAStar", {"model": link("checkpoint"), "clip": link("checkpoint", 1), "prompt": prompt, "concepts": "cat\nfrog", "strength": 1.0}, ours),
    }
    picture_branch(nodes, "keep_stock", stock, "checkpoint", "Stock")
    picture_branch(nodes, "keep", ours, "keep", "Keep Every Subject")
    nodes["keep_sampler"].inputs["positive"] = link("keep", 1)
    nodes["report"] = Node("LoomReport", {"model": link("keep"), "after": link("keep_sampler")}, ours)
    note = (
        "# Keep every subject (SD 1.5)\n\n"
        "One prompt and seed, stock and with **Keep Every Subject (A-STAR)**. Write the prompt into the node and below it the things to keep, one per line, in "
        "words of the prompt; connect its output *positive* to the sampler.\n\n"
        "- Each step takes a forward and a backward pass more.\n"
        "- Still one thing missing: *repeats* 2 to 5. Picture torn: lower *strength*.\n"
        "- *loss* attend_excite is the older method, to compare."
    )
    return Recipe("keep_subjects_sd15", {load: (0, 0), text: (1, 0), stock: (2, 0), ours: (2, 1)}, nodes, note)


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
    picture_branch(nodes, "background", ours, "keep", "Keep the Background")
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
