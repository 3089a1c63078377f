"""Frames of a clip as batch rows: for guidance that is computed per sample, where every frame has a noise level of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

LEVELS = "loom_frame_levels"
"""Key in transformer_options: fp32 [f], the sigma of every frame of this call. Not there where a clip has one level."""
FOLDED = "loom_frames_folded"
"""Key in transformer_options: a guidance function runs on frames as rows, so that the model cannot be called from within."""


class ModelCalled(Exception):
    """A guidance function asked the model for something, which needs the window whole."""


def levels_of(model_options: dict[str, Any]) -> Tensor | None:
    """fp32 [f] of the host's model options, None where a clip has one level."""
    return model_options.get("transformer_options", {}).get(LEVELS)  # type: ignore[no-any-return]


def rows(x: Any) -> Any:
    """A latent [B, C, f, H, W] as [B f, C, 1, H, W], also within a list; everything else as it is."""
    if isinstance(x, list):
        return [rows(each) for each in x]
    return x.movedim(2, 1).flatten(0, 1)[:, :, None] if isinstance(x, Tensor) and x.ndim == 5 else x


def clip(x: Any, batch: int) -> Any:
    """What :func:`rows` made of ``batch`` clips, back."""
    if isinstance(x, list):
        return [clip(each, batch) for each in x]
    return x[:, :, 0].unflatten(0, (batch, -1)).movedim(1, 2) if isinstance(x, Tensor) and x.ndim == 5 else x


def frame_by_frame(function: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """A guidance function of the host or another node (before, for or after CFG) that sees every frame as a batch row with its own sigma.

    One that calls the model itself is given the window as it is, and does what it does over all frames.
    """
    state = {"whole": False}

    def guided(args: dict[str, Any]) -> Any:
        sigma = levels_of(args["model_options"])
        if sigma is None or state["whole"] or getattr(function, "whole_window", False):
            return function(args)
        batch = args["input"].shape[0]
        each = sigma.to(args["input"]).repeat(batch)
        options = args["model_options"]
        folded = dict(options) | {"transformer_options": dict(options["transformer_options"]) | {FOLDED: True}}
        try:
            made = function({name: rows(value) for name, value in args.items()} | {"timestep": each, "sigma": each, "model_options": folded})
        except ModelCalled:
            state["whole"] = True
            return function(args)
        return clip(made, batch)

    return guided
