"""Workflows on single heads: guidance, what they attend to, and the search for those that help."""

from __future__ import annotations

from collections.abc import Callable

from .base import SCENES_SD3, SD15, SD15_FILE, Node, Recipe, link, picture_branch, sampler, saved, sd15, toy_branch, toy_model, toy_prompts, toy_unet

FLUX = "flux1-dev-fp8.safetensors"


FLUX_FILE = {"name": FLUX, "url": f"https://huggingface.co/Comfy-Org/flux1-dev/resolve/main/{FLUX}", "directory": "checkpoints"}

CLIP = "model.safetensors"
CLIP_FILE = {"name": CLIP, "url": f"https://huggingface.co/openai/clip-vit-large-patch14/resolve/main/{CLIP}", "directory": "clip_vision"}


def head_guidance_sd15() -> Recipe:
    """One prompt with CFG alone, with the host's perturbed-attention guidance, and with weakened heads at half its strength."""
    load, text, stock, host, ours = "Model", "Prompt", "CFG alone", "CFG and PAG", "CFG and Head Guidance"
    nodes = {
        **sd15("a photo of an old bicycle leaning on a stone wall, ivy, morning light", load, text, batch=4),
        "pag": Node("PerturbedAttentionGuidance", {"model": link("checkpoint"), "scale": 3.0}, host),
        "heads": Node("LoomSoftPAG", {"model": link("checkpoint"), "preset": "auto", "scale": 3.0, "u": 0.5}, ours),
    }
    for key, group, model, title in (("cfg", stock, "checkpoint", "CFG alone"), ("pag_cfg", host, "pag", "PAG"), ("head_guidance", ours, "heads", "Head Guidance")):
        picture_branch(nodes, key, group, model, title)
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
        nodes |= saved(f"{key}_sampler", link("checkpoint", 2), group, key, key)
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


def inspect_attention_toy() -> Recipe:
    """What the heads of the toy world's own model do in a clip of three times its length."""
    load, text, sample, look = "Toy world model", "Prompt and length", "Inspect and sample", "Pictures"
    prompt = "a red circle moving right"
    nodes = {
        **toy_model(load),
        **toy_prompts(prompt, text),
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
    toy_branch(nodes, "inspect", sample, "inspector", "latent", "Sample")
    nodes["pictures"] = _looked_at(6, look)
    note = (
        "# Inspect attention (toy world)\n\n"
        "The small Wan model draws 18 latent frames; it was trained on 6. The picture *Attention over distance in time* shows where its heads meet distances they do not "
        "know, and suggests *train_frames* for **Longer Video (UltraViCo)**.\n\n"
        "- The image is bit for bit that of the graph without the inspector.\n"
        "- *heads* of **Attention Pictures** goes into *found_heads* of **Head Guidance (SoftPAG)**."
    )
    return Recipe("inspect_attention", {load: (0, 0), text: (1, 0), sample: (2, 0), look: (3, 0)}, nodes, note)


def inspect_words_toy() -> Recipe:
    """Which heads of the toy world's SD 1.5 carry the words "left" and "right", and where those act."""
    load, text, sample, look = "Toy world model", "Prompt and size", "Inspect and sample", "Pictures"
    prompt = "a large red circle on the left and a small blue square on the right on a grey background"
    nodes = {
        **toy_unet(load),
        **toy_prompts(prompt, text),
        "latent": Node("EmptySD3LatentImage", {"width": 128, "height": 128, "batch_size": 1}, text),
        "inspector": Node(
            "LoomInspector",
            {
                "model": link("unet"), "steps": "0.05, 0.3", "words": "left, right", "prompt": prompt, "clip": link("clip"), "conditioning": link("positive"),
                "importance": "full", "part": "words",
            },
            sample,
        ),
        "inspect_sampler": sampler("inspector", "latent", sample, "Sample", steps=20, cfg=3.0),
    }  # fmt: skip
    nodes |= saved("inspect_sampler", link("vae"), sample, "inspect_words", "inspect")
    nodes["pictures"] = _looked_at(6, look, "importance", "highest")
    note = (
        "# Which heads carry a word (toy world)\n\n"
        "At two early steps every head of the cross-attentions loses what it reads from *left* and *right*, one head at a time, and the change of the prediction is measured: "
        "*importance*. Nearly all of it lies in one block. *Where the words act* shows the two words over the picture.\n\n"
        "- Any words of the prompt: *words*. All of a head instead of its words: *part* whole.\n"
        "- 68 evaluations of the model here; *importance* fast estimates all heads from one evaluation with a gradient per step."
    )
    return Recipe("inspect_words", {load: (0, 0), text: (1, 0), sample: (2, 0), look: (3, 0)}, nodes, note)


def inspect_attention_sd15() -> Recipe:
    """Words of a prompt over the picture, and what the heads of SD 1.5 do."""
    load, text, sample, look = "Model", "Prompt", "Inspect and sample", "Pictures"
    prompt = "a corgi with a red scarf sitting beside a blue bicycle"
    nodes = {
        **sd15(prompt, load, text),
        "inspector": Node(
            "LoomInspector",
            {
                "model": link("checkpoint"), "steps": "0.15, 0.45, 0.75", "words": "corgi, red scarf, bicycle", "prompt": prompt,
                "clip": link("checkpoint", 1), "conditioning": link("positive"), "points": "0.5,0.5",
            },
            sample,
        ),
    }  # fmt: skip
    picture_branch(nodes, "inspect", sample, "inspector", "Sample")
    nodes["pictures"] = _looked_at(24, look)
    note = (
        "# Inspect attention (SD 1.5)\n\n"
        "Reads three of 25 steps: where each word acts, how far every head looks, which heads are alike. The same two nodes work on SDXL, SD3, FLUX, Qwen-Image, Z-Image and "
        "video models.\n\n"
        "- *words* are words of the prompt as it is written; separate them by commas.\n"
        "- *heads* of **Attention Pictures** goes into *found_heads* of **Head Guidance (SoftPAG)**.\n"
        "- *json* holds all numbers."
    )
    return Recipe("inspect_attention_sd15", {load: (0, 0), text: (1, 0), sample: (2, 0), look: (3, 0)}, nodes, note)


SCENES = "a large red circle and a small blue square on a grey background\na green triangle on a black background\na striped yellow square and a white circle on a blue background"


def find_heads_toy() -> Recipe:
    """Heads of the toy world's SD3 model that make a picture more colourful, searched, then used."""
    load, text, search, stock, ours = "Toy world model", "Prompt and size", "Search", "Stock", "Head Guidance"
    nodes = {
        **toy_model(load, *SCENES_SD3, key="model"),
        **toy_prompts("a large red circle and a small blue square on a grey background", text),
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
        nodes[f"{key}_sampler"] = sampler(model, "latent", group, group, steps=16, cfg=3.0)
        nodes |= saved(f"{key}_sampler", link("vae"), group, key, key)
    note = (
        "# Find guidance heads (toy world)\n\n"
        "Searches the nine heads of a tiny SD3 model for those whose weakening makes pictures more colourful: three prompts, one seed each, 8 steps. The preview shows "
        "before and after and the score of every head; the heads then guide the picture on the right at half the strength.\n\n"
        "- Interrupt it and queue it again: it goes on where it was.\n"
        "- Any goal: another *measure*, a reference picture of yours, or several **Picture Scorer** in a chain.\n"
        "- The heads lie in output/attention_loom/heads; **Load Heads** reads them later."
    )
    return Recipe("find_heads", {load: (0, 0), text: (1, 0), search: (2, 0), stock: (3, 0), ours: (3, 1)}, nodes, note)


def _searched_sd15(recipe: str, prompt: str, judges: Callable[[str], dict[str, Node]], note: str, **search_settings: object) -> Recipe:
    """SD 1.5: judges (their node `scorer` last), a search, and pictures with and without the heads found."""
    load, text, search, stock, ours = "Model", "Prompt", "Search", "CFG alone", "CFG and the heads found"
    links = {
        "model": link("checkpoint"), "positive": link("positive"), "vae": link("checkpoint", 2), "latent": link("latent"), "clip": link("checkpoint", 1),
        "negative": link("negative"), "scorer": link("scorer"),
    }  # fmt: skip
    nodes = {
        **sd15(prompt, load, text),
        **judges(search),
        "hunter": Node("LoomHeadHunter", links | search_settings | {"pairs": 3, "steps": 12, "cfg": 4.0}, search),
        "heads": Node("LoomSoftPAG", {"model": link("checkpoint"), "preset": "auto", "scale": 3.0, "u": 0.7, "found_heads": link("hunter")}, ours),
    }
    picture_branch(nodes, f"{recipe}_stock", stock, "checkpoint", "CFG alone")
    picture_branch(nodes, f"{recipe}_heads", ours, "heads", "Head Guidance")
    return Recipe(recipe, {load: (0, 0), text: (1, 0), search: (2, 0), stock: (3, 0), ours: (3, 1)}, nodes, note)


def find_heads_sd15() -> Recipe:
    """Heads of SD 1.5 whose weakening makes pictures look like one of yours, searched on three prompts."""

    def judges(search: str) -> dict[str, Node]:
        return {
            "reference": Node("LoadImage", {"image": "example.png"}, search, "A picture whose look you want"),
            "scorer": Node("LoomPictureScorer", {"measure": "reference look", "weight": 1.0, "reference": link("reference")}, search),
        }

    note = (
        "# Find guidance heads (SD 1.5)\n\n"
        "Load a picture whose colours and edges you like. The search weakens every layer, then every head of the better half, in small runs of three prompts, and keeps "
        "what brings the pictures closest to it. It says how long that takes before it starts; *minutes* is the limit.\n\n"
        "- Too long: fewer *pairs*, *rounds* or *steps*, a lower *keep_layers*, or set *if_longer* to *search as far as it gets*.\n"
        "- Interrupted or restarted: queue it again with the same settings and it goes on.\n"
        "- Too strong afterwards: lower *u* or *scale* in **Head Guidance**; no new search is needed.\n"
        "- Heads belong to the checkpoint they were found on. Open *use_found_heads_sd15* to use them another day."
    )
    prompts = "a lighthouse on a cliff\na bowl of fruit on a table\na portrait of an old fisherman"
    return _searched_sd15("find_heads_sd15", "a lighthouse on a cliff, evening", judges, note, prompts=prompts, name="my look", per_round=3, rounds=2)


def find_heads_prompt_match_sd15() -> Recipe:
    """Heads of SD 1.5 whose weakening makes pictures fit their prompts better, judged by a CLIP file."""

    def judges(search: str) -> dict[str, Node]:
        return {
            "judge": Node("LoomModelScorer", {"model_name": CLIP, "measure": "prompt match", "weight": 1.0, "before": "A photo depicts"}, search, models=[CLIP_FILE]),
            "scorer": Node("LoomPictureScorer", {"measure": "sharpness", "weight": 10.0, "plus": link("judge")}, search, "and sharp"),
        }

    note = (
        "# Find heads that serve the prompt (SD 1.5)\n\n"
        "The search keeps heads whose weakening makes pictures fit their prompts, judged by a whole CLIP file in models/clip_vision (text and vision with both "
        "projections), with a little sharpness beside.\n\n"
        "- Closer to what people prefer: PickScore_v1 or HPS v2 in its place, without *before*.\n"
        "- Looks instead: *measure* aesthetic, with LAION's head beside the CLIP file.\n"
        "- The paper joins PickScore and CLIPScore: two of these nodes, *join* harmonic mean."
    )
    prompts = "a green bench under a yellow tree\na black dog and a white horse\nthree red apples on a blue plate"
    title = "a red bicycle beside a blue door, two white cats in front"
    return _searched_sd15("find_heads_prompt_match_sd15", title, judges, note, prompts=prompts, name="prompt match", per_round=6)


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
    picture_branch(nodes, "found_heads", ours, "heads", "Head Guidance")
    note = (
        "# Use found heads (SD 1.5)\n\n"
        "Loads heads that *find_heads_sd15* wrote to output/attention_loom/heads, also of a search that was interrupted, and guides four pictures with them."
    )
    return Recipe("use_found_heads_sd15", {load: (0, 0), text: (1, 0), ours: (2, 0)}, nodes, note)


def _looked_at(heads: int, group: str, measure: str = "distance", order: str = "lowest") -> Node:
    inputs = {"inspection": link("inspector", 1), "after": link("inspect_sampler"), "picture": "all", "measure": measure, "order": order}
    return Node("LoomInspectorPictures", inputs | {"top_heads": heads, "image": link("inspect_decode")}, group)
