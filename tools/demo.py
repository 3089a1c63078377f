"""``make demo``: a longer video on a real ComfyUI, as pictures and numbers.

Starts ComfyUI headless with this pack, queues ``workflows/api/longer_video_ultravico.json`` once per prompt through its API
and writes to ``demo_output/``: a contact sheet, an animated WebP, the table, the report of what ran. Clips that are there
already (same graph, same pack, same checkpoints) are not made again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont, ImageSequence
from tqdm import tqdm

from ..toyworld.length_study import held_out
from ..toyworld.measures import measure_clip
from .headless import ROOT, Headless

OUT = ROOT / "demo_output"
WORKFLOW = ROOT / "workflows" / "api" / "longer_video_ultravico.json"
CHECKPOINTS = ROOT / "toyworld" / "checkpoints"
MODELS = {"toy_wan_t2v.safetensors": "diffusion_models", "toy_umt5.safetensors": "text_encoders", "toy_wan_vae.safetensors": "vae"}
VARIANTS = {"native": "native length, 21 frames", "stock": "4x, stock", "riflex": "4x, RIFLEx", "ultravico": "4x, UltraViCo"}
PROMPTS = held_out(64)[:14]
"""The first two rounds of the length study's held-out prompts and seeds: every motion twice."""
RANKS = {"largest gain": 0.0, "upper third": 1 / 3, "lower third": 2 / 3, "smallest gain": 1.0}
"""Which prompts the pictures show, by what UltraViCo gains over stock in shape IoU: from the best to the worst."""
COLUMNS = {"motion_kept": "motion kept", "repetition": "repetition", "freeze": "freeze", "identity": "identity", "iou": "shape IoU", "broken": "broken frames"}


def main() -> int:
    """Run the demo; returns the exit status."""
    begin = time.time()
    missing = [name for name in MODELS if not (CHECKPOINTS / name).is_file()]
    if missing:
        print(f"{', '.join(missing)} not found in toyworld/checkpoints; the clone is incomplete.")
        return 1
    (OUT / "clips").mkdir(parents=True, exist_ok=True)
    wanted = [(graph, OUT / "clips" / f"{_key(graph)}.npz") for graph in (_graph(p, s) for p, s in PROMPTS)]
    todo = [(graph, path) for graph, path in wanted if not path.is_file()]
    if todo:
        print(f"starting ComfyUI (headless, {'GPU' if torch.cuda.is_available() else 'CPU'}) and drawing {len(todo)} prompts, each at 1x and three times at 4x length", flush=True)
        _draw(todo)
    else:
        print("all clips are there already; measuring and drawing the pictures", flush=True)
    clips = [{name: torch.from_numpy(data).float() / 255 for name, data in numpy.load(path).items()} for _, path in wanted]
    rows = [{v: measure_clip(clip[v], prompt) for v in VARIANTS} for clip, (prompt, _) in zip(clips, PROMPTS, strict=True)]
    table = _table(rows)
    chosen = _chosen(rows)
    _contact_sheet([(clips[i], title) for i, title in chosen], OUT / "contact_sheet.png")
    _animation([clips[i] for i, _ in chosen], OUT / "longer_video.webp")
    (OUT / "table.txt").write_text(table + "\n")
    print()
    print(table)
    print(f"\ndemo_output/: contact_sheet.png, longer_video.webp, table.txt, what_ran.png, what_ran.txt ({time.time() - begin:.0f} s)")
    return 0


# --- sampling -------------------------------------------------------------------------------------------------------


def _graph(prompt: str, seed: int) -> dict[str, Any]:
    """The bundled workflow with another prompt and seed."""
    graph = copy.deepcopy(json.loads(WORKFLOW.read_text()))
    for node in graph.values():
        if node["_meta"]["title"] == "Prompt":
            node["inputs"]["text"] = prompt
        if "seed" in node["inputs"]:
            node["inputs"]["seed"] = seed
    return graph


def _key(graph: dict[str, Any]) -> str:
    """What a clip depends on: the graph, the pack's own code, the checkpoints."""
    digest = hashlib.sha256(json.dumps(graph, sort_keys=True).encode())
    for folder in ("core", "kernels", "nodes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    for name in MODELS:
        digest.update((CHECKPOINTS / name).read_bytes())
    return digest.hexdigest()[:16]


def _draw(todo: list[tuple[dict[str, Any], Path]]) -> None:
    """Queue the graphs; store the four clips of each as uint8 [F, H, W, 3]."""
    with Headless(ROOT / "build" / "demo", packs={"toy-world": ROOT / "toyworld" / "comfy_node"}) as host:
        for name, kind in MODELS.items():
            host.put_model(kind, CHECKPOINTS / name)
        for number, (graph, path) in enumerate(todo, 1):
            samplers = [n for n, node in graph.items() if node["class_type"] == "KSampler"]
            prompt = next(node["inputs"]["text"] for node in graph.values() if node["_meta"]["title"] == "Prompt")
            with tqdm(total=sum(graph[n]["inputs"]["steps"] for n in samplers), desc=f"{number}/{len(todo)} {prompt}", unit="step", file=sys.stdout) as bar:
                done = dict.fromkeys(samplers, 0)

                def progress(node: str, value: int, _maximum: int, done: dict[str, int] = done, bar: Any = bar) -> None:
                    if node in done:
                        bar.update(value - done[node])
                        done[node] = value

                result = host.run(graph, progress)
            clips = {name: _frames(host, graph, result.outputs, name) for name in VARIANTS}
            numpy.savez_compressed(path, **clips)  # type: ignore[arg-type]
            _keep_report(host, graph, result.outputs)


def _frames(host: Headless, graph: dict[str, Any], outputs: dict[str, Any], variant: str) -> numpy.ndarray:
    """The lossless clip one branch saved."""
    node = next(n for n, x in graph.items() if x["class_type"] == "SaveAnimatedWEBP" and x["inputs"]["filename_prefix"].endswith(variant))
    with Image.open(host.file(outputs[node]["images"][0])) as clip:
        return numpy.stack([numpy.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(clip)])


def _keep_report(host: Headless, graph: dict[str, Any], outputs: dict[str, Any]) -> None:
    node = next(n for n, x in graph.items() if x["class_type"] == "LoomReport")
    (OUT / "what_ran.txt").write_text(outputs[node]["text"][0] + "\n")
    (OUT / "what_ran.png").write_bytes(host.file(outputs[node]["images"][0]).read_bytes())


# --- numbers --------------------------------------------------------------------------------------------------------


def _table(measured: list[dict[str, dict[str, float]]]) -> str:
    """Mean and half width of the 95 % interval over the prompts, per variant and measure."""
    lines = [f"{'mean over ' + str(len(measured)) + ' prompts':26s}" + "".join(f"{title:>17s}" for title in COLUMNS.values())]
    for variant, title in VARIANTS.items():
        cells = []
        for column in COLUMNS:
            values = [row[variant][column] for row in measured]
            spread = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):9.2f} ±{spread:5.2f}")
        lines.append(f"{title:26s}" + "".join(f"{cell:>17s}" for cell in cells))
    return "\n".join(lines)


def _chosen(measured: list[dict[str, dict[str, float]]]) -> list[tuple[int, str]]:
    """Index and heading of the prompts that the pictures show."""
    gains = [row["ultravico"]["iou"] - row["stock"]["iou"] for row in measured]
    order = sorted(range(len(gains)), key=lambda i: -gains[i])
    found = []
    for name, place in RANKS.items():
        i = order[round(place * (len(order) - 1))]
        found.append((i, f"{PROMPTS[i][0]}   ({name} of {len(order)} prompts: UltraViCo over stock {gains[i]:+.2f} shape IoU)"))
    return found


# --- pictures -------------------------------------------------------------------------------------------------------

INK, PAPER, QUIET = (32, 36, 44), (255, 255, 255), (130, 136, 148)
SHOWN = 14
THUMB = 72


def _contact_sheet(clips: list[tuple[dict[str, torch.Tensor], str]], path: Path) -> None:
    """One row per variant and prompt, frames from left to right in time."""
    left, row, head = 190, THUMB + 6, 34
    height = sum(head + row * len(VARIANTS) + 12 for _ in clips) + 44
    sheet = Image.new("RGB", (left + SHOWN * (THUMB + 4) + 16, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    big, small = ImageFont.load_default(19), ImageFont.load_default(15)
    pen.text((16, 12), "The same prompt and seed: at the length the model was trained for, and at four times that length", INK, big)
    y = 44
    for clip, heading in clips:
        pen.text((16, y + 6), heading, INK, big)
        y += head
        for variant, title in VARIANTS.items():
            frames = clip[variant]
            pen.text((left - 12, y + THUMB / 2), title, INK, small, anchor="rm")
            for i, f in enumerate(_moments(len(frames))):
                sheet.paste(_thumb(frames[f], THUMB), (left + i * (THUMB + 4), y))
            y += row
        y += 12
    sheet.save(path)


def _moments(frames: int) -> list[int]:
    return [round(i * (frames - 1) / (SHOWN - 1)) for i in range(SHOWN)]


def _animation(clips: list[dict[str, torch.Tensor]], path: Path) -> None:
    """All variants side by side, one row per prompt; the native clip stops at its end."""
    size, gap, head, left = 160, 8, 40, 12
    longest = max(len(f) for clip in clips for f in clip.values())
    font = ImageFont.load_default(15)
    pages = []
    for t in range(longest):
        page = Image.new("RGB", (left * 2 + len(VARIANTS) * (size + gap), head + len(clips) * (size + gap)), PAPER)
        pen = ImageDraw.Draw(page)
        for c, (variant, title) in enumerate(VARIANTS.items()):
            x = left + c * (size + gap)
            pen.text((x + size / 2, head / 2), title, INK, font, anchor="mm")
            for r, clip in enumerate(clips):
                frames = clip[variant]
                y = head + r * (size + gap)
                page.paste(_thumb(frames[min(t, len(frames) - 1)], size), (x, y))
                if t >= len(frames):
                    pen.text((x + size / 2, y + size - 12), "ended", PAPER, font, anchor="mm")
        pages.append(page)
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=90, loop=0, lossless=False, quality=80)


def _thumb(frame: torch.Tensor, size: int) -> Image.Image:
    array = (frame.clamp(0, 1) * 255).round().byte().numpy()
    return Image.fromarray(array).resize((size, size), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    raise SystemExit(main())
