"""Node: Sparse Attention."""

from __future__ import annotations

import re
from typing import Any

from comfy_api.latest import io

from ..core.attach import attach
from ..core.errors import LoomError
from ..core.families import family_of
from ..core.methods.sparse import SparseAttention
from ..core.schedule import BlockSelection
from ..kernels.patterns.fit import NAMES, Choice
from . import common

TAILS = ["off", "row", "centroid"]
BLOCK_SIZES = ["auto", "128", "64", "32", "16", "8", "4"]


class LoomSparseAttention(io.ComfyNode):
    """Attaches :class:`core.methods.sparse.SparseAttention`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Simple inputs first, expert inputs optional and last."""
        return io.Schema(
            node_id="LoomSparseAttention",
            display_name="Sparse Attention",
            category=common.category("speed"),
            description=(
                "Computes only the part of self-attention that matters, in blocks, after a pattern of your choice: for long videos and large pictures, "
                "where attention takes most of the time. Below about 8,000 tokens (a 1024 px picture has 4,096) there is nothing to gain and it stays dense. "
                "The same seed gives a similar, not the same picture. What Ran shows the share that was computed."
            ),
            inputs=[
                common.model_input(),
                io.Combo.Input("pattern", options=NAMES, default="radial",
                               tooltip="Which pairs are kept. radial: near frames more than far ones (video). draft: looks at a small copy of the attention in every step. adaspa, sparsed: measure the model's own attention once or twice, then "
                                       "reuse. rettention: repairs a fixed pattern with what dense steps left over. sla_topk: best blocks per row. clear: a circle around each token. sliding_tile: a box around each tile."),
                io.Float.Input("density", default=0.3, min=0.01, max=1.0, step=0.01,
                               tooltip="Share of the attention that is computed. Lower is faster and further from the dense result; radial and clear have a floor that depends on the size (the report says so). 1 = everything: the node is off."),
                io.Float.Input("start_percent", default=0.2, min=0.0, max=1.0, step=0.001,
                               tooltip="The sampling before this point stays dense: the first steps decide the composition. 0.2 to 0.3 suits most models, 1 of 4 steps for distilled ones."),
                io.String.Input("dense_blocks", default="0", optional=True,
                                tooltip="Blocks of the model that stay dense. 0 is the first, '0-1, -1' the first two and the last, d0-1 double blocks; empty: none."),
                *common.advanced(
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.001, optional=True,
                               tooltip="The sampling after this point is dense again. 1 is the end."),
                io.Int.Input("min_tokens", default=8192, min=0, max=1 << 20, optional=True,
                             tooltip="Attention over fewer tokens stays dense."),
                io.Combo.Input("tail", options=TAILS, default="off", optional=True,
                               tooltip="What becomes of blocks that are not computed. off: dropped. row: each enters as one averaged key, per query. centroid: the same per block of queries, cheaper and coarser. Gives way where another node sets rules for single tokens."),
                io.Combo.Input("block_size", options=BLOCK_SIZES, default="auto", optional=True,
                               tooltip="Tokens per block. auto takes 128, or 64 where that wastes less. Smaller ones are for tiny models: no GPU kernel runs them fast."),
                io.Float.Input("decay", default=0.0, min=0.0, max=8.0, step=0.05, optional=True,
                               tooltip="radial: width of the band between frames (paper's decay: 1 quality, 0.5 balanced, 0.2 fast). 0 takes it from density."),
                io.Float.Input("radius", default=0.0, min=0.0, max=512.0, step=0.5, optional=True,
                               tooltip="clear: radius of the circle in tokens (8, 16 or 32 for the published FLUX weights). 0 takes it from density."),
                io.String.Input("window", default="", optional=True,
                                tooltip="sliding_tile: window in tokens, frames x height x width, for instance 18x24x24. Empty takes it from density."),
                io.Boolean.Input("measure", default=True, optional=True,
                                 tooltip="On a GPU: time sparse against dense once per run, and stay dense where sparse is not faster. Off: always sparse."),
                ),
                *common.place_inputs(),
            ],
            outputs=[common.model_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, pattern: str, density: float, start_percent: float, **expert: Any) -> io.NodeOutput:
        """validate -> configure -> attach."""
        return io.NodeOutput(attach(model, configure(model, pattern, density, start_percent, **expert)))


def configure(
    model: Any,
    pattern: str = "radial",
    density: float = 0.3,
    start_percent: float = 0.2,
    dense_blocks: str = "0",
    end_percent: float = 1.0,
    min_tokens: int = 8192,
    tail: str = "off",
    block_size: str = "auto",
    decay: float = 0.0,
    radius: float = 0.0,
    window: str = "",
    measure: bool = True,
    blocks: str = "",
    backend: str = "auto",
) -> SparseAttention:
    """The node's inputs as a method. Raises LoomError."""
    common.choice("pattern", pattern, NAMES)
    if not 0.0 < density <= 1.0:
        raise LoomError(f"density {density:g} was given; it lies above 0 and at most at 1 (1 = everything, the node is then off).")
    size = common.choice("block_size", block_size, BLOCK_SIZES)
    choice = Choice(
        name=pattern,
        density=density,
        block=None if size == "auto" else int(size),
        tail=common.choice("tail", tail, TAILS),  # type: ignore[arg-type]
        decay=decay or None,
        radius=radius or None,
        window=_window(window),
    )
    return SparseAttention(
        choice,
        dense_blocks=_dense_blocks(model, dense_blocks),
        min_tokens=min_tokens,
        measure=measure,
        window=common.window(start_percent, end_percent),
        blocks=common.blocks(blocks),
        backend=common.choice("backend", backend, common.BACKENDS),
    )


def _dense_blocks(model: Any, text: str) -> BlockSelection | None:
    """The selection, or None. Raises LoomError for a part that names no block of this model."""
    if not text.strip():
        return None
    chosen = BlockSelection.parse(text)
    diffusion = model.get_model_object("diffusion_model")
    known = family_of(diffusion).blocks(diffusion)
    if known and (missing := chosen.unmatched(known)):
        raise LoomError(f"dense_blocks '{missing[0]}' names no block of this model, which has {len(known)} (0 to {len(known) - 1}, -1 is the last).")
    return chosen


def _window(text: str) -> tuple[int, int, int] | None:
    if not text.strip():
        return None
    found = re.fullmatch(r"\s*(\d+)\s*[x,\s]\s*(\d+)\s*[x,\s]\s*(\d+)\s*", text.lower())
    if found is None or any(int(n) < 1 for n in found.groups()):
        raise LoomError(f"window '{text}' was given; write frames x height x width in tokens, for instance 18x24x24, or leave it empty.")
    return int(found[1]), int(found[2]), int(found[3])
