"""Workflows that learn the things of one picture."""

from __future__ import annotations

from .base import SD15, SD15_FILE, Node, Recipe, link, sampler, saved, toy_unet

TRAIN = "LoomAttenCraftTrain"


def learn_concepts_toy() -> Recipe:
    """The toy world's SD 1.5: two things of a picture learned as new words, and drawn together."""
    load, picture, learn, use = "Toy world model", "A picture of two things", "Learn", "Use"
    caption = "a red circle and a blue square on a grey background"
    nodes = {
        **toy_unet(load),
        "latent": Node("EmptySD3LatentImage", {"width": 128, "height": 128, "batch_size": 1}, load),
        "positive": Node("CLIPTextEncode", {"clip": link("clip"), "text": caption}, picture, "What the picture shows"),
        "negative": Node("CLIPTextEncode", {"clip": link("clip"), "text": ""}, picture, "Negative"),
        "sampler": _toy_sampler("unet", "positive", picture),
        **saved("sampler", link("vae"), picture, "learn_picture"),
        "masks": Node(
            "LoomAttenCraftMasks",
            {"model": link("unet"), "clip": link("clip"), "latent": link("sampler"), "concepts": "red circle\nblue square", "prompt": caption, "image": link("decode"), "affinity": 1},
            learn,
        ),
        "train": Node(
            TRAIN,
            {
                "model": link("unet"), "clip": link("clip"), "latent": link("sampler"), "masks": link("masks"), "vae": link("vae"), "concepts": "one = circle\ntwo = square", "name": "toy",
                "steps": 100, "learning_rate": 0.001, "prior_weight": 0.0, "attention_weight": 10.0, "template": "a {} on a grey background", "joiner": " and a ", "affinity": 1,
                "preview_every": 50, "preview_cfg": 3.0, "resume": False,
            },
            learn,
        ),
        "sketches": Node("SaveImage", {"images": link("train", 6), "filename_prefix": "attention_loom/learn_sketches"}, learn, "Each alone, then both"),
        "losses": Node("LossGraphNode", {"loss": link("train", 2), "filename_prefix": "attention_loom/learn_losses"}, learn),
        "words": Node("CLIPTextEncode", {"clip": link("clip"), "text": link("train", 3)}, use, "Both new words"),
        "again": _toy_sampler("train", "words", use),
        **saved("again", link("vae"), use, "learn_both", "again"),
    }  # fmt: skip
    note = (
        "# Learn the things of a picture (toy world)\n\n"
        "The model draws a red circle and a blue square. **Concept Masks** finds them; **Learn Concepts** learns each as a new word that begins as *circle* and *square* and knows no colour yet. "
        "About a minute on a CPU.\n\n"
        "- Look at *Each alone*: are the colours learned, and is the other thing absent?\n"
        "- The last branch writes both new words in the host's own way (*embedding:*).\n"
        "- For a real model open *learn_concepts_sd15*."
    )
    return Recipe("learn_concepts", {load: (0, 0), picture: (1, 0), learn: (2, 0), use: (3, 0)}, nodes, note)


def learn_concepts_sd15() -> Recipe:
    """SD 1.5: two things of a picture of yours, with prior pictures of the model's own."""
    load, picture, learn, use = "Model", "Your picture, pictures of the model", "Learn", "Use"
    nodes = {
        "checkpoint": Node("CheckpointLoaderSimple", {"ckpt_name": SD15}, load, models=[SD15_FILE]),
        "image": Node("LoadImage", {"image": "example.png"}, picture, "A picture of both"),
        "scaled": Node("ImageScale", {"image": link("image"), "upscale_method": "area", "width": 512, "height": 512, "crop": "center"}, picture),
        "encoded": Node("VAEEncode", {"pixels": link("scaled"), "vae": link("checkpoint", 2)}, picture),
        "prior_latent": Node("EmptyLatentImage", {"width": 512, "height": 512, "batch_size": 16}, picture, "How many prior pictures"),
        "positive": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": "a photo at the beach"}, picture, "Prior prompt"),
        "negative": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": ""}, picture, "Negative"),
        "prior": sampler("checkpoint", "prior_latent", picture, "Prior pictures", 25, 7.0, "dpmpp_2m"),
        "masks": Node(
            "LoomAttenCraftMasks",
            {
                "model": link("checkpoint"), "clip": link("checkpoint", 1), "latent": link("encoded"), "image": link("scaled"), "concepts": "cat\ndog", "prompt": "a photo of a cat and a dog on a sofa",
                "looks": 4,
            },
            learn,
        ),
        "train": Node(
            TRAIN,
            {
                "model": link("checkpoint"), "clip": link("checkpoint", 1), "latent": link("encoded"), "masks": link("masks"), "vae": link("checkpoint", 2), "prior_latents": link("prior"),
                "prior_positive": link("positive"), "concepts": "mycat = cat\nmydog = dog", "name": "pets", "steps": 500,
            },
            learn,
        ),
        "lora": Node("SaveLoRA", {"lora": link("train", 1), "prefix": "loras/pets"}, learn),
        "losses": Node("LossGraphNode", {"loss": link("train", 2), "filename_prefix": "attention_loom/pets_losses"}, learn),
        "words": Node("CLIPTextEncode", {"clip": link("checkpoint", 1), "text": link("train", 3)}, use, "Both new words"),
        "latent": Node("EmptyLatentImage", {"width": 512, "height": 512, "batch_size": 4}, use),
        "again": sampler("train", "latent", use, "", 50, 7.0),
        **saved("again", link("checkpoint", 2), use, "pets"),
    }  # fmt: skip
    nodes["again"].inputs["positive"] = link("words")
    note = (
        "# Learn the things of a picture (SD 1.5)\n\n"
        "1. Load a picture that shows both things. Say in **Concept Masks** what they are and what the picture shows; queue and look at its preview.\n"
        "2. **Learn Concepts** trains 500 steps, as in the paper. Interrupt it when you like; queued again it goes on.\n"
        "3. Write *embedding:pets_mycat cat* in prompts, with the saved LoRA on the model.\n\n"
        "- The paper takes 200 prior pictures; 16 are drawn here. More keep the model more general.\n"
        "- SDXL: *adapter* lora, *rank* 16, *precision* bf16.\n"
        "- Not measured on this model yet."
    )
    return Recipe("learn_concepts_sd15", {load: (0, 0), picture: (1, 0), learn: (2, 0), use: (3, 0)}, nodes, note)


def _toy_sampler(model: str, positive: str, group: str) -> Node:
    node = sampler(model, "latent", group, "", 20, 3.0, "dpmpp_2m")
    node.inputs |= {"positive": link(positive), "scheduler": "normal"}
    return node
