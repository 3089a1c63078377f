"""AttenCraft in the second toy world: are the masks right, and what do its losses do to what is learned?

``python -m attention_loom.toyworld.attencraft_study masks`` looks at rendered scenes of two objects, whose masks are known, with the SD1.5 and the SD3 model, and
writes ``toyworld/results/attencraft_masks.json`` and ``.md``: overlap (IoU) with the truth of AttenCraft's masks and of the words' attention cut by a threshold.

``python -m attention_loom.toyworld.attencraft_study training`` learns both objects of rendered scenes on the SD1.5 model, with and without the attention loss, with uniform and
reweighted sampling, and draws each alone and both together: ``attencraft_training.json`` and ``.md``. Masks are found by colour and shape; new words begin
as the name of the shape alone, and the colour is what has to be learned. Both go on where they were stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch

from . import picture_latent
from .bundles import BUNDLES, load, load_vae
from .host import CHECKPOINTS, RESULTS, load_host
from .readings import LEAST, NAMES, read
from .sampling import noise_of
from .scenes import Caption, Mix, Scene, random_scene, render
from .scenes.render import masks as true_masks
from .scores import score
from .statistics import interval, paired_gain

SIZE = 128
MIX = Mix(two=1.0, three=0.0, textured=0.0, grounded=0.0)
MODELS: dict[str, dict[str, Any]] = {"sd15": {}, "sd3": {"blocks": "2"}}
"""Model -> settings of the mask node. SD3's toy has three blocks; words have their place in the last."""
MASK_ARMS: dict[str, dict[str, Any]] = {
    "AttenCraft, affinity 4 (paper)": {"affinity": 4},
    "AttenCraft, affinity 2": {"affinity": 2},
    "AttenCraft, affinity 1": {"affinity": 1},
    "AttenCraft, affinity 1, 4 looks": {"affinity": 1, "looks": 4},
}
CUTS = {"words' attention above half of its range": 0.5, "words' attention, Otsu's threshold": None}
OURS, RIVAL = "AttenCraft, affinity 1", "words' attention above half of its range"
TRAINING_ARMS: dict[str, dict[str, Any] | None] = {
    "not trained": None,
    "with attention loss": {},
    "without attention loss": {"attention_weight": 0.0},
    "reweighted": {"sampling": "reweighted"},
}
ATTENTION = 10.0
"""Weight of the attention loss: the paper's 1 is a fiftieth of the masked loss here."""
SEEDS = (1, 2)
GROUND = "black"


def scenes(count: int, shapes_differ: bool = False) -> list[Scene]:
    """Two plain objects of two colours; the generator's seed is used nowhere else."""
    rng, found = random.Random(20261123), []
    while len(found) < count:
        scene = random_scene(rng, moving=False, mix=MIX)
        things = scene.caption.things
        if len(things) == 2 and things[0].colour != things[1].colour and (not shapes_differ or things[0].shape != things[1].shape):
            found.append(scene)
    return found


def latent_of(scene: Scene) -> dict[str, torch.Tensor]:
    """The picture as VAE Encode gives it."""
    return {"samples": picture_latent.to_stored(picture_latent.encode(render(scene, size=SIZE)[0]))[None]}


# --- masks ------------------------------------------------------------------------------------------------------------


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    """Overlap of two bool masks."""
    return float((a & b).sum()) / max(1, int((a | b).sum()))


def mask_study(count: int, save: Callable[[dict[str, Any]], None], data: dict[str, Any]) -> dict[str, Any]:
    """IoU of both objects, scene by scene: {model: {arm: [mean of the two, ...]}}, and how many each node would refuse."""
    for name, more in MODELS.items():
        model, clip = load(BUNDLES[name], CHECKPOINTS)
        rows = data["models"].setdefault(name, {})
        for scene in scenes(count)[len(rows.get(OURS, {}).get("iou", [])) :]:
            with torch.inference_mode():
                for arm, values in _looked(model, clip, scene, more).items():
                    row = rows.setdefault(arm, {"iou": [], "refused": []})
                    row["iou"].append(round(values[0], 4))
                    row["refused"].append(values[1])
            save(data)
    return data


def _looked(model: Any, clip: Any, scene: Scene, more: dict[str, Any]) -> dict[str, tuple[float, int]]:
    """(mean IoU of the two objects, 1 if the node would refuse) of every arm."""
    from ..core.attencraft import masks
    from ..core.attencraft.refine import resized, scaled
    from ..core.errors import LoomError
    from ..core.otsu import otsu
    from ..nodes.attencraft import rule

    truth = true_masks(scene, size=SIZE)[:, 0] > 0.5
    phrases = [f"{thing.colour} {thing.shape}" for thing in scene.caption.things]
    found: dict[str, tuple[float, int]] = {}

    def overlap(own: torch.Tensor) -> float:
        large = masks.at_size(own, (SIZE, SIZE)) > 0.5
        return sum(iou(large[i], truth[i]) for i in range(2)) / 2

    for arm, settings in MASK_ARMS.items():
        made = unchecked(model, clip, str(scene.caption), phrases, latent_of(scene), rule(**settings, **more))
        try:
            made.insist()
            refused = 0
        except LoomError:
            refused = 1
        found[arm] = overlap(made.masks[:2]), refused
        if arm == OURS:
            words = scaled(resized(made.cross[:2], (made.masks.shape[1], made.masks.shape[2])))
            for cut, level in CUTS.items():
                found[cut] = overlap(torch.stack([w > (otsu(w) if level is None else level) for w in words])), 0
            cells = torch.nn.functional.avg_pool2d(truth.float()[None], SIZE // made.masks.shape[2])[0] > 0.5
            found["the truth on these cells"] = overlap(cells), 0
    return found


def unchecked(model: Any, clip: Any, prompt: str, phrases: list[str], latent: Any, rule: Any) -> Any:
    """Masks as they are, whether they make sense or not."""
    from ..core.attencraft import masks

    insist, masks.Found.insist = masks.Found.insist, lambda self: None  # type: ignore[method-assign]
    try:
        return masks.find(model, clip, prompt, phrases, latent, rule)[0]
    finally:
        masks.Found.insist = insist  # type: ignore[method-assign]


def mask_table(data: dict[str, Any]) -> str:
    """Markdown: mean IoU with 95 % intervals, and gains over the best threshold."""
    lines = [
        "Mean over scenes of the IoU of two objects with their true masks, with 95 % bootstrap intervals; gains are paired, scene by scene. *Refused*: scenes in which the node stops with a sentence; their masks count as they are.",
        "",
    ]
    for name, rows in data["models"].items():
        n = len(rows[OURS]["iou"])
        lines += [f"**{name}**, {n} scenes", "", "| masks | IoU | gain over half of the range | refused |", "|---|---|---|---|"]
        for arm, row in rows.items():
            mean, low, high = interval(numpy.array(row["iou"]))
            gain = "" if arm == RIVAL else str(paired_gain(numpy.array(row["iou"]), numpy.array(rows[RIVAL]["iou"])))
            lines.append(f"| {arm} | {mean:.3f} [{low:.3f}, {high:.3f}] | {gain} | {sum(row['refused'])} |")
        lines.append("")
    return "\n".join(lines)


# --- training ---------------------------------------------------------------------------------------------------------


def training_study(count: int, steps: int, rate: float, save: Callable[[dict[str, Any]], None], data: dict[str, Any]) -> dict[str, Any]:
    """Numbers of every drawn picture, scene by scene: {arm: [{measure: [..]} per scene]}."""
    from ..core.errors import LoomError

    model, clip = load(BUNDLES["sd15"], CHECKPOINTS)
    for number, scene in enumerate(scenes(count, shapes_differ=True)):
        if number < data["seen"]:
            continue
        begin, made = time.time(), {}
        try:
            own = _masks_of(model, clip, scene)
            for arm, settings in TRAINING_ARMS.items():
                made[arm] = _learned(model, clip, scene, own, settings, steps, rate)
        except LoomError as error:
            data["left_out"].append(f"{scene.caption}: {error}"[:160])
        else:
            for arm, values in made.items():
                data["arms"].setdefault(arm, []).append(values)
        data["seen"] = number + 1
        save(data)
        print(
            f"{scene.caption}: {time.time() - begin:.0f} s " + json.dumps({arm: {k: round(float(numpy.mean(v)), 2) for k, v in m.items()} for arm, m in made.items()}), flush=True
        )
    return data


def _masks_of(model: Any, clip: Any, scene: Scene) -> torch.Tensor:
    """As the mask node finds them by colour and shape. Raises LoomError."""
    from ..core.attencraft import masks
    from ..nodes.attencraft import rule

    phrases = [f"{thing.colour} {thing.shape}" for thing in scene.caption.things]
    with torch.inference_mode():
        found, _ = masks.find(model, clip, str(scene.caption), phrases, latent_of(scene), rule(affinity=1))
        return masks.at_size(found.masks, (SIZE, SIZE))[:-1]


def _learned(model: Any, clip: Any, scene: Scene, own: torch.Tensor, settings: dict[str, Any] | None, steps: int, rate: float) -> dict[str, list[float]]:
    """Train one arm on one scene and measure what it draws."""
    from ..nodes.attencraft import learning

    first, second = scene.caption.things
    given = dict(
        concepts=f"one = {first.shape}\ntwo = {second.shape}", name="study", steps=max(1, steps), learning_rate=rate, prior_weight=0.0, attention_weight=ATTENTION,
        template=f"a {{}} on a {scene.caption.ground.colour} background", joiner=" and a ", affinity=1, masks=own, preview_every=0, save_every=0, resume=False, new_words=True,
    )  # fmt: skip
    with torch.inference_mode():
        training = learning(model, clip, latent_of(scene), **(given | (settings or {})))
        training.save = lambda: None  # type: ignore[method-assign]  # nothing to go on from
        if settings is not None:
            training.run()
        return _measured(training, model, scene)


def _measured(training: Any, model: Any, scene: Scene) -> dict[str, list[float]]:
    """alone: right shape in its own colour; other: the other's colour is seen; both: two things, each right. One number per picture."""
    import comfy.sd

    lora = training.lora()
    trained = comfy.sd.load_lora_for_models(model, None, dict(lora), 1.0, 0.0)[0]
    training.prompts.template = f"a {{}} on a {GROUND} background"
    ground = replace(scene.caption.ground, colour=GROUND)
    out: dict[str, list[float]] = {"alone": [], "own_colour": [], "other": [], "both": [], "both_seen": []}
    for which in ((0,), (1,), (0, 1)):
        things = tuple(replace(scene.caption.things[i], size="", place="") for i in which)
        caption = Caption(things, ground)
        for seed, picture in zip(SEEDS, _drawn(training, trained, which), strict=True):
            found, seen = score(picture[None], caption), read(picture[None], caption)
            good = float(found["complete"] == 1 and found["binding"] == 1 and found["count"] == 1)
            if len(which) == 2:
                out["both"].append(good)
                out["both_seen"].append(found["complete"])
            else:
                other = NAMES.index(scene.caption.things[1 - which[0]].colour)
                out["alone"].append(good)
                out["own_colour"].append(float(found["complete"] == 1 and found["colour"] == 1))
                out["other"].append(float((seen.classes == other).float().mean() >= LEAST))
            assert seed in SEEDS
    return out


def _drawn(training: Any, model: Any, which: tuple[int, ...]) -> torch.Tensor:
    """Pictures [seeds, S, S, 3] of these concepts."""
    import comfy.sample

    bundle, prompts = BUNDLES["sd15"], training.prompts
    s = bundle.settings
    with torch.no_grad():
        positive, negative = prompts.encode(prompts.write(which)), prompts.encode(prompts.plain(""))
    noise = torch.cat([noise_of(seed, None, SIZE) for seed in SEEDS])
    drawn = comfy.sample.sample(model, noise, s.steps, s.cfg, s.sampler, s.scheduler, positive, negative, torch.zeros_like(noise), disable_pbar=True, seed=SEEDS[0])
    return load_vae(bundle, CHECKPOINTS).decode(drawn).reshape(len(SEEDS), SIZE, SIZE, 3).float().cpu().clamp(0, 1)  # type: ignore[no-any-return]


TITLES = {
    "own_colour": "alone: seen in its own colour",
    "alone": "alone: colour, shape, nothing else",
    "other": "alone: the other's colour is seen",
    "both_seen": "together: both seen",
    "both": "together: both right, nothing else",
}


def training_table(data: dict[str, Any]) -> str:
    """Markdown: means over pictures, and paired changes against the arm with everything, over scenes."""
    arms = data["arms"]
    n = len(next(iter(arms.values()), []))
    lines = [
        f"{n} scenes, {data['steps']} steps at a rate of {data['rate']:g}, no prior loss; {2 * len(SEEDS)} pictures of one concept and {len(SEEDS)} of both per scene and arm, on a {GROUND} ground. "
        f"Weight of the attention loss {ATTENTION:g}. Brackets: 95 % bootstrap intervals over scenes; changes are against *with attention loss*, paired by scene. "
        f"{len(data['left_out'])} scenes were left out because the first masks were refused.",
        "", "| arm | " + " | ".join(TITLES.values()) + " |", "|---" * (len(TITLES) + 1) + "|",
    ]  # fmt: skip
    base = {k: numpy.array([numpy.mean(s[k]) for s in arms["with attention loss"]]) for k in TITLES} if n else {}
    for arm, rows in arms.items():
        cells = []
        for k in TITLES:
            values = numpy.array([numpy.mean(s[k]) for s in rows])
            mean, low, high = interval(values)
            change = "" if arm == "with attention loss" else f"; {paired_gain(values, base[k])}"
            cells.append(f"{mean:.2f} [{low:.2f}, {high:.2f}]{change}")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


# --- command ----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Run one of the two, or write its table again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("masks", "training"))
    parser.add_argument("--scenes", type=int, help="default 32 for masks, 12 for training")
    parser.add_argument("--steps", type=int, default=150, help="of a training")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--fresh", action="store_true", help="throw earlier results away")
    parser.add_argument("--only-table", action="store_true", help="table of the results at hand")
    args = parser.parse_args()
    load_host()
    path = RESULTS / f"attencraft_{args.what}.json"
    key = {"steps": args.steps, "rate": args.rate} if args.what == "training" else {}
    data: dict[str, Any] = json.loads(path.read_text()) if path.is_file() and not args.fresh else {}
    if not args.only_table and any(data.get(k) != v for k, v in key.items()):
        data = {}
    data = data or {"models": {}, "arms": {}, "seen": 0, "left_out": [], **key}
    if not args.only_table:
        _own_folders()
        save = lambda found: path.write_text(json.dumps(found) + "\n")  # noqa: E731
        data = mask_study(args.scenes or 32, save, data) if args.what == "masks" else training_study(args.scenes or 12, args.steps, args.rate, save, data)
    text = mask_table(data) if args.what == "masks" else training_table(data)
    path.with_suffix(".md").write_text(text)
    print(text)


def _own_folders() -> None:
    """Nothing is written where a user keeps models."""
    import tempfile

    import folder_paths

    folder = Path(tempfile.mkdtemp())
    folder_paths.set_output_directory(str(folder))
    folder_paths.folder_names_and_paths["embeddings"] = ([str(folder)], {".safetensors"})


if __name__ == "__main__":
    main()
