"""Which model, and which inputs: a hash that survives a restart, so that remembered scores are found again and not mixed up."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor

from ..attach import METHODS, RECORD, methods_of

FRESH = ("uuid", "patches_uuid")
"""Names of what is drawn anew at every start."""
DEEPEST = 5


def model_key(model: Any) -> str:
    """A model's class, weights (sampled), LoRAs, methods and what other nodes put on it."""
    sha = hashlib.sha256()
    diffusion = model.get_model_object("diffusion_model")
    backup = getattr(model, "backup", {})  # weights as they were before LoRAs were written into them
    digest(type(diffusion).__name__, sha.update)
    for name, weight in diffusion.state_dict().items():
        kept = backup.get(f"diffusion_model.{name}")
        sample((name, weight if kept is None else getattr(kept, "weight", weight)), sha.update, values=4)
    for key, parts in sorted(getattr(model, "patches", {}).items(), key=lambda item: str(item[0])):
        sample((str(key), parts), sha.update)
    patches = getattr(model, "object_patches", {})
    sample({path: patch for path, patch in patches.items() if not path.endswith(".forward")}, sha.update)  # those are how blocks are marked
    options = getattr(model, "model_options", {})
    inner = {name: value for name, value in options.get("transformer_options", {}).items() if name not in (METHODS, RECORD, "wrappers", "callbacks")}
    sample(options | {"transformer_options": inner, "wrappers": None, "callbacks": None}, sha.update)
    digest([repr(method) for method in methods_of(model)], sha.update)
    return sha.hexdigest()[:16]


def digest(thing: Any, update: Callable[[bytes], None]) -> None:
    """Feed a value into a hash: containers by their parts, tensors by their bytes, other objects by their class."""
    if isinstance(thing, Tensor):
        update(str(tuple(thing.shape)).encode())
        update(thing.detach().float().cpu().contiguous().numpy().tobytes())
    elif isinstance(thing, dict):
        for name in sorted(thing, key=str):
            if name not in FRESH:
                update(f"{name}=".encode())
                digest(thing[name], update)
    elif isinstance(thing, (list, tuple)):
        update(f"{len(thing)}:".encode())
        for part in thing:
            digest(part, update)
    elif thing is None or isinstance(thing, (str, int, float, bool)) or is_dataclass(thing):
        update(repr(thing).encode())
    else:
        update(type(thing).__qualname__.encode())


def sample(thing: Any, update: Callable[[bytes], None], depth: int = DEEPEST, values: int = 16) -> None:
    """As :func:`digest` for what is on a model: tensors by a few of their values, modules by their weights, functions by their names and
    what they close over, other objects by their attributes. Deeper than ``depth`` the class must do.
    """

    def within(part: Any) -> None:
        sample(part, update, depth - 1, values)

    if isinstance(thing, Tensor):
        _few(thing, update, values)
    elif thing is None or isinstance(thing, (str, int, float, bool)):
        digest(thing, update)
    elif depth == 0 or hasattr(thing, "model_options"):  # a whole patched model is too much, and holds what is drawn anew
        update(type(thing).__qualname__.encode())
    elif isinstance(thing, dict):
        for name in sorted((n for n in thing if n not in FRESH), key=str):
            update(f"{name}=".encode())
            within(thing[name])
    elif isinstance(thing, (list, tuple)):
        update(f"{len(thing)}:".encode())
        for part in thing:
            within(part)
    elif isinstance(thing, torch.nn.Module):
        update(type(thing).__qualname__.encode())
        within(dict(thing.state_dict()))
        within({name: value for name, value in vars(thing).items() if isinstance(value, (str, int, float)) and not name.startswith("_") and name != "training"})
    elif callable(thing) and hasattr(thing, "__qualname__"):
        update(f"{thing.__module__}.{thing.__qualname__}".encode())
        for cell in getattr(thing, "__closure__", None) or ():
            within(_content(cell))
    else:
        update(type(thing).__qualname__.encode())
        within({name: value for name, value in getattr(thing, "__dict__", {}).items() if not name.startswith("_")})


def _few(tensor: Tensor, update: Callable[[bytes], None], values: int) -> None:
    update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
    try:
        flat = tensor.detach().flatten()
        digest(flat[:: max(1, len(flat) // values)][:values].float(), update)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return  # packed weights of quantised models: their names and shapes must do


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
