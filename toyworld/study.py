"""What the studies in the toy world share: prompts, the key of their results, columns, and the command line."""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy

from .world import MOTIONS, random_caption

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
NATIVE = 6
"""Latent frames of a native clip."""


def held_out(clips: int) -> list[tuple[str, int]]:
    """Captions and seeds, all motions in turn; the generator's seed is used nowhere else."""
    rng = random.Random(20261121)
    return [(str(random_caption(rng, MOTIONS[i % len(MOTIONS)])), 1000 + i) for i in range(clips)]


def checkpoint_key(clips: int) -> str:
    """Results belong to one set of prompts and checkpoints."""
    digest = hashlib.sha256(json.dumps(held_out(clips)).encode())
    for name in ("toy_wan_t2v", "toy_umt5", "toy_wan_vae"):
        digest.update((HERE / "checkpoints" / f"{name}.safetensors").read_bytes())
    return digest.hexdigest()[:16]


def column(data: dict[str, Any], row: str, measure: str) -> numpy.ndarray:
    """One measure of one row, clip by clip."""
    return numpy.array([m[measure] for m in data["rows"][row]], dtype=float)


def command(
    doc: str | None, name: str, clips: int, run: Callable[[int], dict[str, Any]], table: Callable[[dict[str, Any]], str], plot: Callable[[dict[str, Any], Path], None]
) -> None:
    """Command line of the study ``name``: samples what is missing, writes table and plot beside its JSON."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--clips", type=int, default=clips, help=f"paired prompts and seeds per row (default {clips})")
    parser.add_argument("--fresh", action="store_true", help="throw earlier results away")
    parser.add_argument("--only-table", action="store_true", help="table and plot of the results at hand")
    args = parser.parse_args()
    path = RESULTS / f"{name}.json"
    if args.fresh:
        path.unlink(missing_ok=True)
    data = json.loads(path.read_text()) if args.only_table else run(args.clips)
    (RESULTS / f"{name}.md").write_text(table(data))
    plot(data, RESULTS / f"{name}.png")
    print(table(data))
