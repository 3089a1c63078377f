"""The gate at native length, and what stock does when clips get longer.

    python -m attention_loom.toyworld.evaluate native          # results/native_gate.json
    python -m attention_loom.toyworld.evaluate length          # results/length_stock.json and length_stock.png

A method may only be judged on these checkpoints if the gate is passed, and only where the stock model fails in the way its paper says.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch

from . import latent, measures, sampling, world
from .bundles import SHAPES, load_vae
from .host import CHECKPOINTS, RESULTS

NATIVE = latent.latent_frames(world.NATIVE_FRAMES)
# Measure, the bar on its mean over held-out samples, and whether higher passes.
GATE = {"colour": (0.98, True), "motion": (0.90, True), "iou": (0.80, True), "still_range": (measures.STILL_RANGE, False), "round_trip_psnr": (28.0, True)}
FIRST_SEED = 10_000  # training noise comes from other generators; captions are drawn with this seed


def held_out(count: int, motions: tuple[str, ...] = world.MOTIONS) -> list[str]:
    """Captions with motions in turn and colours and shapes drawn at random."""
    rng = random.Random(FIRST_SEED)
    return [str(world.random_caption(rng, motions[i % len(motions)])) for i in range(count)]


def truth_clips(captions: list[str], frames: int) -> list[torch.Tensor]:
    """Rendered clips [F, 64, 64, 3] for the captions, from another seed than training."""
    rng = random.Random(FIRST_SEED + 1)
    return [world.render(world.random_scene(rng, world.Caption.parse(caption)), frames) for caption in captions]


def measure_all(clips, captions: list[str]) -> list[dict[str, float]]:
    """`measure_clip` over clips."""
    return [measures.measure_clip(clip, caption) for clip, caption in zip(clips, captions, strict=True)]


def round_trip_psnr(clips: list[torch.Tensor], folder: Path = CHECKPOINTS) -> list[float]:
    """Peak signal to noise in dB per clip, after the VAE's encoder and decoder."""
    vae = load_vae(SHAPES, folder)
    values = []
    with torch.inference_mode():
        for clip in clips:
            decoded = vae.decode(vae.encode(clip)).reshape(clip.shape)
            values.append(float(-10 * torch.log10(((decoded - clip) ** 2).mean())))
    return values


def native(count: int, folder: Path = CHECKPOINTS) -> dict:
    """Gate table over `count` held-out captions and seeds, beside rendered truth and the truth's VAE round trip."""
    captions = held_out(count)
    start = time.time()
    clips = sampling.sample_clips(captions, NATIVE, range(FIRST_SEED, FIRST_SEED + count), folder=folder)
    seconds = time.time() - start
    rows = measure_all(clips, captions)
    truth = truth_clips(captions, world.NATIVE_FRAMES)
    psnr = round_trip_psnr(truth[:28], folder)
    by_motion = {m: [row["motion"] for row, text in zip(rows, captions, strict=True) if text.endswith(" " + m)] for m in world.MOTIONS}
    still = [row["range"] for row, text in zip(rows, captions, strict=True) if text.endswith("still")]
    values = {name: sum(row[name] for row in rows) / count for name in ("colour", "motion", "iou")}
    values |= {"still_range": sum(still) / len(still), "round_trip_psnr": sum(psnr) / len(psnr)}
    gate = {name: {"value": round(values[name], 4), "bar": bar, "passed": values[name] >= bar if up else values[name] <= bar} for name, (bar, up) in GATE.items()}
    return {
        "clips": count,
        "frames": world.NATIVE_FRAMES,
        "seconds_per_clip": round(seconds / count, 2),
        "gate": gate,
        "motion_by_class": {name: round(sum(v) / len(v), 3) for name, v in by_motion.items()},
        "stock": measures.summarise(rows),
        "truth": measures.summarise(measure_all(truth, captions)),
        "columns": measures.COLUMNS,
    }


def length(count: int, folder: Path = CHECKPOINTS) -> tuple[dict, torch.Tensor]:
    """Stock at 1x to 4x of native length beside rendered truth, orbits and straight motions apart; also clips for a picture.

    Paired: a caption and its seed number are the same at every length.
    """
    result, shown = {"clips_per_cell": count, "columns": measures.COLUMNS, "families": {}}, []
    for family, motions in (("orbits", tuple(world.ORBITS)), ("straight", tuple(world.STRAIGHT))):
        captions = held_out(count, motions)
        cells = result["families"][family] = {}
        base = None
        for times in (1, 2, 3, 4):
            frames = latent.pixel_frames(times * NATIVE)
            clips = sampling.sample_clips(captions, times * NATIVE, range(FIRST_SEED, FIRST_SEED + count), folder=folder)
            rows = measure_all(clips, captions)
            base = base or rows
            loss = torch.tensor([a["iou"] - b["iou"] for a, b in zip(rows, base, strict=True)])
            cells[f"{times}x"] = {
                "frames": frames,
                "stock": measures.summarise(rows),
                "truth": measures.summarise(measure_all(truth_clips(captions, frames), captions)),
                "iou_minus_native": {"mean": round(float(loss.mean()), 4), "half_interval": round(1.96 * float(loss.std()) / count**0.5, 4)},
            }
            print(family, times, {k: v["mean"] for k, v in cells[f"{times}x"]["stock"].items()}, flush=True)
            if times in (1, 3):
                shown += list(clips[:3])
    return result, shown


def contact_sheet(clips: list[torch.Tensor], columns: int = 14) -> "object":
    """A PIL picture with one row per clip and evenly spaced frames."""
    from PIL import Image

    rows = []
    for clip in clips:
        chosen = clip[torch.linspace(0, len(clip) - 1, columns).round().long()]
        rows.append(torch.nn.functional.pad(chosen, (0, 0, 1, 1, 1, 1), value=1.0).transpose(0, 1).flatten(1, 2))
    return Image.fromarray((torch.cat(rows).clamp(0, 1) * 255).byte().numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("native", "length"))
    parser.add_argument("--count", type=int, help="clips (default 100 native, 32 per cell for length)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=CHECKPOINTS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "native":
        result = native(options.count or 100, options.folder)
        (options.out / "native_gate.json").write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps({key: result[key] for key in ("gate", "motion_by_class", "seconds_per_clip")}, indent=1))
    else:
        result, shown = length(options.count or 32, options.folder)
        (options.out / "length_stock.json").write_text(json.dumps(result, indent=1) + "\n")
        contact_sheet(shown).save(options.out / "length_stock.png")


if __name__ == "__main__":
    main()
