"""Import ComfyUI in this process, on the CPU, without its server."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"
RESULTS = Path(__file__).resolve().parent / "results"


def comfyui_dir() -> Path:
    """Folder of the ComfyUI tree: the environment variable COMFYUI_DIR, else `build/host/ComfyUI` below the repository root."""
    folder = Path(os.environ.get("COMFYUI_DIR") or ROOT / "build" / "host" / "ComfyUI")
    if not (folder / "comfy" / "sd.py").is_file():
        raise ValueError(f"No ComfyUI tree at {folder}: set COMFYUI_DIR to the folder that holds ComfyUI's main.py.")
    return folder


def load_host(flags: tuple[str, ...] = ("--cpu",)) -> None:
    """Make `comfy` importable. The first call in a process decides the command-line flags; later calls change nothing.

    ComfyUI parses `sys.argv` once, at the first import of `comfy.cli_args`, so the caller's own arguments are hidden for that moment. Its
    root goes to the front of `sys.path` and ours never does: our folder `nodes/` would shadow the host's `nodes.py`.
    """
    folder = str(comfyui_dir())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if "comfy.cli_args" in sys.modules:
        return
    kept, sys.argv = sys.argv, [sys.argv[0], *flags]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # parses the flags while they are in place
    finally:
        sys.argv = kept
