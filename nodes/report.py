"""Node: What Ran."""

from __future__ import annotations

import time
from typing import Any

import numpy
import torch
from comfy_api.latest import io, ui

from ..core.attach import methods_of, record_of
from ..core.errors import LoomError
from ..core.report_picture import draw
from . import common


class LoomReport(io.ComfyNode):
    """Shows what the Loom nodes on a model did in its last sampling run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """An output node, so it runs without anything behind it."""
        return io.Schema(
            node_id="LoomReport",
            display_name="What Ran",
            category=common.category("analysis"),
            description=(
                "After sampling: how many attention calls each Loom node changed, in which blocks and at which noise levels, what was left "
                "stock and why, which backend computed it, time and memory. Connect the sampler's result to 'after', so that this node waits for it."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that went into the sampler, with the Loom nodes on it."),
                io.AnyType.Input("after", tooltip="The sampler's latent, or anything made from it: the report is drawn once this is there."),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="The report as text."),
                io.Image.Output(display_name="picture", tooltip="Blocks by noise levels: which method changed what."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        """A record changes without its model changing: always look again."""
        return time.time()

    @classmethod
    def execute(cls, model: Any, after: Any) -> io.NodeOutput:
        """Reads the record of the model's last run."""
        record = record_of(model)
        if record is None or not methods_of(model):
            raise LoomError("this model carries no Attention Loom method; connect the model that went into the sampler, after the last Loom node.")
        if record.last is None:
            raise LoomError("nothing was sampled with this model yet; connect the sampler's result to 'after', and this model to that sampler.")
        text = record.last.text()
        picture = torch.from_numpy(numpy.asarray(draw(record.last))).float()[None] / 255
        shown = ui.PreviewImage(picture, cls=cls).as_dict() | {"text": (text,)}
        return io.NodeOutput(text, picture, ui=shown)
