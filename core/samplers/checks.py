"""What an endless clip cannot be made with: checked before the first step, one sentence each."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import LoomError
from .queue import Layout

OWNER = "Endless Video (Ouroboros)"


def check_options(model_options: dict[str, Any], denoise_mask: Any) -> None:
    """Raises LoomError for other nodes whose work assumes one noise level per call or one clip of fixed length."""
    options = model_options.get("transformer_options", {})
    if denoise_mask is not None:
        raise LoomError(f"{OWNER} cannot keep parts of a latent; take the noise mask off it.")
    if model_options.get("context_handler") is not None:
        raise LoomError(f"{OWNER} moves a window over the clip itself; take the context windows node out.")
    caches = [key for key in _keys(options) if "cache" in key.lower()]
    if caches:
        raise LoomError(f"{OWNER} cannot run with a step cache ({caches[0]}): its calls hold many noise levels, so none repeats the one before. Take the cache node out.")


def _keys(options: dict[str, Any]) -> list[str]:
    wrappers = [key for kind in options.get("wrappers", {}).values() for key in kind]
    return [str(key) for key in (*options, *wrappers) if key is not None]


def check_methods(methods: tuple[Any, ...]) -> None:
    """Raises LoomError for methods of this pack that follow one latent through one schedule."""
    from ..methods.guided import LatentMethod
    from ..methods.inspector import Inspector

    for method in methods:
        if isinstance(method, LatentMethod):
            raise LoomError(f"{method.owner} moves a latent at every step of its schedule, and a queue has none; take it off the model, or sample a clip of fixed length.")
        if isinstance(method, Inspector):
            raise LoomError(f"{method.owner} reads chosen steps, and every call of a queue holds many; inspect a clip of fixed length.")


FRAMED = ("reference_latent", "keyframe_idxs")
"""Conditions of single frames that are no tensors [B, C, T, ...]."""


def check_conds(conds: dict[str, list[dict[str, Any]]]) -> None:
    """Raises LoomError for conditionings that belong to single frames: they would have to move with the queue."""
    for name, entries in conds.items():
        for entry in entries:
            if entry.get("control") is not None:
                raise LoomError(f"the {name} prompt carries a ControlNet, whose hints belong to single frames; take it off: an endless clip cannot follow them yet.")
            for key, cond in entry.get("model_conds", {}).items():
                if key in FRAMED or (isinstance(value := getattr(cond, "cond", None), Tensor) and value.ndim >= 5):
                    raise LoomError(
                        f"the {name} prompt carries '{key}', an image or video that belongs to fixed frames; an endless clip cannot follow it. "
                        "Use a text-to-video model and prompts without start images, references or control videos."
                    )


def check_clip(latent: Tensor, rows: bool, layout: Layout, given: bool) -> None:
    """Raises LoomError for a latent that is no clip or too short. latent [B, C, T, H, W]; given: whether it holds a clip."""
    frames = latent.shape[2]
    if rows and frames != layout.frames:
        raise LoomError(f"this model takes frames as a batch of fixed length: the latent has {frames} frames and the window {layout.frames}; make them equal.")
    if frames < layout.frames:
        what = "start clip" if given else "latent"
        raise LoomError(f"the {what} has {frames} latent frames and the window {layout.frames}; give a longer one, or set window to {frames}.")


def check_trained(patcher: Any, frames: int, methods: tuple[Any, ...]) -> None:
    """Raises LoomError for a window beyond what the model was trained for, where that is known and nothing helps it."""
    from ..methods.riflex import RIFLEx
    from ..methods.ultravico import UltraViCo
    from ..trained import frame_stride, known

    table = known(patcher)
    if table is None or any(isinstance(m, (UltraViCo, RIFLEx)) for m in methods):
        return
    native = max((pixels - 1) // frame_stride(patcher) + 1 for _, _, pixels in table.sizes)
    if frames > native:
        raise LoomError(f"a window of {frames} latent frames was given and this model was trained on {native}; set window to {native} or less, or switch longer_window on.")
