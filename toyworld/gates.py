"""Are the second world's checkpoints good enough to judge methods on?

    python -m attention_loom.toyworld.gates                          # all that are there: results/scenes_gates.json, scenes_gate_NAME.png
    python -m attention_loom.toyworld.gates sd3 --count 64

Each checkpoint draws scenes whose captions it was not trained on, with one object and with more, at its native length and beyond. Every measure of
`scores` stands beside rendered truth and beside truth after the VAE's round trip. The gate itself looks at one object, and whatever was not drawn
counts as wrong. What the models do to several objects (drop, fuse, misname) is recorded, not gated: that is the failure methods are to cure.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from . import forcing, gate_sheets, held_out, sampling
from .bundles import BUNDLES, Bundle, Settings
from .host import CHECKPOINTS, RESULTS
from .readings import read
from .scenes import Caption, render
from .scenes.layout import Scene
from .scores import score_reading
from .statistics import interval, share_interval
from .world import ORBITS, STRAIGHT

BARS = {"colour": 0.98, "shape": 0.95, "direction": 0.95, "motion": 0.95, "placement": 0.95, "round_trip": 30.0}
"""Least mean of each gated measure; `round_trip` in dB, the others shares. What they are: `judged`."""
LEVEL_BAR = 1.1
"""Most that mixed noise levels may cost a model trained for them, as a ratio of errors: see `forcing.level_errors`."""
FIRST_SEED = 40_000  # of the noise; settings were chosen on other seeds (`sampler_settings`)
ANCHORS = 12  # scenes of a cell whose rendered truth is scored: its numbers hardly vary
PYRAMID_DELAY = 2  # Euler steps by which each latent frame is behind the one before it
WHOLE = 0.9  # share of frames in which all things are seen and right; below it something was dropped or misnamed


@dataclass(frozen=True)
class Cell:
    """One kind of prompts. times: lengths in native clips. share: of the asked number of samples. delay: of a pyramid of noise levels, None for the host's sampler."""

    name: str
    objects: int
    times: int = 1
    share: float = 1.0
    delay: int | None = None


CLIP_CELLS = (Cell("one object", 1), Cell("two objects", 2, share=0.5), Cell("one object, 2x", 1, 2, 0.25), Cell("one object, 3x", 1, 3, 0.25))
PYRAMID_CELL = Cell("one object, pyramid", 1, share=0.25, delay=PYRAMID_DELAY)
PICTURE_CELLS = (Cell("one object", 1), Cell("two objects", 2), Cell("three objects", 3))


def cells(bundle: Bundle) -> tuple[Cell, ...]:
    """The cells a checkpoint is measured in."""
    if not bundle.moving:
        return PICTURE_CELLS
    return (*CLIP_CELLS, PYRAMID_CELL) if bundle.name == "wan_forcing" else CLIP_CELLS


# --- arithmetic -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """What was measured of one picture or clip: `values` are those of `scores`, `seen` the share of things seen at all."""

    caption: Caption
    values: dict[str, float]
    seen: float


def examine(frames: torch.Tensor, caption: Caption) -> Sample:
    """Measure frames [F, S, S, 3] in 0..1."""
    reading = read(frames, caption)
    return Sample(caption, score_reading(reading), float(reading.found.any(1).float().mean()))


def judged(sample: Sample) -> dict[str, float]:
    """What the gate counts, 0..1 each; nan where the caption does not ask for it. A thing that was not drawn is wrong in everything.

    colour, shape: share of (thing, frame) seen in its own. motion: share of things that move as named; direction: the same for captions of
    straight movers and orbits. placement: share of placed things at their place.
    """
    things, values = sample.caption.things, sample.values
    motion = _or_zero(values["motion"]) * sample.seen if sample.caption.moving else math.nan
    directed = all(thing.motion in (*STRAIGHT, *ORBITS) for thing in things)
    return {
        "colour": _or_zero(values["colour"]) * values["presence"],
        "shape": _or_zero(values["shape"]) * values["presence"],
        "direction": motion if directed else math.nan,
        "motion": motion,
        "placement": _or_zero(values["placement"]) * sample.seen if all(thing.place for thing in things) else math.nan,
    }


def gate(samples: Sequence[Sample], decibels: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Rows of the gate: value, 95 % interval, n, bar, passed. Measures that no caption asks for have no row."""
    columns = _columns([judged(sample) for sample in samples])
    rows = {name: _row(share_interval(values), len(values), BARS[name]) for name, values in columns.items()}
    return {**rows, "round_trip": _row(interval(numpy.array(decibels)), len(decibels), BARS["round_trip"])}


def failures(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Share of samples in which a thing is dropped or fused, in which all are there but one is misnamed, and in which either happens."""
    dropped = numpy.array([sample.values["complete"] < WHOLE for sample in samples], dtype=float)
    wrong = numpy.array([_or_zero(sample.values["binding"]) < WHOLE for sample in samples], dtype=float)
    named = {"dropped": dropped, "misnamed": wrong * (1 - dropped), "either": numpy.maximum(dropped, wrong)}
    return {name: _cell(share_interval(values), len(values)) for name, values in named.items()}


def summary(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Mean, 95 % interval and n of every measure of `scores` that applies to some sample."""
    return {name: _cell(interval(values), len(values)) for name, values in _columns([sample.values for sample in samples]).items()}


def by_motion(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Share of clips of one object with each named motion that move so."""
    found: dict[str, list[float]] = {}
    for sample in samples:
        found.setdefault(sample.caption.things[0].motion, []).append(judged(sample)["motion"])
    return {name: _cell(share_interval(numpy.array(values)), len(values)) for name, values in found.items()}


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, numpy.ndarray]:
    table = {name: numpy.array([row[name] for row in rows], dtype=float) for name in rows[0]}
    kept = {name: values[~numpy.isnan(values)] for name, values in table.items()}
    return {name: values for name, values in kept.items() if len(values)}


def _cell(found: tuple[float, float, float], n: int) -> dict[str, float]:
    return {**{name: round(value, 4) for name, value in zip(("mean", "low", "high"), found)}, "n": n}


def _row(found: tuple[float, float, float], n: int, bar: float, most: bool = False) -> dict[str, Any]:
    return {**_cell(found, n), "bar": bar, "passed": found[0] <= bar if most else found[0] >= bar}


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


# --- running ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What a gate run uses: checkpoint, its folder, number of samples of a full cell, decoder ("vae" or "linear") and sampler settings."""

    bundle: Bundle
    folder: Path = CHECKPOINTS
    count: int = 64
    decoder: str = "vae"
    settings: Settings | None = None

    def frames(self, cell: Cell, shown: Sequence[Scene]) -> Iterator[torch.Tensor]:
        """Frames [F, S, S, 3] that the model draws for each scene's caption."""
        captions, seeds = [str(scene.caption) for scene in shown], range(FIRST_SEED, FIRST_SEED + len(shown))
        for start in range(0, len(shown), sampling.BATCH):
            part = slice(start, start + sampling.BATCH)
            if cell.delay is None:
                length = None if self.bundle.latent_frames is None else cell.times * self.bundle.latent_frames
                drawn = sampling.draw(self.bundle, captions[part], seeds[part], folder=self.folder, latent_frames=length, settings=self.settings)
            else:
                drawn = forcing.pyramid(self.bundle, captions[part], seeds[part], cell.delay, self.folder)
            yield from sampling.decode(self.bundle, drawn, self.decoder, self.folder)


def run(what: Run) -> tuple[dict[str, Any], list[gate_sheets.Drawn]]:
    """Everything about one checkpoint, and what to put on its sheet."""
    bundle, start = what.bundle, time.time()
    note = stated(bundle, what.folder)
    seen = held_out.training_captions(bundle.name, note.get("seed", 0), note["pool"]) if "pool" in note else frozenset()
    result: dict[str, Any] = {"checkpoint": {**note, "key": key(bundle, what.folder)}, "settings": vars(what.settings or bundle.settings), "decoder": what.decoder, "cells": {}}
    drawn: list[gate_sheets.Drawn] = []
    for cell in cells(bundle):
        shown = held_out.scenes(bundle, max(2, round(what.count * cell.share)), cell.objects, "gate", seen)
        samples = []
        for scene, frames in zip(shown, what.frames(cell, shown)):
            samples.append(examine(frames, scene.caption))
            drawn.append(gate_sheets.Drawn(cell.name, str(scene.caption), frames, samples[-1].values))
        entry = result["cells"][cell.name] = {"n": len(samples), "stock": summary(samples)}
        if cell.objects > 1:
            entry["failures"] = failures(samples)
        if cell.times == 1 and cell.delay is None:
            entry["truth"], entry["round_trip"], decibels = anchors(what, shown[:ANCHORS])
            entry["gate"] = gate(samples, decibels)
        if cell.objects == 1 and bundle.moving:
            entry["by_motion"] = by_motion(samples)
        print(f"{bundle.name}, {cell.name}: {line(samples)} ({time.time() - start:.0f} s)", flush=True)
    result["gate"] = {**result["cells"]["one object"]["gate"], **_levels(what, seen)}
    result["passed"] = all(row["passed"] for row in result["gate"].values())
    result["seconds"] = round(time.time() - start)
    return result, drawn


def anchors(what: Run, shown: Sequence[Scene]) -> tuple[dict[str, Any], dict[str, Any], list[float]]:
    """Measures of rendered truth, of truth after the round trip, and the round trip's peak signal to noise in dB per scene."""
    truth, after, decibels = [], [], []
    for scene in shown:
        frames = render(scene, size=what.bundle.size)
        tripped = sampling.round_trip(what.bundle, frames, what.decoder, what.folder)
        truth.append(examine(frames, scene.caption))
        after.append(examine(tripped, scene.caption))
        decibels.append(float(-10 * torch.log10((tripped - frames).square().mean())))
    return summary(truth), summary(after), decibels


def line(samples: Sequence[Sample]) -> str:
    """The gated means of a cell in one line."""
    columns = _columns([{**judged(sample), "complete": sample.values["complete"], "iou": sample.values["iou"]} for sample in samples])
    return ", ".join(f"{name} {values.mean():.3f}" for name, values in columns.items())


def _levels(what: Run, seen: frozenset[str]) -> dict[str, Any]:
    """Rows for mixed noise levels, of the checkpoint that was trained for them."""
    if what.bundle.name != "wan_forcing":
        return {}
    shown = held_out.scenes(what.bundle, 16, 1, "levels", seen)
    errors = forcing.level_errors(what.bundle, shown, what.folder)
    return {f"error, {name} levels": _row(interval(values.numpy().astype(float)), len(values), LEVEL_BAR, most=True) for name, values in errors.items()}


def stated(bundle: Bundle, folder: Path) -> dict[str, Any]:
    """What the trainer wrote into the model's file, but for its sizes."""
    from safetensors import safe_open

    from .scoreboard.checkpoints import checked

    (path,) = checked(Path(folder), ((bundle.model, "diffusion_models"),))
    with safe_open(path, framework="pt") as file:
        note = json.loads((file.metadata() or {}).get("toyworld", "{}"))
    return {name: value for name, value in note.items() if name != "model"}


def key(bundle: Bundle, folder: Path) -> str:
    """Of the model's and text encoder's bytes: results belong to one pair of files."""
    digest = hashlib.sha256()
    for name in (bundle.model, bundle.text):
        digest.update((Path(folder) / name).read_bytes())
    return digest.hexdigest()[:16]


def table(name: str, result: dict[str, Any]) -> str:
    """The gate of one checkpoint as Markdown."""
    lines = [f"**{name}**: {'passed' if result['passed'] else 'not passed'}", "", "| measure | bar | stock | 95 % interval | n | passed |", "|---|---|---|---|---|---|"]
    for measure, row in result["gate"].items():
        sign, digits = ("≤" if measure.startswith("error") else "≥"), (1 if measure == "round_trip" else 3)
        numbers = f"{row['mean']:.{digits}f} | {row['low']:.{digits}f} to {row['high']:.{digits}f} | {row['n']}"
        lines.append(f"| {measure.replace('_', ' ')} | {sign} {row['bar']} | {numbers} | {'yes' if row['passed'] else 'no'} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m attention_loom.toyworld.gates", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"checkpoints: {', '.join(BUNDLES)} (default: those that are there)")
    parser.add_argument("--count", type=int, default=64, help="samples of a full cell (default 64)")
    parser.add_argument("--decoder", choices=sampling.DECODERS, default="vae", help="linear: a blurred quick look that needs no VAE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=CHECKPOINTS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in BUNDLES]:
        parser.error(f"there is no checkpoint {unknown[0]!r}; they are {', '.join(BUNDLES)}")
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "scenes_gates.json"
    for name in options.names or [name for name, bundle in BUNDLES.items() if (options.folder / bundle.model).is_file()]:
        result, drawn = run(Run(BUNDLES[name], options.folder, options.count, options.decoder))
        data = json.loads(path.read_text()) if path.is_file() else {}  # read late: another run may have written meanwhile
        path.write_text(json.dumps({**data, name: result}, indent=1) + "\n")
        gate_sheets.write(BUNDLES[name].moving, drawn, f"{name}: held-out prompts", options.out / f"scenes_gate_{name}.png")
        print(table(name, result), flush=True)


if __name__ == "__main__":
    main()
