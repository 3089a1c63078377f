"""A training on disk, to go on from after an interrupt, and the files it leaves for others: one per new word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import LoomError

FORMAT = "attention loom attencraft 1"
FILE = "training.safetensors"


def save(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a checkpoint; an earlier one stays until the new one is whole."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{FILE}.part"
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, part, metadata={"format": FORMAT, "facts": json.dumps(facts)})
    part.replace(folder / FILE)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and facts of the checkpoint there, None without one. Raises LoomError for a file that is none of ours."""
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            if told.get("format") != FORMAT:
                raise LoomError(f"{path.name} in {folder.name} is no training of this version; choose another name, or switch resume off.")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(told["facts"])  # noqa: SIM118  it is no dict
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise LoomError(f"{path.name} in {folder.name} cannot be read ({error}); choose another name, or switch resume off.") from error


def embedding(folder: Path, name: str, tensors: dict[str, Tensor], training: str) -> Path:
    """Write one new word into the host's folder of embeddings. Raises LoomError rather than replace a file of another origin."""
    from safetensors.torch import save_file

    path = folder / f"{name}.safetensors"
    if taken(folder, name, training):
        raise LoomError(f"there is an embedding '{name}' already, made by something else; choose another name for the training or the concept.")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": FORMAT, "training": training})
    return path


def taken(folder: Path, name: str, training: str) -> bool:
    """Whether a file of this name is there that this training did not write."""
    from safetensors import SafetensorError, safe_open

    if any((folder / f"{name}{end}").exists() for end in ("", ".pt", ".bin")):
        return True
    path = folder / f"{name}.safetensors"
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
    except (OSError, SafetensorError):
        return True
    return told.get("format") != FORMAT or told.get("training") != training
