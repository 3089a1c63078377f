"""Does it help? Longer clips in the toy world: stock, RIFLEx, UltraViCo over alpha, on paired seeds.

``make evidence`` (or ``python -m attention_loom.toyworld.length_study --clips 64``) samples the committed checkpoint through
the host's own sampling path, with the pack's nodes attached, and writes

* ``toyworld/results/length_study.json``: every measure of every clip, so any other statistic can be computed later,
* ``toyworld/results/length_study.png``: the curve over alpha,
* ``toyworld/results/length_study.md``: the table with 95 % intervals (bootstrap over clips; gains are paired).

Resumable: finished settings are kept as long as prompts and checkpoints are the same; ``--fresh`` throws them away (after a
change of a method).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from .measures import measure_clip
from .sampling import sample_clips
from .statistics import interval, paired_gain
from .study import NATIVE, RESULTS, checkpoint_key, column, command, held_out

ALPHAS = (0.6, 0.9, 0.75, 0.45, 0.3)
"""In the order they are run, so that an early stop still leaves a comparison."""
RIFLEX_K = (1, 2, 3)
SHOWN = {
    "iou": "shape IoU",
    "broken": "broken frames",
    "motion_kept": "motion kept",
    "identity": "identity",
    "freeze": "freeze",
    "repetition": "repetition",
    "sharpness": "sharpness",
}
BATCH = 16


@dataclass(frozen=True)
class Setting:
    """One row of the table: a length and what is attached."""

    frames: int
    name: str
    patch: Callable[[Any], Any] | None = None


def settings() -> list[Setting]:
    """Native; then 4x and 3x with stock, UltraViCo over alpha and every RIFLEx k; 2x; two ablations."""
    from ..core.attach import attach
    from ..core.methods.riflex import RIFLEx
    from ..core.methods.ultravico import UltraViCo

    def riflex(k: int) -> Callable[[Any], Any]:
        return lambda model: attach(model, RIFLEx(k=k))

    def ultravico(alpha: float, **more: Any) -> Callable[[Any], Any]:
        return lambda model: attach(model, UltraViCo(train_frames=NATIVE, alpha=alpha, **more))

    rows = [Setting(NATIVE, "native")]
    for times in (4, 3):
        rows.append(Setting(NATIVE * times, "stock"))
        rows += [Setting(NATIVE * times, f"UltraViCo {a:g}", ultravico(a)) for a in ALPHAS[:2]]
        rows += [Setting(NATIVE * times, f"RIFLEx k={k}", riflex(k)) for k in RIFLEX_K]
    rows += [Setting(NATIVE * times, f"UltraViCo {a:g}", ultravico(a)) for a in ALPHAS[2:] for times in (4, 3)]
    rows += [Setting(NATIVE * 2, "stock"), Setting(NATIVE * 2, "UltraViCo 0.6", ultravico(0.6))]
    rows.append(Setting(NATIVE * 4, "UltraViCo 0.6, keys not centred", ultravico(0.6, center_keys=False)))
    rows.append(Setting(NATIVE * 4, "UltraViCo 0.6, first frame masked", ultravico(0.6, first_frame=True)))
    return rows


def run(clips: int) -> dict[str, Any]:
    """All settings that are not in the results yet."""
    path = RESULTS / "length_study.json"
    key = checkpoint_key(clips)
    data: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if data.get("key") != key:
        data = {"key": key, "clips": clips, "captions": held_out(clips), "rows": {}}
    for setting in settings():
        row = f"{setting.frames // NATIVE}x {setting.name}"
        if row in data["rows"]:
            continue
        begin = time.time()
        data["rows"][row] = _sample(setting, held_out(clips))
        path.write_text(json.dumps(data) + "\n")
        means = {k: round(float(numpy.mean([m[k] for m in data["rows"][row]])), 3) for k in SHOWN}
        print(f"{row}: {means} ({time.time() - begin:.0f} s)", flush=True)
    return data


def _sample(setting: Setting, work: list[tuple[str, int]]) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    for i in range(0, len(work), BATCH):
        captions, seeds = [c for c, _ in work[i : i + BATCH]], [s for _, s in work[i : i + BATCH]]
        frames = sample_clips(captions, setting.frames, seeds, patch=setting.patch)
        found += [{k: round(v, 5) for k, v in measure_clip(clip, caption).items()} for clip, caption in zip(frames, captions, strict=True)]
    return found


# --- statistics -----------------------------------------------------------------------------------------------------


def table(data: dict[str, Any]) -> str:
    """Markdown: mean of every measure, and the paired gain in shape IoU over stock and over the best RIFLEx."""
    lines = [
        f"{data['clips']} prompts and seeds, the same in every row; mean over clips; gains are paired, with 95 % bootstrap intervals.",
        "",
        "| length, method | " + " | ".join(SHOWN.values()) + " | IoU gain over stock | IoU gain over best RIFLEx |",
        "|---" * (len(SHOWN) + 3) + "|",
    ]
    for row in sorted(data["rows"], key=lambda r: (r.split()[0], r.split()[1] != "stock")):
        times = row.split()[0]
        cells = [f"{column(data, row, k).mean():.3f}" for k in SHOWN]
        gains = ["", ""]
        if row != f"{times} stock" and f"{times} stock" in data["rows"]:
            gains[0] = _gain(data, row, f"{times} stock")
            best = _best_riflex(data, times)
            gains[1] = _gain(data, row, best) if best and "UltraViCo" in row else ""
        lines.append(f"| {row} | " + " | ".join(cells + gains) + " |")
    return "\n".join(lines) + "\n"


def _gain(data: dict[str, Any], row: str, base: str, measure: str = "iou") -> str:
    return str(paired_gain(column(data, row, measure), column(data, base, measure)))


def _best_riflex(data: dict[str, Any], times: str) -> str | None:
    rows = [r for r in data["rows"] if r.startswith(f"{times} RIFLEx")]
    return max(rows, key=lambda r: column(data, r, "iou").mean(), default=None)


def plot(data: dict[str, Any], path: Path) -> None:
    """Measures over alpha at 3x and 4x with stock, the best RIFLEx and the native clip as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [("iou", "shape IoU (higher is better)"), ("broken", "broken frames (lower is better)"), ("motion_kept", "motion kept"), ("identity", "identity")]
    figure, axes = pyplot.subplots(2, len(shown), figsize=(17, 7.4), sharex=True)
    for line, times in enumerate(("3x", "4x")):
        for axis, (measure, title) in zip(axes[line], shown, strict=True):
            alphas = sorted(a for a in ALPHAS if f"{times} UltraViCo {a:g}" in data["rows"])
            found = [interval(column(data, f"{times} UltraViCo {a:g}", measure)) for a in alphas]
            mean, low, high = (numpy.array(x) for x in zip(*found, strict=True))
            axis.fill_between(alphas, low, high, alpha=0.2, color="#3f789e")
            axis.plot(alphas, mean, "o-", color="#3f789e", label="UltraViCo")
            for row, label, colour, style in (
                (f"{times} stock", "stock", "#b04040", "--"),
                (_best_riflex(data, times), "RIFLEx (best k)", "#c08a2a", "-."),
                ("1x native", "native length", "#555555", ":"),
            ):
                if row in data["rows"]:
                    value, lo, hi = interval(column(data, row, measure))
                    axis.axhline(value, color=colour, ls=style, label=label)
                    axis.axhspan(lo, hi, color=colour, alpha=0.08)
            axis.set_title(f"{times} length: {title}", fontsize=11)
            axis.set_xlabel("alpha")
            axis.grid(alpha=0.25)
    axes[0][0].legend(fontsize=9)
    figure.suptitle(f"Toy world, {data['clips']} paired prompts and seeds; bands are 95 % bootstrap intervals of the mean", fontsize=12)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    command(__doc__, "length_study", 64, run, table, plot)
