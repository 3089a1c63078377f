"""The host inside the test process.

``import_host()`` before the first ``import comfy``. Tests that use it carry ``pytest.mark.host``. The host tree is
COMFYUI_DIR or the one ``make setup`` made.
"""

import os
import sys
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def host_dir() -> Path:
    """Root of the ComfyUI tree."""
    return Path(os.environ.get("COMFYUI_DIR") or ROOT / "build" / "host" / "ComfyUI").resolve()


@lru_cache(maxsize=1)
def import_host() -> Path:
    """Make ``import comfy`` work and answer with the host's folder. Skips the test where there is no host.

    On the CPU unless LOOM_GPU=1. The pack's own root must not be on ``sys.path``: its folder ``nodes`` would hide the
    host's ``nodes.py``.
    """
    path = host_dir()
    if not (path / "comfy" / "sd.py").is_file():
        pytest.skip(f"no ComfyUI in {path}; run `make setup` or set COMFYUI_DIR")
    sys.path.insert(0, str(path))
    arguments, sys.argv = sys.argv, ["x"] if os.environ.get("LOOM_GPU") == "1" else ["x", "--cpu"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.sample
        import comfy.sd
        import comfy.supported_models
    finally:
        sys.argv = arguments
    return path
