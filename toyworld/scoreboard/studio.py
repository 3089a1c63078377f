"""Where clips are drawn: one headless ComfyUI, started when the first clip is missing, and a folder of finished clips."""

from __future__ import annotations

import copy
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy
import torch
from PIL import Image, ImageSequence

from ...tools.headless import ROOT, Headless
from .graphs import REPORT, SAMPLER, SAVE
from .keys import shared_key
from .meter import Meter

CLIPS = ROOT / "build" / "scoreboard" / "clips"
PACKS = {"toy-world": ROOT / "toyworld" / "comfy_node", "toy-world-segment": ROOT / "toyworld" / "segment_node"}


@dataclass(frozen=True)
class Clip:
    """A clip, or the pictures of one graph as frames.

    frames: uint8 [F, H, W, 3]. seconds and memory: see `Meter`. report: text of What Ran, or empty. device: empty for what was rendered
    without a host. shared: `keys.shared_key` when it was drawn.
    """

    frames: numpy.ndarray
    seconds: float
    memory: float
    report: str
    device: str
    shared: str

    def tensor(self) -> torch.Tensor:
        """Frames [F, H, W, 3] in 0..1."""
        return torch.from_numpy(self.frames).float() / 255


class Studio:
    """Draws graphs and keeps what was drawn. A context manager: the host, if one was started, ends with it.

    host: a running one to use instead (it stays open). folder: where finished clips lie, named by their keys.
    """

    def __init__(self, folder: Path = CLIPS, host: Headless | None = None) -> None:
        self.folder = Path(folder)
        self._given, self._own = host, None
        self._since: float | None = None
        self._warm: tuple[Path, ...] = ()

    def __enter__(self) -> Studio:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._own is not None:
            self._own.__exit__(kind, error, trace)

    def has(self, key: str) -> bool:
        """Whether this clip is finished."""
        return self._path(key).is_file() and (self._since is None or self._path(key).stat().st_mtime >= self._since)

    def distrust(self) -> None:
        """Draw every clip anew that was finished before now."""
        self._since = time.time()

    def clip(self, key: str, graph: dict[str, Any], models: dict[Path, str]) -> Clip:
        """The clip of a graph, drawn if there is none under its key. models: checkpoint -> folder of the host. HostError if it fails."""
        if not self.has(key):
            self._keep(key, self._draw(graph, models))
        with numpy.load(self._path(key)) as stored:
            facts = json.loads(str(stored["facts"]))
            return Clip(stored["frames"], **facts)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"

    def _keep(self, key: str, clip: Clip) -> None:
        facts = json.dumps({"seconds": clip.seconds, "memory": clip.memory, "report": clip.report, "device": clip.device, "shared": clip.shared})
        partial = self._path(key).with_suffix(".partial.npz")
        numpy.savez_compressed(partial, frames=clip.frames, facts=numpy.array(facts))
        os.replace(partial, self._path(key))  # an interrupt leaves no half clip

    def _draw(self, graph: dict[str, Any], models: dict[Path, str]) -> Clip:
        host = self._ready(graph, models)
        meter = Meter(host)
        outputs = host.run(graph, meter.progress, entered=meter.entered).outputs
        report = outputs[REPORT]["text"][0] if REPORT in graph else ""
        frames = numpy.concatenate([_frames(host.file(entry)) for entry in outputs[SAVE]["images"]])
        return Clip(frames, round(meter.seconds, 3), round(meter.memory, 1), report, meter.device, shared_key())

    def _ready(self, graph: dict[str, Any], models: dict[Path, str]) -> Headless:
        """The host with these models in place and the last ones it loaded, so that no clip's time holds the loading."""
        host = self._given or self._own
        if host is None:
            host = self._own = Headless(ROOT / "build" / "scoreboard" / "host", packs=PACKS)
            host.__enter__()
        if tuple(models) != self._warm:
            for path, kind in models.items():
                host.put_model(kind, path)
            first = copy.deepcopy(graph)
            if "steps" in first[SAMPLER]["inputs"]:
                first[SAMPLER]["inputs"]["steps"] = 1
            host.run(first)
            self._warm = tuple(models)
        return host


def _frames(path: Path) -> numpy.ndarray:
    """Frames of a lossless animated WebP, or of one picture, uint8 [F, H, W, 3]."""
    with Image.open(path) as clip:
        return numpy.stack([numpy.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(clip)])
