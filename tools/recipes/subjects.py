"""Workflows for subjects that look the same in every picture."""

from __future__ import annotations

from .base import SCENES_SD3, Node, Recipe, link, sampler, saved, toy_model, toy_unet

SDXL = "sd_xl_base_1.0.safetensors"
SDXL_FILE = {"name": SDXL, "url": f"https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/{SDXL}", "directory": "checkpoints"}


def same_subjects_toy() -> Recipe:
    """The toy world's SD3 model: two portraits and a scene in one batch, stock and with IR-Diffusion."""
    load, text, stock, ours = "Toy world model", "Portraits and scene", "Stock", "Kept"
    nodes = {
        **toy_model(load, *SCENES_SD3),
        "latent": Node("EmptySD3LatentImage", {"width": 128, "height": 128, "batch_size": 1}, load),
    }
    scene = "a red circle on the left and a blue square on the right on a green background"
    _texts(
        nodes, text, link("clip"), scene,
        ("a large striped red circle in the centre on a grey background", "a large dotted blue square in the centre on a grey background"), "",
    )  # fmt: skip
    _masks(nodes, ours, 128)
    words = {"clip": link("clip"), "scene_prompt": scene, "subject_words": "red circle\nblue square"}
    nodes["keep"] = Node("LoomIRDiffusion", {"model": link("shift"), "scene_masks": link("scene_masks"), "reference_masks": link("own_masks"), "strength": 1.0, **words}, ours)
    for key, group, model in (("same_stock", stock, "shift"), ("same_kept", ours, "keep")):
        nodes[f"{key}_sampler"] = _sampler(model, group, group, 16, 3.0, "euler", "simple")
        nodes |= saved(f"{key}_sampler", link("vae"), group, key, key)
    nodes["report"] = Node("LoomReport", {"model": link("keep"), "after": link("same_kept_sampler")}, ours)
    note = (
        "# Subjects that stay the same (toy world)\n\n"
        "Two portraits and a scene in one batch, stock and with **Keep Subjects Consistent**. The scene's prompt does not say that the circle is striped and the square dotted: "
        "their portraits do. A tiny model on 8 x 8 tokens.\n\n"
        "- The portraits come out the same in both, by rule.\n"
        "- The masks are drawn by words; connect painted ones for exact shapes.\n"
        "- *subject_words* hides each subject's words from the other: on this model, whose text and picture share one attention, that did more than the portraits did (measured).\n"
        "- For a real model open *same_subjects_sdxl*."
    )
    return Recipe("same_subjects", {load: (0, 0), text: (1, 0), stock: (2, 0), ours: (3, 0)}, nodes, note)


def same_subjects_sdxl() -> Recipe:
    """SDXL: two portraits and a scene in one batch, stock for the masks, then with IR-Diffusion."""
    load, text, stock, ours = "Model", "Portraits and scene", "Where they are", "Kept"
    nodes = {
        "checkpoint": Node("CheckpointLoaderSimple", {"ckpt_name": SDXL}, load, models=[SDXL_FILE]),
        "latent": Node("EmptyLatentImage", {"width": 1024, "height": 1024, "batch_size": 1}, load),
    }
    _texts(
        nodes, text, link("checkpoint", 1),
        "a red fox and a snowy owl beside a campfire in a winter forest at night, storybook illustration",
        ("a red fox with a blue scarf, full body, plain background, storybook illustration", "a snowy owl with round glasses, full body, plain background, storybook illustration"),
        "blurry, deformed, cropped",
    )  # fmt: skip
    _masks(nodes, ours, 1024)
    nodes["keep"] = Node("LoomIRDiffusion", {"model": link("checkpoint"), "scene_masks": link("scene_masks"), "reference_masks": link("own_masks"), "strength": 1.0}, ours)
    for key, group, model in (("same_stock", stock, "checkpoint"), ("same_kept", ours, "keep")):
        nodes[f"{key}_sampler"] = _sampler(model, group, group, 50, 7.0, "euler", "normal")
        nodes |= saved(f"{key}_sampler", link("checkpoint", 2), group, key, key)
    nodes["scene"] = Node("LatentFromBatch", {"samples": link("same_kept_sampler"), "batch_index": 2, "length": 1}, ours, "The scene alone")
    nodes |= saved("scene", link("checkpoint", 2), ours, "same_scene", "scene")
    nodes["report"] = Node("LoomReport", {"model": link("keep"), "after": link("same_kept_sampler")}, ours)
    note = (
        "# Subjects that stay the same (SDXL)\n\n"
        "Portraits and scene are one batch: first stock, to see where every subject is, then with **Keep Subjects Consistent** and the same seed.\n\n"
        "1. Queue. Look at the three stock pictures.\n"
        "2. Say in **Masks From Places** where each subject is, or paint masks and connect them in its place.\n"
        "3. Queue again. The portraits stay as they are; the scene's subjects follow them.\n\n"
        "Settings are the paper's: 50 steps, CFG 7. The batch takes as much memory as three pictures. To copy less from the portraits: raise *query_dropout* or lower *strength*."
    )
    return Recipe("same_subjects_sdxl", {load: (0, 0), text: (1, 0), stock: (2, 0), ours: (3, 0)}, nodes, note)


def subjects_from_pictures_sdxl() -> Recipe:
    """SDXL: two pictures of yours as references, sampled beside the scene."""
    load, text, sample = "Model", "Pictures and scene", "Sample"
    nodes = {
        "checkpoint": Node("CheckpointLoaderSimple", {"ckpt_name": SDXL}, load, models=[SDXL_FILE]),
        "latent": Node("EmptyLatentImage", {"width": 1024, "height": 1024, "batch_size": 1}, load),
        "positive": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": "a red fox and a snowy owl beside a campfire in a winter forest at night"}, text, "Scene"),
        "negative": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": "blurry, deformed, cropped"}, text, "Negative"),
    }
    for i, words in enumerate(("a red fox with a blue scarf", "a snowy owl with round glasses"), 1):
        nodes[f"portrait_{i}"] = Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": words}, text, f"What picture {i} shows")
        nodes[f"picture_{i}"] = Node("LoadImage", {"image": "example.png"}, text, f"Picture {i}")
        nodes[f"scaled_{i}"] = Node("ImageScale", {"image": link(f"picture_{i}"), "upscale_method": "area", "width": 1024, "height": 1024, "crop": "center"}, text)
    nodes["pictures"] = Node("ImageBatch", {"image1": link("scaled_1"), "image2": link("scaled_2")}, text)
    nodes["encoded"] = Node("VAEEncode", {"pixels": link("pictures"), "vae": link("checkpoint", 2)}, text)
    linked = {f"portrait_{i}": link(f"portrait_{i}") for i in (1, 2)}
    nodes["references"] = Node("LoomReferencePictures", {"latents": link("encoded"), "negative": link("negative"), **linked}, text)
    _masks(nodes, sample, 1024)
    kept = {"model": link("checkpoint"), "scene_masks": link("scene_masks"), "reference_masks": link("own_masks"), "strength": 1.0, "subjects": link("references")}
    nodes["keep"] = Node("LoomIRDiffusion", kept, sample)
    nodes["sampler"] = sampler("keep", "latent", sample, "", 50, 7.0)
    nodes |= saved("sampler", link("checkpoint", 2), sample, "subjects_from_pictures")
    nodes["report"] = Node("LoomReport", {"model": link("keep"), "after": link("sampler")}, sample)
    note = (
        "# Subjects from your own pictures (SDXL)\n\n"
        "Load one picture per subject and say what it shows. **Reference Pictures** lets the model see them at every step beside the scene; the sampler's batch is the scene alone.\n\n"
        "- Masks in the order of the pictures: where the subject is in the scene, and in its picture. Paint them for exact shapes.\n"
        "- Each picture costs about as much as sampling one more.\n"
        "- Not measured yet."
    )
    return Recipe("subjects_from_pictures_sdxl", {load: (0, 0), text: (1, 0), sample: (2, 0)}, nodes, note)


def masks_on_the_spot_toy() -> Recipe:
    """The toy world's SD 1.5: portraits and scene sampled stock, masks of their subjects from attention, then IR-Diffusion with these masks."""
    load, text, stock, found, ours = "Toy world model", "Portraits and scene", "Stock", "Where they are", "Kept"
    nodes = {
        **toy_unet(load),
        "latent": Node("EmptySD3LatentImage", {"width": 128, "height": 128, "batch_size": 1}, load),
    }
    scene, portraits = "a red circle and a blue square on a grey background", ("a large red circle on a grey background", "a large blue square on a grey background")
    _texts(nodes, text, link("clip"), scene, portraits, "")
    nodes["spot_stock_sampler"] = _sampler("unet", stock, stock, 20, 3.0, "dpmpp_2m", "normal")
    nodes |= saved("spot_stock_sampler", link("vae"), stock, "spot_stock", "spot_stock")
    _found(nodes, found, "unet", link("clip"), "spot_stock_sampler", scene, portraits, ("red circle", "blue square"), {"affinity": 1})
    nodes["keep"] = Node(
        "LoomIRDiffusion", {"model": link("unet"), "scene_masks": link("masks_scene"), "reference_masks": link("masks_2"), "strength": 1.0, "start_layer": 8}, ours
    )
    nodes["spot_sampler"] = _sampler("keep", ours, ours, 20, 3.0, "dpmpp_2m", "normal")
    nodes |= saved("spot_sampler", link("vae"), ours, "spot_kept", "spot")
    nodes["report"] = Node("LoomReport", {"model": link("keep"), "after": link("spot_sampler")}, ours)
    note = (
        "# Masks on the spot (toy world)\n\n"
        "Nobody paints a mask: **Concept Masks** looks at the stock pictures and finds each subject by its words; **Keep Subjects Consistent** then takes these masks.\n\n"
        "- One node per picture. The second portrait's node takes the first one's masks in *masks_before*, so that its output holds both.\n"
        "- *affinity* is 1: on maps of 16 x 16 cells the paper's 4 spreads too far.\n"
        "- For a real model open *masks_on_the_spot_sdxl*."
    )
    return Recipe("masks_on_the_spot", {load: (0, 0), text: (1, 0), stock: (2, 0), found: (3, 0), ours: (4, 0)}, nodes, note)


def masks_on_the_spot_sdxl() -> Recipe:
    """SDXL: portraits and scene sampled stock, masks of their subjects from attention, then IR-Diffusion with these masks."""
    load, text, stock, found, ours = "Model", "Portraits and scene", "Stock", "Where they are", "Kept"
    nodes = {
        "checkpoint": Node("CheckpointLoaderSimple", {"ckpt_name": SDXL}, load, models=[SDXL_FILE]),
        "latent": Node("EmptyLatentImage", {"width": 1024, "height": 1024, "batch_size": 1}, load),
    }
    scene = "a red fox and a snowy owl beside a campfire in a winter forest at night, storybook illustration"
    portraits = (
        "a red fox with a blue scarf, full body, plain background, storybook illustration",
        "a snowy owl with round glasses, full body, plain background, storybook illustration",
    )
    _texts(nodes, text, link("checkpoint", 1), scene, portraits, "blurry, deformed, cropped")
    nodes["spot_stock_sampler"] = _sampler("checkpoint", stock, stock, 50, 7.0, "euler", "normal")
    nodes |= saved("spot_stock_sampler", link("checkpoint", 2), stock, "spot_stock", "spot_stock")
    _found(nodes, found, "checkpoint", link("checkpoint", 1), "spot_stock_sampler", scene, portraits, ("red fox", "snowy owl"), {"looks": 4})
    nodes["keep"] = Node("LoomIRDiffusion", {"model": link("checkpoint"), "scene_masks": link("masks_scene"), "reference_masks": link("masks_2"), "strength": 1.0}, ours)
    nodes["spot_sampler"] = _sampler("keep", ours, ours, 50, 7.0, "euler", "normal")
    nodes |= saved("spot_sampler", link("checkpoint", 2), ours, "spot_kept", "spot")
    nodes["report"] = Node("LoomReport", {"model": link("keep"), "after": link("spot_sampler")}, ours)
    note = (
        "# Masks on the spot (SDXL)\n\n"
        "Sampled twice with one seed: stock, and with **Keep Subjects Consistent**. In between **Concept Masks** finds each subject in the stock pictures by its words, so no mask is painted.\n\n"
        "1. Queue. Look at the previews of the three mask nodes.\n"
        "2. A mask is empty or fused: lower *threshold* or *affinity*, or another *timestep*. A subject is missing in the stock scene: another seed.\n"
        "3. The portraits' masks are chained through *masks_before*.\n\n"
        "Not measured on this model yet."
    )
    return Recipe("masks_on_the_spot_sdxl", {load: (0, 0), text: (1, 0), stock: (2, 0), found: (3, 0), ours: (4, 0)}, nodes, note)


def _found(
    nodes: dict[str, Node], group: str, model: str, clip: list[object], sampled: str, scene: str, portraits: tuple[str, str], subjects: tuple[str, str], settings: dict[str, object]
) -> None:
    """A mask node for each picture of the batch: portraits first, the scene last."""
    for i, (key, prompt, words) in enumerate((("1", portraits[0], subjects[0]), ("2", portraits[1], subjects[1]), ("scene", scene, "\n".join(subjects)))):
        nodes[f"one_{key}"] = Node("LatentFromBatch", {"samples": link(sampled), "batch_index": i, "length": 1}, group)
        before = {"masks_before": link("masks_1")} if key == "2" else {}
        inputs = {"model": link(model), "clip": clip, "latent": link(f"one_{key}"), "concepts": words, "prompt": prompt, **before, **settings}
        nodes[f"masks_{key}"] = Node("LoomAttenCraftMasks", inputs, group, "Where in the scene" if key == "scene" else f"Where in portrait {key}")


def _texts(nodes: dict[str, Node], group: str, clip: list[object], scene: str, portraits: tuple[str, str], negative: str) -> None:
    nodes["scene_text"] = Node("CLIPTextEncode", {"clip": clip, "text": scene}, group, "Scene")
    nodes["negative_text"] = Node("CLIPTextEncode", {"clip": clip, "text": negative}, group, "Negative")
    for i, words in enumerate(portraits, 1):
        nodes[f"portrait_{i}"] = Node("CLIPTextEncode", {"clip": clip, "text": words}, group, f"Portrait {i}")
    linked = {f"portrait_{i}": link(f"portrait_{i}") for i in range(1, len(portraits) + 1)}
    nodes["batch"] = Node("LoomSubjectBatch", {"scene": link("scene_text"), "negative": link("negative_text"), "latent": link("latent"), **linked}, group)


def _masks(nodes: dict[str, Node], group: str, size: int) -> None:
    where = (
        ("scene_masks", "Where in the scene", "first @ left\nsecond @ right"),
        ("own_masks", "Where in the portraits", "first @ 0.15, 0.1, 0.85, 0.9\nsecond @ 0.15, 0.1, 0.85, 0.9"),
    )
    for key, title, places in where:
        nodes[key] = Node("LoomPlaceMasks", {"places": places, "width": size, "height": size}, group, title)


def _sampler(model: str, group: str, title: str, steps: int, cfg: float, name: str, scheduler: str) -> Node:
    node = sampler(model, "batch", group, title, steps, cfg, name)
    node.inputs |= {"positive": link("batch", 0), "negative": link("batch", 1), "latent_image": link("batch", 2), "scheduler": scheduler}
    return node
