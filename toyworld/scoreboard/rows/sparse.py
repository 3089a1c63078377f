"""Sparse Attention: how near a pattern stays to dense attention at half and at a quarter of the pairs."""

from __future__ import annotations

import re
from typing import Any

from ..footage import Footage, measure_video
from ..graphs import through
from ..row import Arm, Judge, Row
from ..scene_footage import measure_scene

SHARED = ("core/methods/sparse.py", "nodes/sparse.py", "kernels/patterns/fit.py", "kernels/patterns/base.py")
NOTES = (
    "{} tokens in blocks of 4; the first fifth of the sampling and the first of four blocks dense. Random blocks are no node; sliding_tile, "
    "which never looks at the content, is the plain alternative here, and the sparse study has the random ones."
)
JUDGES = (Judge("psnr", "PSNR to dense (dB)"), Judge("ssim", "SSIM to dense"), Judge("iou", "shape IoU"), Judge("pairs", "pairs computed", "lower"))


def sparse(name: str, pattern: str, density: float, tail: str = "off") -> Arm:
    """The Sparse Attention node at the toy model's size."""
    settings = {"pattern": pattern, "density": density, "start_percent": 0.2, "dense_blocks": "0", "min_tokens": 0, "block_size": "4", "measure": False, "tail": tail}
    code = (*SHARED, f"kernels/patterns/{pattern}.py") + (("kernels/tail.py",) if tail != "off" else ())
    return Arm(name, through(("LoomSparseAttention", settings)), code)


def measure(footage: Footage) -> dict[str, float]:
    """As for every clip of the first world, and the share of the pairs that were computed."""
    return measure_video(footage) | {"pairs": pairs(footage.report)}


def measure_scenes(footage: Footage) -> dict[str, float]:
    """The same in the second world."""
    return measure_scene(footage) | {"pairs": pairs(footage.report)}


def pairs(report: str) -> float:
    """Share of the pairs that a What Ran counted in the pattern's calls; 1 for dense."""
    counted = re.search(r"^- pattern .*?([\d.]+)% of the pairs", report, re.MULTILINE)
    return float(counted[1]) / 100 if counted else 1.0


def at(density: float, share: str, name: str, **more: Any) -> Row:
    """One row per density; the others differ from ours in one thing each: a fixed window, another selection, no pooled tail."""
    return Row(
        name=name,
        method="sparse",
        claim=f"With {share} of the pairs, draft with the pooled tail stays nearer to the dense clip than a fixed window or draft alone, and shapes hold.",
        stock=Arm("dense", through()),
        alternatives=tuple(sparse(pattern, pattern, density) for pattern in ("sliding_tile", "sla_topk", "draft")),
        ours=sparse("draft + tail", "draft", density, "row"),
        **more,
    )


def first(density: float, share: str) -> Row:
    """In the first world."""
    return at(density, share, f"sparse-{100 * density:.0f}", latent_frames=6, judges=JUDGES, notes=NOTES.format(96), measure=measure)


def scenes(density: float, share: str) -> Row:
    """In the second world."""
    judges = (*JUDGES, Judge("texture", "texture"))
    return at(density, share, f"sparse-scenes-{100 * density:.0f}", latent_frames=9, judges=judges, notes=NOTES.format(144), measure=measure_scenes, world="scenes_wan_t2v")


ROWS = tuple(row(density, share) for row in (first, scenes) for density, share in ((0.5, "half"), (0.25, "a quarter")))
