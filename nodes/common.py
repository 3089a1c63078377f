"""What the nodes share: inputs with one wording, and reading them back.

Every method node has MODEL first in and out, a ``strength`` at which 0 is an exact no-op, a window in percent, and expert
inputs that are optional, marked advanced and appended at the end, so saved workflows keep their meaning.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.errors import LoomError
from ..core.schedule import BlockSelection, Window

BACKENDS = ["auto", "triton", "chunked", "sdpa"]


def category(group: str) -> str:
    """Menu path."""
    return f"attention loom/{group}"


def model_input() -> io.Model.Input:
    """The MODEL to change; the node works on a clone."""
    return io.Model.Input("model", tooltip="The model to change. Your original stays as it is; other model nodes may come before or after this one.")


def model_output() -> io.Model.Output:
    """The changed clone."""
    return io.Model.Output(display_name="model", tooltip="The same model with this method on it. Connect it to a sampler or to the next model node.")


def strength_input(what: str) -> io.Float.Input:
    """0 = off, bit-identical."""
    return io.Float.Input("strength", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=f"{what} 0 turns the node off: the result is then exactly that of the graph without it.")


def advanced(*inputs: Any) -> list[Any]:
    """Mark inputs as expert ones: hosts that can will fold them away."""
    for item in inputs:
        # no host of 2025 takes it in the constructor, all pass on what stands in extra_dict
        item.extra_dict = dict(getattr(item, "extra_dict", None) or {}) | {"advanced": True}
    return list(inputs)


def window_inputs() -> list[Any]:
    """start_percent and end_percent."""
    return advanced(
        io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.001, optional=True,
                       tooltip="From which part of the sampling on the method acts. 0 is the start (pure noise)."),
        io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.001, optional=True,
                       tooltip="Up to which part of the sampling the method acts. 1 is the end."),
    )  # fmt: skip


def place_inputs() -> list[Any]:
    """blocks and backend."""
    return advanced(
        io.String.Input("blocks", default="", optional=True,
                        tooltip="Blocks the method acts on; empty means all. 7-10 counts all blocks in order, -1 is the last, d5 a double and s12-20 single blocks; for UNets d2.2-9, m0, u0.4."),
        io.Combo.Input("backend", options=BACKENDS, default="auto", optional=True,
                       tooltip="What computes the changed attention. auto takes the fastest that can (the report says which and why); any other choice fails loudly if it cannot run."),
    )  # fmt: skip


def window(start_percent: float, end_percent: float) -> Window:
    """The two percent inputs as a window."""
    return Window(float(start_percent), float(end_percent))


def blocks(text: str) -> BlockSelection:
    """The blocks input."""
    return BlockSelection.parse(text)


def choice(name: str, value: str, options: list[str]) -> str:
    """One of ``options``: older hosts do not check a Combo's value. Raises LoomError naming what fits."""
    if value not in options:
        raise LoomError(f"{name} '{value}' was given; choose one of {', '.join(options)}.")
    return value
