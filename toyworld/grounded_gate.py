"""Does the toy GLIGEN put objects into their boxes? Pictures of the toy SD1.5 without and with the boxes of the rendered truth.

python -m attention_loom.toyworld.grounded_gate --count 32        # prints a table, writes results/scenes_grounded.json

Captions name no places and were not trained on; the same prompt and noise twice, through the host's own GLIGEN nodes. A measure of a checkpoint, not of a method.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy
import torch

from . import held_out
from .bundles import BUNDLES, load, load_vae
from .gates import FIRST_SEED, stated
from .host import CHECKPOINTS, RESULTS, load_host
from .readings import read
from .sampling import noise_of
from .scenes.layout import Scene
from .statistics import interval, paired_gain

FILE = "scenes_sd15_gligen.safetensors"
COLUMNS = {
    "seen": "share of things that are seen in their colour or shape",
    "inside": "share of things that are seen with their centre inside their box",
    "iou": "overlap of the box around a thing with its box, 0 where it is not seen",
}


def judge(frame: torch.Tensor, scene: Scene) -> dict[str, float]:
    """COLUMNS of one picture [1, S, S, 3], mean over things."""
    reading, boxes = read(frame, scene.caption), scene.boxes(1)[:, 0]
    seen = reading.found[:, 0]
    inside = (reading.x[:, 0] >= boxes[:, 0]) & (reading.x[:, 0] <= boxes[:, 2]) & (reading.y[:, 0] >= boxes[:, 1]) & (reading.y[:, 0] <= boxes[:, 3])
    around = torch.stack([reading.x[:, 0], reading.y[:, 0]], 1).repeat(1, 2) + reading.radius[:, :1] * torch.tensor([-1.0, -1.0, 1.0, 1.0])
    low, high = torch.maximum(around[:, :2], boxes[:, :2]), torch.minimum(around[:, 2:], boxes[:, 2:])
    both = (high - low).clamp(min=0).prod(1)
    overlap = both / ((around[:, 2:] - around[:, :2]).prod(1) + (boxes[:, 2:] - boxes[:, :2]).prod(1) - both)
    return {
        "seen": float(seen.double().mean()),
        "inside": float((seen & inside).double().mean()),
        "iou": float(torch.where(seen, overlap, 0.0).double().mean()),
    }


class Drawer:
    """The toy SD1.5 with its GLIGEN, through the host's own classes."""

    def __init__(self, folder: Path = CHECKPOINTS) -> None:
        load_host()
        import comfy.sd

        self.bundle = BUNDLES["sd15"]
        self.model, self.clip = load(self.bundle, folder)
        self.vae = load_vae(self.bundle, folder)
        self.gligen = comfy.sd.load_gligen(str(folder / FILE))

    def draw(self, scene: Scene, seed: int, boxed: bool) -> torch.Tensor:
        """One picture [1, S, S, 3] of a scene's caption."""
        import comfy.sample

        with torch.inference_mode():
            positive, negative = (self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text)) for text in (str(scene.caption), ""))
            positive = self._boxed(positive, scene) if boxed else positive
            noise, how = noise_of(seed, None, self.bundle.size), self.bundle.settings
            drawn = comfy.sample.sample(
                self.model, noise, how.steps, how.cfg, how.sampler, how.scheduler, positive, negative, torch.zeros_like(noise), disable_pbar=True, seed=seed
            )
            return self.vae.decode(drawn).clone()

    def _boxed(self, positive: Any, scene: Scene) -> Any:
        import nodes

        size = self.bundle.size
        for thing, (left, top, right, bottom) in zip(scene.caption.things, (scene.boxes(1)[:, 0] * size).tolist(), strict=True):
            x, y, w, h = (8 * round(value / 8) for value in (left, top, right - left, bottom - top))
            (positive,) = nodes.GLIGENTextBoxApply().append(positive, self.clip, self.gligen, str(thing), max(8, w), max(8, h), max(0, x), max(0, y))
        return positive


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m attention_loom.toyworld.grounded_gate", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--folder", type=Path, default=CHECKPOINTS)
    options = parser.parse_args()
    drawer, out = Drawer(options.folder), {}
    note = stated(drawer.bundle, options.folder)
    seen = held_out.training_captions(drawer.bundle.name, note.get("seed", 0), note["pool"])
    for things in (1, 2):
        shown = [scene for scene in held_out.scenes(drawer.bundle, 4 * options.count, things, "grounded", seen) if not any(t.place for t in scene.caption.things)][: options.count]
        rows = [[judge(drawer.draw(scene, FIRST_SEED + n, boxed), scene) for n, scene in enumerate(shown)] for boxed in (False, True)]
        for name in COLUMNS:
            plain, boxed = (numpy.array([row[name] for row in side]) for side in rows)
            gain = paired_gain(boxed, plain)
            out[f"{things} {name}"] = {"without": interval(plain), "with": interval(boxed), "gain": gain and [gain.mean, gain.low, gain.high], "n": len(shown)}
            print(f"{things} things, {name}: without {plain.mean():.3f}, with boxes {boxed.mean():.3f}, {gain}, n {len(shown)}", flush=True)
    (RESULTS / "scenes_grounded.json").write_text(json.dumps(out, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
