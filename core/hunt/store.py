"""Scores on disk, one line per picture: what a broken-off search goes on from."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FORMAT = "attention loom scores 1"
THUMB = 160
"""Longer side of a kept picture."""


class Scores:
    """Scores of one search. path: its file, made with the first score; key: what tells searches apart, kept in the first line.

    A half-written last line (the machine went down) is dropped.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.values: dict[tuple[str, int], float] = {}
        self.seconds: dict[tuple[str, int], float] = {}
        self.thumbs: dict[tuple[str, int], np.ndarray] = {}
        if path.is_file():
            self._read()

    def _read(self) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        if not whole or json.loads(whole[0]) != {"format": FORMAT, "key": self.key}:
            self.path.unlink()
            return
        for line in whole[1:]:
            self._take(json.loads(line))
        if len(whole) < len(lines):
            self.path.write_text("".join(whole), encoding="utf-8")

    def _take(self, entry: dict[str, Any]) -> None:
        at = entry["heads"], entry["pair"]
        self.values[at], self.seconds[at] = entry["score"], entry["seconds"]
        if "picture" in entry:
            self.thumbs[at] = np.asarray(Image.open(io.BytesIO(base64.b64decode(entry["picture"]))).convert("RGB"))

    def put(self, heads: str, pair: int, score: float, seconds: float, picture: np.ndarray | None = None) -> None:
        """Keep one score. seconds: the picture took; picture: uint8 [h, w, 3], kept small."""
        entry: dict[str, Any] = {"heads": heads, "pair": pair, "score": score, "seconds": round(seconds, 3)}
        if picture is not None:
            entry["picture"] = _small(picture)
        fresh = not self.path.is_file()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            if fresh:
                file.write(json.dumps({"format": FORMAT, "key": self.key}) + "\n")
            file.write(json.dumps(entry) + "\n")
        self._take(entry)


def _small(picture: np.ndarray) -> str:
    image = Image.fromarray(picture)
    if max(image.size) > THUMB:
        image.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return base64.b64encode(out.getvalue()).decode()
