"""Stable Diffusion 1.5, 2 and XL, and Stable Video Diffusion: U-Nets with transformer layers.

Per layer: self-attention over the feature map, then cross-attention to the text. The host publishes the block; which of
the two attentions runs is told by markers among the host's own ``attn1_patch`` and ``attn2_patch``, which hand back what
they are given. Video U-Nets follow each spatial layer by one over time, where every pixel is a batch row of its own.

When prompts of unequal length share a batch, the host repeats both up to a common length; the text span holds the repeats.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..call import Block, Project, Span
from .base import MARK, Family, Laid, Mark, Place, elsewhere, inside, layout, length, running

Layers = dict[tuple[str, int, int], tuple[Block, bool]]
"""(block kind, block index, layer within) -> (block, whether its first attention reads the text instead of the picture)."""


class UNet(Family):
    """Adapter of ``comfy.ldm.modules.diffusionmodules.openaimodel``."""

    name = "SD 1.5 / SDXL"
    whole_blocks = False
    classes = ("UNetModel",)

    def blocks(self, model: Any) -> list[Block]:
        return [block for block, _ in layers(model).values()]

    def heads(self, model: Any, block: Block) -> int:
        stage = next(stage for kind, index, stage in stages(model) if (kind, index) == (block.kind, block.index))
        part = next(part for part in stage if hasattr(part, "transformer_blocks"))
        over_time = getattr(part, "time_stack", None)
        turn, layer = (0, block.sub) if over_time is None else (block.sub % 2, block.sub // 2)
        found = part.transformer_blocks if over_time is None or turn == 0 else over_time
        return int(found[layer].attn1.heads)

    def geometry(self, model: Any, x: Tensor, context: Tensor | None, extra: dict[str, Any]) -> Laid:
        # video U-Nets take the frames as batch rows and hear their number from the conditioning
        frames = int(extra.get("num_video_frames") or 1) if is_video(model) else 1
        text = length(context)
        return Laid((frames, x.shape[2], x.shape[3]), text, 0, frames == 1, prompt=layout(Span("text", text)))

    def mark(self, options: dict[str, Any], model: Any) -> None:
        mark = options[MARK] = Mark(Block("", -1))
        known = layers(model)
        turns = 2 if is_video(model) else 1
        state: dict[str, Any] = {"at": None, "turn": 0}

        def first(n: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
            at = (*extra["block"], extra["block_index"])
            # the layer over time has the same number as the spatial one before it
            state["turn"] = (state["turn"] + 1) % turns if at == state["at"] else 0
            state["at"] = at
            found = known.get((at[0], at[1], turns * at[2] + state["turn"]))
            mark.block, reads_text = found if found is not None else (Block(at[0], at[1], sub=at[2]), False)
            mark.hint = "cross" if reads_text else "self"
            mark.calls = 0
            return n, context, value

        def second(n: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
            mark.hint = "cross"
            mark.calls = 0
            return n, context, value

        patches = dict(options.get("patches", {}))
        patches["attn1_patch"] = [*patches.get("attn1_patch", ()), first]
        patches["attn2_patch"] = [*patches.get("attn2_patch", ()), second]
        options["patches"] = patches

    def place(self, options: dict[str, Any], geometry: Laid, nq: int, nk: int) -> Place:
        mark = inside(options)
        if not mark.hint or mark.calls:
            return elsewhere(mark, nq, nk)  # the marker is set again before each of the host's own calls
        _, _, y, x = options["activations_shape"]
        over_time = not geometry.still and mark.block.sub % 2 == 1
        grid = (geometry.grid[0], 1, 1) if over_time else (1, y, x)
        own = layout(Span("video" if over_time else "image", grid[0] * grid[1] * grid[2], grid))
        return Place(mark.block, mark.hint, own, own if mark.hint == "self" else geometry.prompt)  # type: ignore[arg-type]

    def text_width(self, model: Any) -> int | None:
        found = None if is_video(model) else next((t.attn2 for *_, stage in stages(model) for part in stage for t in getattr(part, "transformer_blocks", ())), None)
        return None if found is None else found.to_k.in_features

    def text_reader(self, model: Any, block: Block, turn: int) -> Project | None:
        if is_video(model):
            return None  # reads a picture
        stage = next((s for kind, index, s in stages(model) if (kind, index) == (block.kind, block.index)), ())
        spatial = next((part for part in stage if hasattr(part, "transformer_blocks")), None)
        if spatial is None:
            return None
        layer = spatial.transformer_blocks[block.sub]
        attention = layer.attn1 if layer.disable_self_attn and turn == 0 else layer.attn2
        return lambda text: (attention.to_k(text), attention.to_v(text))

    def merged(self, options: dict[str, Any], nq: int, nk: int) -> Place | None:
        mark = running(options)
        if mark is None or mark.hint != "self" or mark.calls:
            return None
        return Place(mark.block, "self", layout(Span("other", nq)), layout(Span("other", nk)))


def is_video(model: Any) -> bool:
    """Whether the U-Net has layers over time."""
    return any(hasattr(layer, "time_stack") and hasattr(layer, "transformer_blocks") for _, _, stage in stages(model) for layer in stage)


def stages(model: Any) -> list[tuple[str, int, Any]]:
    """(kind, index, modules) of all blocks in order of execution."""
    middle = [] if model.middle_block is None else [("middle", 0, model.middle_block)]
    return [("input", i, m) for i, m in enumerate(model.input_blocks)] + middle + [("output", i, m) for i, m in enumerate(model.output_blocks)]


def layers(model: Any) -> Layers:
    """All transformer layers in order of execution; in video U-Nets odd layers of a block run over time."""
    found: list[tuple[str, int, int, int, bool]] = []
    level = 0
    for kind, index, stage in stages(model):
        for part in stage:
            level += {"Downsample": 1, "Upsample": -1}.get(type(part).__name__, 0)
            over_time = getattr(part, "time_stack", None)
            for j, spatial in enumerate(getattr(part, "transformer_blocks", ())):
                run = [spatial] if over_time is None else [spatial, over_time[j]]
                found += [(kind, index, len(run) * j + n, level, bool(layer.disable_self_attn)) for n, layer in enumerate(run)]
    total = len(found)
    return {(kind, index, sub): (Block(kind, index, n, total, sub, level), flag) for n, (kind, index, sub, level, flag) in enumerate(found)}


def channels(model: Any) -> list[int]:
    """Channels of all transformer layers in order of execution."""
    return [layer.attn1.to_q.in_features for _, _, stage in stages(model) for part in stage for layer in getattr(part, "transformer_blocks", ())]
