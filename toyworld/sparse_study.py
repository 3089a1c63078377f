"""What is lost? Sparse patterns against dense attention in the toy world, on paired seeds.

``python -m attention_loom.toyworld.sparse_study --clips 48`` samples the committed checkpoint at its native length through the
host's own sampling path, with the Sparse Attention method attached, and writes

* ``toyworld/results/sparse_study.json``: every measure of every clip,
* ``toyworld/results/sparse_study.png``: quality over density,
* ``toyworld/results/sparse_study.md``: the table with 95 % bootstrap intervals over clips.

A clip of this model has 96 tokens, so blocks hold 4 (a 2 x 2 tile, or a row of a frame): 24 x 24 blocks, 4 a frame. The
first fifth of the sampling and the first of the four blocks stay dense, as the node's defaults say. The yardstick at each
density is as many blocks drawn at random.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy
import torch

from .fidelity import fidelity
from .measures import measure_clip
from .sampling import sample_clips
from .statistics import interval, paired_gain
from .study import NATIVE, RESULTS, checkpoint_key, column, command, held_out

DENSITIES = (0.5, 0.25, 0.1)
PATTERNS = ("random", "radial", "sliding_tile", "clear", "sla_topk", "draft", "sparsed", "adaspa", "rettention")
BLOCK = 4
TAILS = ("draft", "sla_topk", "sliding_tile")
"""Patterns that are also run with the pooled tail."""
SHOWN = {"psnr": "PSNR to dense, dB", "ssim": "SSIM to dense", "iou": "shape IoU", "colour": "colour", "motion": "motion"}
BATCH = 16


def settings() -> list[tuple[str, str, float, str]]:
    """(row, pattern, density, tail) in the order they are run."""
    rows = [(f"{p} {d:g}", p, d, "off") for d in DENSITIES for p in PATTERNS]
    return rows + [(f"{p} {d:g} + tail", p, d, "row") for d in DENSITIES for p in TAILS]


def run(clips: int) -> dict[str, Any]:
    """All settings that are not in the results yet."""
    path = RESULTS / "sparse_study.json"
    work, key = held_out(clips), checkpoint_key(clips)
    data: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if data.get("key") != key:
        data = {"key": key, "clips": clips, "captions": work, "rows": {}, "density": {}}
    dense = _frames(work, None)[0]
    data["rows"]["dense"] = _measures(dense, dense, work)
    for row, pattern, density, tail in settings():
        if row in data["rows"]:
            continue
        begin = time.time()
        try:
            frames, computed = _frames(work, (pattern, density, tail))
        except ValueError as error:
            print(f"{row}: {error}", flush=True)
            continue
        data["rows"][row], data["density"][row] = _measures(frames, dense, work), computed
        path.write_text(json.dumps(data) + "\n")
        print(f"{row}: computed {computed:.3f}, PSNR {column(data, row, 'psnr').mean():.2f} ({time.time() - begin:.0f} s)", flush=True)
    path.write_text(json.dumps(data) + "\n")
    return data


def _frames(work: list[tuple[str, int]], setting: tuple[str, float, str] | None) -> tuple[torch.Tensor, float]:
    """(frames [n, F, 64, 64, 3], share of pairs computed in the calls the pattern had, its own dense steps included)."""
    from ..core.attach import attach, record_of
    from ..core.methods.sparse import SparseAttention
    from ..core.schedule import BlockSelection, Window
    from ..kernels.patterns.fit import Choice

    records: list[Any] = []

    def patch(model: Any) -> Any:
        name, density, tail = setting  # type: ignore[misc]
        choice = Choice(name, density, block=BLOCK, tail=tail)  # type: ignore[arg-type]
        patched = attach(model, SparseAttention(choice, dense_blocks=BlockSelection.parse("0"), min_tokens=0, window=Window(0.2)))
        records.append(record_of(patched))
        return patched

    found = []
    for i in range(0, len(work), BATCH):
        part = work[i : i + BATCH]
        found.append(sample_clips([c for c, _ in part], NATIVE, [s for _, s in part], patch=None if setting is None else patch))
    density = [d for record in records for d in record.last.density.values()]
    return torch.cat(found), float(numpy.mean(density)) if density else 1.0


def _measures(frames: torch.Tensor, dense: torch.Tensor, work: list[tuple[str, int]]) -> list[dict[str, float]]:
    out = []
    for clip, truth, (caption, _) in zip(frames, dense, work, strict=True):
        found = fidelity(clip, truth) | measure_clip(clip, caption)
        out.append({k: round(float(v), 5) for k, v in found.items()})
    return out


def table(data: dict[str, Any]) -> str:
    """Markdown: means with intervals for PSNR, and the paired change of shape IoU against dense."""
    lines = [
        f"{data['clips']} prompts and seeds, the same in every row; brackets are 95 % bootstrap intervals over clips. *asked*: the density set on the node; "
        "*computed*: share of pairs that was computed in the calls the pattern had, its own dense (search, refresh) steps included.",
        "",
        "| pattern | asked | computed | " + " | ".join(SHOWN.values()) + " | IoU change against dense |",
        "|---" * (len(SHOWN) + 4) + "|",
        "| dense | 1 | 1.00 | | | " + " | ".join(f"{column(data, 'dense', k).mean():.3f}" for k in list(SHOWN)[2:]) + " | |",
    ]
    for row, pattern, density, tail in settings():
        if row not in data["rows"]:
            continue
        mean, low, high = interval(column(data, row, "psnr"))
        change = str(paired_gain(column(data, row, "iou"), column(data, "dense", "iou")))
        cells = [f"{mean:.2f} [{low:.2f}, {high:.2f}]", *(f"{column(data, row, k).mean():.3f}" for k in list(SHOWN)[1:])]
        lines.append(f"| {pattern}{' + tail' if tail != 'off' else ''} | {density:g} | {data['density'][row]:.2f} | " + " | ".join([*cells, change]) + " |")
    return "\n".join(lines) + "\n"


def plot(data: dict[str, Any], path: Path) -> None:
    """PSNR to dense and shape IoU over the density that was computed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(14, 6))
    colours = [c for i, c in enumerate(pyplot.get_cmap("tab10").colors) if i != 7]  # grey is random's
    for i, pattern in enumerate(PATTERNS):
        rows = sorted((data["density"][f"{pattern} {d:g}"], f"{pattern} {d:g}") for d in DENSITIES if f"{pattern} {d:g}" in data["rows"])
        rows = [row for n, row in enumerate(rows) if n == 0 or row[0] - rows[n - 1][0] > 1e-3]
        for axis, measure in zip(axes, ("psnr", "iou"), strict=True):
            found = [interval(column(data, row, measure)) for _, row in rows]
            mean, low, high = (numpy.array(x) for x in zip(*found, strict=True))
            at = [density for density, _ in rows]
            style = {"color": "#888888", "ls": "--"} if pattern == "random" else {"color": colours[i - 1]}
            axis.errorbar(at, mean, yerr=(mean - low, high - mean), marker="o", ms=4, capsize=3, label=pattern, **style)
        if pattern in TAILS:
            rows = [f"{pattern} {d:g} + tail" for d in DENSITIES if f"{pattern} {d:g} + tail" in data["rows"]]
            for axis, measure in zip(axes, ("psnr", "iou"), strict=True):
                at, mean = [data["density"][row] for row in rows], [column(data, row, measure).mean() for row in rows]
                axis.plot(at, mean, "s:", mfc="white", ms=5, lw=1, color=colours[i - 1], label=f"{pattern} + tail")
    value, low, high = interval(column(data, "dense", "iou"))
    axes[1].axhline(value, color="#222222", ls=":")
    axes[1].annotate("dense", (0.02, value + 0.012), fontsize=9)
    axes[1].axhspan(low, high, color="#222222", alpha=0.07)
    for axis, title in zip(axes, ("PSNR of the frames to dense attention, dB", "shape IoU with the prompt's shape"), strict=True):
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("share of the pairs computed, dense search and refresh steps included")
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=8, loc="upper left", ncols=2)
    axes[0].set_ylim(14, 52)
    figure.suptitle(f"Toy world, {data['clips']} paired prompts and seeds; bars are 95 % bootstrap intervals of the mean", fontsize=12)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    command(__doc__, "sparse_study", 48, run, table, plot)
