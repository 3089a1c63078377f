"""Where a number comes from: the machine, the versions, and the very kernels that ran."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..kernels.triton.tuning import machine

ROOT = Path(__file__).resolve().parent.parent
RIVALS = ("flash-attn", "flashinfer-python", "spas-sage-attn", "natten", "comfy-kitchen")


def kernels_sha256(root: Path = ROOT) -> str:
    """Hash over the names and contents of ``kernels/**/*.py``: two equal hashes mean the same code."""
    digest = hashlib.sha256()
    folder = root / "kernels"
    for path in sorted(folder.rglob("*.py"), key=lambda p: p.relative_to(folder).as_posix()):
        text = path.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(text)}\0".encode())
        digest.update(text)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what takes part; packages that are not installed are left out."""
    where = machine()
    found = {"python": platform.python_version(), "torch": where["torch"], "triton": where["triton"], "pack": where["pack"]}
    found["cuda"] = str(torch.version.cuda or torch.version.hip or "none")
    if torch.backends.cudnn.is_available():
        found["cudnn"] = str(torch.backends.cudnn.version())
    for name in RIVALS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
