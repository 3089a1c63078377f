"""Time and peak memory of one sampler in a running host, taken from outside: nothing is added to the graph."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path

import psutil

from ...tools.headless import Headless
from .graphs import SAMPLER, SECOND


class Meter:
    """Follows one run through `Headless.run`'s callbacks.

    seconds: from the sampler's start to its last step, decoding and saving left out, a second pass added; on a CPU processor time of the host's process over all
    threads, which other work on the machine changes little, on a GPU time that passed. memory: MiB. On a CPU the highest resident memory
    of the host's process while it sampled, which includes torch and the host themselves (Linux; nan elsewhere); on a GPU the highest
    memory that torch had reserved at the end of a step.
    """

    def __init__(self, host: Headless) -> None:
        self.host = host
        self.seconds = self.memory = math.nan
        self._begin, self._before = math.nan, 0.0
        self.device, self._gpu = _device(host)

    def entered(self, node: str) -> None:
        """A node begins."""
        if node == SECOND:
            self._begin, self._before = self._clock(), self.seconds
        if node == SAMPLER:
            self._begin = self._clock()
            # 5 sets the high-water mark of resident memory back to what is resident now (proc(5), clear_refs)
            with contextlib.suppress(OSError):
                self._proc("clear_refs").write_text("5")

    def progress(self, node: str, value: int, maximum: int) -> None:
        """A step of a sampler is done."""
        if node not in (SAMPLER, SECOND):
            return
        self.seconds = self._before + self._clock() - self._begin
        if self._gpu:
            reserved = self.host.get("/system_stats")["devices"][0]["torch_vram_total"] / 2**20
            self.memory = reserved if math.isnan(self.memory) else max(self.memory, reserved)
        elif value == maximum:
            self.memory = self._high_water()

    def _clock(self) -> float:
        if self._gpu or self.host.process is None:
            return time.perf_counter()
        used = psutil.Process(self.host.process.pid).cpu_times()
        return used.user + used.system

    def _proc(self, name: str) -> Path:
        process = self.host.process
        return Path("/proc") / str(process.pid if process else "none") / name

    def _high_water(self) -> float:
        with contextlib.suppress(OSError):
            for line in self._proc("status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        return math.nan


def _device(host: Headless) -> tuple[str, bool]:
    """(name of the device the host samples on, whether it is a GPU)."""
    found = host.get("/system_stats")["devices"][0]
    return ("CPU", False) if found["type"] == "cpu" else (found["name"], True)
