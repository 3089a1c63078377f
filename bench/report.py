"""From a result file to a table and a picture.

python -m attention_loom.bench.report bench/results/NAME.json                     print the table
python -m attention_loom.bench.report bench/results/NAME.json --plot PICTURE.png  and draw speed against density
python -m attention_loom.bench.report bench/results/NAME.json --write             put both into docs/performance.md,
                                                                                  and the file into bench/results
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from .goals import verdicts
from .provenance import ROOT, kernels_sha256
from .results import COLUMNS
from .shapes import SHAPES, TINY

PAGE = ROOT / "docs" / "performance.md"
KEPT = ROOT / "bench" / "results"
PICTURE = ROOT / "docs" / "images" / "performance.png"
BEGIN, END = "<!-- results: written by bench/report.py -->", "<!-- end of results -->"
FORMATS = {
    "density": ".3f", "ms": ".2f", "dense_ms": ".2f", "speedup": ".2f", "tflops": ".0f", "efficiency": ".2f",
    "imbalance": ".2f", "rel_l2": ".1e", "peak_mb": ".0f",
}  # fmt: skip
HEADS = {
    "impl": "implementation", "ms": "ms", "dense_ms": "best dense ms", "speedup": "speed-up", "tflops": "TFLOP/s",
    "efficiency": "E", "rel_l2": "rel. L2 to dense", "peak_mb": "peak MB",
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Print, draw or write one result file; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m attention_loom.bench.report", description="Table and picture of a benchmark result.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--plot", type=Path, help="picture to draw")
    parser.add_argument("--write", action="store_true", help="put table and picture into docs/performance.md")
    args = parser.parse_args(argv)
    document = json.loads(args.file.read_text(encoding="utf8"))
    text = section(document)
    if args.write:
        keep(args.file, document, KEPT)
        plot(document, PICTURE)
        write(text + f"\n\n![Speed-up over the best dense attention against the share of pairs computed](images/{PICTURE.name})", PAGE)
    else:
        print(text)
    if args.plot:
        plot(document, args.plot)
    return 0


def section(document: dict[str, Any]) -> str:
    """Heading, provenance and one table per shape, as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = [f"### {document['device']}, {document['date'][:10]}", "", f"Driver {document['driver']}; {versions}. {freshness(document)}"]
    titles = {s.name: s.title for s in (*SHAPES, *TINY)}
    for shape in dict.fromkeys(row["shape"] for row in document["rows"]):
        lines += ["", f"**{titles.get(shape, shape)}** (`{shape}`)", "", *table([r for r in document["rows"] if r["shape"] == shape])]
    lines += [line for part in (_goals, _models, _decay, _overhead, _specialised, _settings) for line in part(document)]
    if document.get("absent"):
        lines += ["", "Not measured:", "", *(f"- {name}: {reason}" for name, reason in document["absent"].items())]
    return "\n".join(lines)


def _goals(document: dict[str, Any]) -> list[str]:
    found = verdicts(document)
    if not document.get("stages") or all(v.met is None for v in found):
        return []
    lines = ["", "**Goals**", "", "| goal | case | wanted | found | |", "|---|---|---:|---:|---|"]
    for v in found:
        wanted, form = f"{'at most' if v.at_most else 'at least'} {v.wanted:.3g}", "" if v.found is None else f"{v.found:.3g}"
        lines.append(f"| {v.goal} | {v.case} | {wanted} | {form} | {'not measured' if v.met is None else 'met' if v.met else 'missed'} |")
    return lines


def _models(document: dict[str, Any]) -> list[str]:
    columns = {
        "model": "", "arm": "", "density": ".3f", "step_s": ".3f", "attention_s": ".3f", "attention_share": ".2f", "attention_speedup": ".2f", "speedup": ".2f",
        "predicted": ".2f", "peak_gb": ".1f",
    }  # fmt: skip
    heads = ["model", "attention", "density", "s per step", "s in attention", "share of stock", "attention faster", "step faster", "predicted", "peak GiB"]
    return _plain("One step of whole models (random weights)", document, "models", columns, heads)


def _decay(document: dict[str, Any]) -> list[str]:
    heads = ["call", "tokens", "way", "heads", "ms", "peak MB", "rel. L2 to ours"]
    columns = {"shape": "", "tokens": "", "way": "", "heads": "", "ms": ".2f", "peak_mb": ".0f", "rel_l2_to_loom": ".1e"}
    return _plain("UltraViCo's decay beyond the trained length, one call", document, "decay", columns, heads)


def _overhead(document: dict[str, Any]) -> list[str]:
    columns = {"shape": "", "tokens": "", "density": ".3f", "call_ms": ".3f", "lists_ms": ".3f", "permutation_ms": ".3f", "share": ".3f"}
    return _plain("Lists and permutation", document, "overhead", columns, ["call", "tokens", "density", "whole call ms", "lists ms", "permutation ms", "share"])


def _settings(document: dict[str, Any]) -> list[str]:
    columns = {"case": "", "density": ".2f", "settings": "", "shipped": "", "ms": ".3f", "rel_l2_to_shipped": ".1e"}
    return _plain("Launch settings", document, "settings", columns, ["case", "density", "tile, warps, stages, variant", "shipped", "ms", "rel. L2 to shipped"])


def _specialised(document: dict[str, Any]) -> list[str]:
    columns = {"case": "", "settings": "", "shipped": "", "ms": ".3f", "rel_l2_to_shipped": ".1e"}
    heads = ["case", "tile, warps, stages, variant", "shipped", "ms", "rel. L2 to shipped"]
    return _plain("The kernel with roles for its warp groups", document, "specialised", columns, heads)


def _plain(title: str, document: dict[str, Any], name: str, columns: dict[str, str], heads: list[str]) -> list[str]:
    """A table of another kind; what failed stands below with its reason."""
    rows = document.get("tables", {}).get(name)
    if not rows:
        return []
    words = {c for c, form in columns.items() if not form}
    lines = ["", f"**{title}**", "", "| " + " | ".join(heads) + " |", "|" + "|".join("---" if c in words else "---:" for c in columns) + "|"]
    for row in rows:
        cells = ["" if row.get(c) is None else _cell(row[c], form or None) for c, form in columns.items()]
        lines.append("| " + " | ".join(cells) + " |")
    failed = [f"- {row['name']}: {row['failed']}" for row in rows if "failed" in row]
    return [*lines, "", *failed] if failed else lines


def freshness(document: dict[str, Any]) -> str:
    """Whether the numbers are of the kernels in this tree."""
    same = document["kernels_sha256"] == kernels_sha256()
    return "The kernels are those of this tree." if same else "**The kernels have changed since**: these numbers are of an earlier version."


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown lines; columns that say the same in every row are kept, so that all tables look alike."""
    columns = [c for c in COLUMNS if c != "shape"]
    lines = ["| " + " | ".join(HEADS.get(c, c) for c in columns) + " |", "|" + "|".join("---" if c in ("impl", "pattern") else "---:" for c in columns) + "|"]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row[c], FORMATS.get(c)) for c in columns) + " |")
    return lines


def _cell(value: Any, form: str | None) -> str:
    if value is None:
        return "not measured" if form == FORMATS["ms"] else ""
    return format(value, form) if form else str(value)


def keep(file: Path, document: dict[str, Any], folder: Path) -> Path:
    """Copy a result file into ``folder`` under its name, ``<device>-<date>.json``, unless it lies there already."""
    name = re.sub(r"[^a-z0-9]+", "-", document["device"].lower()).strip("-") + f"-{document['date'][:10]}.json"
    path = folder / name
    if file.resolve().parent != folder.resolve():
        path.write_bytes(file.read_bytes())
    return path


def write(text: str, page: Path) -> None:
    """Replace what stands between the markers of ``page``. Raises ValueError where they are missing."""
    whole = page.read_text(encoding="utf8")
    if BEGIN not in whole or END not in whole:
        raise ValueError(f"{page.name} has no place for results: the lines {BEGIN!r} and {END!r} are missing")
    before, rest = whole.split(BEGIN, 1)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END, 1)[1]}", encoding="utf8")


def plot(document: dict[str, Any], path: Path) -> None:
    """Speed-up over the best dense attention against density, one panel per shape; the line is what no kernel can beat
    without lower precision: 1 / density. Needs matplotlib, which is in the development requirements."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [r for r in document["rows"] if r["speedup"] is not None and r["pattern"] != "dense" and not r["impl"].endswith(": backward")]
    if not rows:
        raise ValueError("nothing was timed: there is no speed to draw")
    shapes, impls = list(dict.fromkeys(r["shape"] for r in rows)), list(dict.fromkeys(r["impl"] for r in rows))
    wide = min(3, len(shapes))
    figure, axes = pyplot.subplots(-(-len(shapes) // wide), wide, figsize=(4.6 * wide, 3.9 * -(-len(shapes) // wide)), squeeze=False, layout="constrained")
    markers = {"random": "o", "radial": "s", "window": "^", "topk": "D"}
    colours = {impl: f"C{n}" for n, impl in enumerate(impls)}
    for axis, shape in zip(axes.flat, shapes, strict=False):
        here = [r for r in rows if r["shape"] == shape]
        span = sorted((min(r["density"] for r in here) / 1.2, 1.0))
        axis.plot(span, [1 / d for d in span], color="0.6", linewidth=1, linestyle="--")
        axis.axhline(1, color="0.6", linewidth=1)
        for r in here:
            axis.scatter(r["density"], r["speedup"], s=22, color=colours[r["impl"]], marker=markers.get(r["pattern"], "x"), alpha=0.85, linewidths=0)
        axis.set(xscale="log", yscale="log", title=shape, xlabel="share of pairs computed", ylabel="times as fast as the best dense")
        axis.set_xticks(ticks := [0.05, 0.1, 0.25, 0.5, 1.0], [f"{t:g}" for t in ticks])
        axis.set_yticks(ticks := [t for t in (0.1, 0.25, 0.5, 1, 2, 5, 10, 20) if axis.get_ylim()[0] <= t <= axis.get_ylim()[1]], [f"{t:g}" for t in ticks])
        axis.minorticks_off()
    for axis in list(axes.flat)[len(shapes) :]:
        axis.axis("off")
    line = pyplot.Line2D
    handles = [line([], [], color=colours[i], marker="o", linestyle="", label=i) for i in impls]
    handles += [line([], [], color="0.3", marker=m, linestyle="", label=p) for p, m in markers.items() if any(r["pattern"] == p for r in rows)]
    handles.append(line([], [], color="0.6", linestyle="--", label="1 / share"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(f"{document['device']}, {document['date'][:10]}: forward pass, bf16")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
