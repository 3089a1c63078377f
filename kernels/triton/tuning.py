"""Launch settings for GPUs the shipped table does not know: measured once, kept in a file, never changed during a run.

The file lies in a directory the caller names (:func:`use_directory`, or the environment variable ``LOOM_CACHE_DIR``);
without one nothing is kept. There is one file per GPU model. It counts only for the driver, torch, triton and pack version it
was written with; a file that is damaged or of another version is ignored and written anew.

Settings decide the order of additions, so an answer once given stays for the life of the process: results of a run do not
depend on what another thread has measured meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .settings import VARIANTS, Settings

MOST_CANDIDATES = 12
MOST_SECONDS = 3.0
MOST_BYTES = 64 * 10**6
"""Synthetic tensors of one measurement."""
LEAST_FREE = 2**30
"""Free device memory below which nothing is measured: a model that only just fits comes first."""
DENSITIES = (0.05, 0.1, 0.25, 0.5, 1.0)
"""Upper ends of the density buckets of a key."""
ENVIRONMENT = "LOOM_CACHE_DIR"


def tuning_key(kernel: str, arch: str, width: int, item_size: int, block_q: int = 0, block_k: int = 0, flags: Iterable[str] = (), density: float = 1.0) -> str:
    """What settings depend on, as text; never the number of tokens.

    >>> tuning_key("forward", "sm_130", 128, 2, 128, 64, ["bias"], 0.08)
    'forward sm_130 d128 b2 128x64 bias r0.1'
    """
    bucket = next((d for d in DENSITIES if density <= d), 1.0)
    return f"{kernel} {arch} d{width} b{item_size} {block_q}x{block_k} {'+'.join(sorted(flags)) or 'plain'} r{bucket:g}"


# --- identity of the machine ----------------------------------------------------------------------------------------------


def machine(device: torch.device | None = None) -> dict[str, str]:
    """GPU name, driver and versions: what measured settings, and benchmark results, hold for."""
    gpu = gpu_name(device)
    driver = "none" if gpu.endswith(" CPU") else _driver()
    return {"gpu": gpu, "driver": driver, "torch": torch.__version__, "triton": _triton_version(), "pack": pack_version()}


@cache
def gpu_name(device: torch.device | None = None) -> str:
    """Name of the device's model, or of the processor."""
    if torch.cuda.is_available() and (device is None or device.type == "cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU"


@cache
def _driver() -> str:
    """Version of the GPU driver; where no public interface tells, that of the driver's CUDA interface."""
    with contextlib.suppress(OSError):
        found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", Path("/proc/driver/nvidia/version").read_text(encoding="utf8"))
        if found:
            return found.group(1)
    if torch.version.hip:
        return f"hip {torch.version.hip}"
    with contextlib.suppress(OSError, AttributeError):
        version = ctypes.c_int()
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        if library.cuDriverGetVersion(ctypes.byref(version)) == 0:
            return f"cuda {version.value // 1000}.{version.value % 1000 // 10}"
    return "unknown"


@cache
def _triton_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    for name in ("triton", "triton-windows", "pytorch-triton-rocm"):
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return "none"


@cache
def pack_version() -> str:
    """The version in ``pyproject.toml``, which is part of every installed pack."""
    with contextlib.suppress(OSError):
        text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf8")
        found = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
        if found:
            return found.group(1)
    return "unknown"


# --- the store ------------------------------------------------------------------------------------------------------------

_lock = threading.RLock()
_directory: Path | None = None
_measured: dict[str, dict[str, Settings]] = {}  # GPU name -> key -> settings, as in its file
_answers: dict[tuple[str, str], Settings | None] = {}
_trial: ContextVar[Settings | None] = ContextVar("loom_trial_settings", default=None)


def use_directory(path: str | os.PathLike | None) -> None:
    """Keep measured settings under ``path``; None: where ``LOOM_CACHE_DIR`` says, or nowhere. Forgets what was read before."""
    global _directory
    with _lock:
        _directory = None if path is None else Path(path)
        forget()


def forget() -> None:
    """Ask the files again, as in a fresh process."""
    with _lock:
        _measured.clear()
        _answers.clear()


def tuned(key: str, device: torch.device) -> Settings | None:
    """Measured settings for ``key`` on ``device``'s kind of GPU, None if there are none. The first answer stays."""
    gpu = gpu_name(device)
    with _lock:
        if (gpu, key) not in _answers:
            _answers[gpu, key] = _table(device).get(key)
        return _answers[gpu, key]


def remember(key: str, settings: Settings, device: torch.device) -> None:
    """Keep ``settings`` for ``key`` in memory and, if there is a directory, in its file.

    Takes effect where ``key`` has not been asked for yet; a file that cannot be written is no error.
    """
    with _lock:
        table = _table(device)
        table[key] = settings
        path = _file(device)
        if path is None:
            return
        text = json.dumps({"machine": machine(device), "settings": {k: _as_list(s) for k, s in sorted(table.items())}}, indent=1)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Another process may read at any time: it finds the old file or the new one.
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_text(text + "\n", encoding="utf8")
            os.replace(part, path)


def _file(device: torch.device) -> Path | None:
    directory = _directory or (Path(os.environ[ENVIRONMENT]) if os.environ.get(ENVIRONMENT) else None)
    if directory is None:
        return None
    name = re.sub(r"[^a-z0-9]+", "_", gpu_name(device).lower()).strip("_")
    return directory / f"attention_loom_launch_{name}.json"


def _table(device: torch.device) -> dict[str, Settings]:
    gpu = gpu_name(device)
    if gpu not in _measured:
        _measured[gpu] = _read(_file(device), device)
    return _measured[gpu]


def _read(path: Path | None, device: torch.device) -> dict[str, Settings]:
    if path is None:
        return {}
    try:
        found: Any = json.loads(path.read_text(encoding="utf8"))
        if found["machine"] != machine(device):
            return {}
        return {str(key): _checked(numbers) for key, numbers in found["settings"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _checked(numbers: Any) -> Settings:
    """Settings from a file; ValueError for anything a kernel could not be launched with."""
    block_m, block_n, warps, stages, *way = numbers
    sizes = (block_m, block_n, warps)
    if (
        way not in ([], *([v] for v in VARIANTS))
        or not all(isinstance(n, int) for n in numbers[:4])
        or any(n < 1 or n & (n - 1) for n in sizes)
        or max(sizes[:2]) > 256
        or warps > 32
        or not 1 <= stages <= 8
    ):
        raise ValueError(f"{numbers} are no launch settings")
    return Settings(block_m, block_n, warps, stages, *way)


def _as_list(s: Settings) -> list[int | str]:
    """As in a file: the variant only where it is not the plain one."""
    return [s.block_m, s.block_n, s.warps, s.stages, *([] if s.variant == "plain" else [s.variant])]


# --- measuring ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def trial(settings: Settings) -> Iterator[None]:
    """Launches of this thread use ``settings`` while the block runs."""
    token = _trial.set(settings)
    try:
        yield
    finally:
        _trial.reset(token)


def on_trial() -> Settings | None:
    """The settings being measured in this thread, if any."""
    return _trial.get()


def tune(
    key: str,
    candidates: Iterable[Settings],
    launch: Callable[[], object],
    device: torch.device,
    *,
    deterministic: bool = True,
    measure: Callable[[Callable[[], object]], float] | None = None,
) -> Settings | None:
    """The fastest of ``candidates`` for ``launch()``, measured on ``device`` and remembered; None where nothing was measured.

    launch: one call of the kernel on synthetic data of at most :data:`MOST_BYTES` (see :func:`bytes_of`). The most likely
    candidate comes first: at most :data:`MOST_CANDIDATES` are tried and no new one is begun after :data:`MOST_SECONDS`,
    compilation included. One that does not compile or launch is passed over. Nothing is measured where settings are known,
    without a GPU, with less than 1 GB of it free, or with ``deterministic``: a run keeps the settings it began with.
    """
    known = tuned(key, device)
    if known is not None or deterministic or (measure is None and not _may_measure(device)):
        return known
    measure = measure or milliseconds
    began, best, least = time.perf_counter(), None, float("inf")
    for number, candidate in enumerate(candidates):
        if number >= MOST_CANDIDATES or (number and time.perf_counter() - began > MOST_SECONDS):
            break
        with trial(candidate), contextlib.suppress(Exception):  # whatever a compiler or driver throws, the next one may do
            took = measure(launch)
            if took < least:
                best, least = candidate, took
    if best is not None:
        with _lock:
            _answers.pop((gpu_name(device), key), None)
            remember(key, best, device)
    return best


def _may_measure(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.mem_get_info(device)[0] >= LEAST_FREE


def milliseconds(launch: Callable[[], object], warm: int = 3, repeats: int = 10) -> float:
    """Median device time of one launch, by events: no buffer is allocated to flush caches."""
    for _ in range(warm):
        launch()
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in marks:
        start.record()
        launch()
        end.record()
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in marks)[repeats // 2]


def bytes_of(*tensors: torch.Tensor) -> int:
    """Memory of synthetic data, to hold against :data:`MOST_BYTES`."""
    return sum(x.numel() * x.element_size() for x in tensors)
