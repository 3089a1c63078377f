"""Sparse Attention: how near a pattern stays to dense attention at half and at a quarter of the pairs."""

from __future__ import annotations

import re

from ..footage import Footage, measure_video
from ..graphs import text_to_video
from ..row import Arm, Judge, Row

SHARED = ("core/methods/sparse.py", "nodes/sparse.py", "kernels/patterns/fit.py", "kernels/patterns/base.py")
NOTES = (
    "96 tokens in blocks of 4; the first fifth of the sampling and the first of four blocks dense. Random blocks are no node; sliding_tile, "
    "which never looks at the content, is the plain alternative here, and the sparse study has the random ones."
)


def sparse(name: str, pattern: str, density: float, tail: str = "off") -> Arm:
    """The Sparse Attention node at the toy model's size."""
    settings = {"pattern": pattern, "density": density, "start_percent": 0.2, "dense_blocks": "0", "min_tokens": 0, "block_size": "4", "measure": False, "tail": tail}
    code = (*SHARED, f"kernels/patterns/{pattern}.py") + (("kernels/tail.py",) if tail != "off" else ())
    return Arm(name, text_to_video(("LoomSparseAttention", settings)), code)


def measure(footage: Footage) -> dict[str, float]:
    """As for every video, and the share of the pairs that the report counted in the pattern's calls; 1 for dense."""
    counted = re.search(r"^- pattern .*?([\d.]+)% of the pairs", footage.report, re.MULTILINE)
    return measure_video(footage) | {"pairs": float(counted[1]) / 100 if counted else 1.0}


def at(density: float, share: str) -> Row:
    """One row per density; the others differ from ours in one thing each: a fixed window, another selection, no pooled tail."""
    return Row(
        name=f"sparse-{100 * density:.0f}",
        method="sparse",
        claim=f"With {share} of the pairs, draft with the pooled tail stays nearer to the dense clip than a fixed window or draft alone, and shapes hold.",
        latent_frames=6,
        stock=Arm("dense", text_to_video()),
        alternatives=tuple(sparse(pattern, pattern, density) for pattern in ("sliding_tile", "sla_topk", "draft")),
        ours=sparse("draft + tail", "draft", density, "row"),
        judges=(Judge("psnr", "PSNR to dense (dB)"), Judge("ssim", "SSIM to dense"), Judge("iou", "shape IoU"), Judge("pairs", "pairs computed", "lower")),
        notes=NOTES,
        measure=measure,
    )


ROWS = (at(0.5, "half"), at(0.25, "a quarter"))
