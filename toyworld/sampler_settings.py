"""Choose the sampler settings of a checkpoint, on other prompts and seeds than the gate's.

python -m attention_loom.toyworld.sampler_settings sd3           # prints a table, writes results/scenes_settings.json
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import torch

from . import gates, held_out, sampling
from .bundles import BUNDLES, Bundle, Settings, changed
from .host import CHECKPOINTS, RESULTS

FIRST_SEED = 60_000
CFG = (2.0, 3.0, 5.0)
STEPS = (10, 16, 24)
SAMPLERS = {"flow": (("euler", "simple"),), "noise": (("euler", "normal"), ("dpmpp_2m", "normal"))}


def candidates(bundle: Bundle) -> list[Settings]:
    """Guidance with the bundle's steps, then steps with its guidance, for every sampler of its kind of noise schedule."""
    found = []
    for sampler, scheduler in SAMPLERS["noise" if bundle.settings.shift is None else "flow"]:
        own = changed(bundle.settings, sampler=sampler, scheduler=scheduler)
        found += [changed(own, cfg=cfg) for cfg in CFG] + [changed(own, steps=steps) for steps in STEPS]
    return list(dict.fromkeys(found))


def compare(bundle: Bundle, count: int, decoder: str, folder: Path = CHECKPOINTS) -> list[dict[str, Any]]:
    """Judged means (`gates.judged`), completeness and overlap of every candidate, over prompts of one and of two objects, half each."""
    shown = [scene for pair in zip(*(held_out.scenes(bundle, count // 2, objects, "settings") for objects in (1, 2))) for scene in pair]
    rows = []
    for settings in candidates(bundle):
        frames = sampling.sample(bundle, [str(scene.caption) for scene in shown], range(FIRST_SEED, FIRST_SEED + len(shown)), decoder=decoder, folder=folder, settings=settings)
        samples = [gates.examine(one, scene.caption) for one, scene in zip(frames, shown, strict=True)]
        columns = [{**gates.judged(sample), **{name: sample.values[name] for name in ("complete", "iou", "texture", "ground_texture")}} for sample in samples]
        means = {name: [row[name] for row in columns if not numpy.isnan(row[name])] for name in columns[0]}
        rows.append({"settings": asdict(settings), "n": len(samples), **{name: round(float(numpy.mean(values)), 4) for name, values in means.items() if values}})
        print(f"{settings.sampler} {settings.steps} steps, cfg {settings.cfg:g}: { ({name: rows[-1][name] for name in means if means[name]}) }", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m attention_loom.toyworld.sampler_settings", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="+", choices=list(BUNDLES))
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--decoder", choices=sampling.DECODERS, default="vae")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=CHECKPOINTS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = options.out / "scenes_settings.json"
    for name in options.names:
        rows = compare(BUNDLES[name], options.count, options.decoder, options.folder)
        data = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**data, name: {"checkpoint": gates.stated(BUNDLES[name], options.folder), "decoder": options.decoder, "rows": rows}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
