"""A queue on disk: one safetensors file from which an endless clip goes on, bit for bit."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import LoomError
from .queue import Layout

FORMAT = "attention loom queue 1"


@dataclass
class State:
    """Where an endless clip stands between two iterations.

    queue fp32 [B, C, slots, H, W]; iteration: how many have been done; memory: what guidance remembers, by name.
    """

    queue: Tensor
    iteration: int = 0
    memory: dict[str, Tensor] = field(default_factory=dict)


def write(path: Path, state: State, layout: Layout, levels: Tensor, model: str) -> None:
    """Write a state. The file is replaced in one step, so a machine that goes down leaves the old one. model: class it belongs to."""
    from safetensors.torch import save_file

    tensors = {"queue": state.queue, "levels": levels} | {f"memory.{name}": value for name, value in state.memory.items()}
    head = {"format": FORMAT, "model": model, "frames": layout.frames, "partitions": layout.partitions, "lookahead": layout.lookahead, "iteration": state.iteration}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}, str(part), metadata={"loom": json.dumps(head)})
    os.replace(part, path)


def read(path: Path, layout: Layout, levels: Tensor, model: str, example: Tensor) -> State:
    """Read a state for this run. example [B, C, T, H, W]: a latent of it.

    Raises LoomError for a file that is not there, is no queue, or was made with other settings, naming them.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise LoomError(f"there is no queue file {path.name}; give the name under which a run saved its queue, or leave resume_from empty to begin anew.")
    try:
        with safe_open(str(path), framework="pt") as file:
            head = json.loads((file.metadata() or {}).get("loom", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a handle, not a dict)
    except Exception as error:
        raise LoomError(f"{path.name} cannot be read as a queue file ({str(error).splitlines()[0]}); give one that this sampler saved.") from error
    if head.get("format") != FORMAT:
        raise LoomError(f"{path.name} is no queue file of this version; give one that this sampler saved.")
    _agree(path.name, head, layout, model)
    if not torch.equal(tensors["levels"], levels):
        raise LoomError(f"{path.name} was made with another noise schedule; use the scheduler, shift and steps of that run.")
    queue = tensors["queue"]
    if (queue.shape[:2], queue.shape[3:]) != (example.shape[:2], example.shape[3:]):
        raise LoomError(f"{path.name} holds latents of {_size(queue)} and the latent given has {_size(example)}; use the size of that run.")
    memory = {name.removeprefix("memory."): value.to(example.device) for name, value in tensors.items() if name.startswith("memory.")}
    return State(queue.to(example), int(head["iteration"]), memory)


def _agree(name: str, head: dict[str, object], layout: Layout, model: str) -> None:
    for label, value in (("model", model), ("frames", layout.frames), ("partitions", layout.partitions), ("lookahead", layout.lookahead)):
        if head[label] != value:
            shown = "window" if label == "frames" else label
            raise LoomError(f"{name} was made with {shown} {head[label]} and this run has {value}; set {shown} to {head[label]} to go on with it.")


def _size(x: Tensor) -> str:
    b, c, _, h, w = x.shape
    return f"{w} x {h} with {c} channels, batch {b}"
