"""What differs between the host the tests were written against (ComfyUI 0.3.75) and later ones (tried: 0.33), read from the host's own source."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

CLASSES = {"WanAnimate2Model", "BooguTransformer2DModel"}
"""Diffusion models that ComfyUI 0.3.75 lacks, of families that it has."""


def newer() -> bool:
    """Whether this host is (about) the newest tried, in which every later class must be."""
    return importlib.util.find_spec("comfy.ldm.minimax") is not None


def wan_class(name: str) -> type | None:
    """A class of the host's Wan models, None where it has no such."""
    files = ("model", "model_animate", "model_animate2", "model_wandancer")
    found = (getattr(importlib.import_module(f"comfy.ldm.wan.{file}"), name, None) for file in files if importlib.util.find_spec(f"comfy.ldm.wan.{file}"))
    return next((cls for cls in found if cls is not None), None)


def hands_options_on(model: type) -> bool:
    """Whether every block a Wan class runs is given the transformer options."""
    source = inspect.getsource(model.forward_orig)  # type: ignore[attr-defined]
    return source.count("= block(") == source.count("transformer_options=transformer_options)") + source.count('transformer_options=args["transformer_options"])')


def hunyuan_text_first() -> bool:
    """Whether the single blocks of HunyuanVideo run over text, then picture."""
    from comfy.ldm.hunyuan_video.model import HunyuanVideo

    source = inspect.getsource(HunyuanVideo.forward_orig)
    first, last = (f"img = torch.cat(({order}), 1)" in source for order in ("txt, img", "img, txt"))
    assert first != last
    return first


def wan_takes_latents_in_context() -> bool:
    """Whether Wan reads further latents beside the video, each with a rotary table of its own."""
    from comfy.ldm.wan.model import WanModel

    return "context_latents" in inspect.getsource(WanModel.forward_orig)


def ltx_guides(tokens: int) -> dict[str, Any]:
    """Conditioning of guide frames: positions of ``tokens`` tokens; later hosts want where each begins and ends, and a noise mask."""
    where = torch.arange(3.0 * tokens).view(1, 3, tokens)
    if not _ltx_is_later():
        return {"keyframe_idxs": where}
    return {"keyframe_idxs": torch.stack([where, where + 1], -1), "concat_mask": torch.ones(1, 1, 4, 2, 3)}


def ltx_table(diffusion: Any) -> tuple[Any, str]:
    """(object, name) of the function that makes LTX's rotary table from positions [B, 3, N (, 2)]."""
    import comfy.ldm.lightricks.model as ltx

    return (diffusion, "_precompute_freqs_cis") if _ltx_is_later() else (ltx, "precompute_freqs_cis")


def ltx_rotations(table: Any) -> Tensor:
    """Such a table as [N, H, D/2 of a head, 2, 2] or, where the heads are not told apart, [N, 1, width / 2, 2, 2]."""
    _two_parts(table)
    return table[0][0] if isinstance(table, tuple) else table[0, 0][:, None]  # type: ignore[no-any-return]


def on_ltx_table(table: Any, change: Callable[[Tensor, int], Tensor]) -> Any:
    """A table changed: ``change(rotations, axis of the tokens)``."""
    _two_parts(table)
    return (change(table[0], 1), *table[1:]) if isinstance(table, tuple) else change(table, 2)


def _two_parts(table: Any) -> None:
    """Hosts between (0.20) keep cosines and sines apart, in a form for each kind of pairs; that is not read here."""
    if isinstance(table, tuple) and len(table) != 2:
        pytest.skip("this host keeps LTX's rotary table in a form that the tests do not read")


def _ltx_is_later() -> bool:
    import comfy.ldm.lightricks.model as ltx

    return hasattr(ltx, "LTXBaseModel")
