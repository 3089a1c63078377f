"""Nodes: Attention Inspector (reads during sampling) and Attention Pictures (draws afterwards)."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..core.attach import attach
from ..core.concepts import Located, locate
from ..core.errors import LoomError
from ..core.inspect.draw.canvas import COLOUR_MAPS
from ..core.inspect.draw.heatmap import NORMALISE, SORT
from ..core.inspect.gallery import PICTURES, Look, draw
from ..core.inspect.prune import MODES, install
from ..core.inspect.study import Collection
from ..core.inspect.summary import MEASURES, ORDERS, as_json, check, heads_text, text
from ..core.inspect.summary import top_heads as rank
from ..core.methods.inspector import BRANCHES, Inspector
from ..core.methods.prune import PRUNE
from ..core.methods.prune_part import PARTS, WHOLE
from . import common

Inspection = io.Custom("LOOM_INSPECTION")
Heads = io.Custom("LOOM_HEADS")


class LoomInspector(io.ComfyNode):
    """Attaches :class:`core.methods.inspector.Inspector`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Simple inputs first, expert inputs optional and last."""
        return io.Schema(
            node_id="LoomInspector",
            display_name="Attention Inspector",
            category=common.category("analysis"),
            description=(
                "Reads what the attention heads of your model do while your own workflow samples, at a few steps; the image stays bit for bit the same. "
                "Connect 'inspection' to Attention Pictures, which draws it after sampling. (after Li et al., arXiv 2303.13731)"
            ),
            inputs=[
                common.model_input(),
                io.String.Input("steps", default="0.15, 0.45, 0.75",
                                tooltip="Points of the sampling to read at, 0 the first step and 1 the last; at most 10. Three cost a few percent of the time on large models."),
                io.String.Input("blocks", default="", optional=True,
                                tooltip="Blocks to read; empty means all. 7-10 counts all blocks in order, -1 is the last, d5 a double and s12-20 single blocks; for UNets d2.2-9, m0, u0.4."),
                io.String.Input("words", default="", optional=True,
                                tooltip="Words of the prompt to draw as heat maps over the image, separated by commas: corgi, red scarf; with part words they are what is pruned. Needs clip, conditioning and prompt."),
                io.String.Input("prompt", default="", multiline=True, optional=True, tooltip="The prompt that 'conditioning' was made from, as text; only for words."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder the prompt was encoded with; only for words."),
                io.Conditioning.Input("conditioning", optional=True, tooltip="The encoded prompt; only for words."),
                io.String.Input("points", default="", optional=True,
                                tooltip="Places whose attention is drawn over the image: x,y; x,y. 0,0 is the top left corner, 1,1 the bottom right; in a video of its middle frame."),
                *common.advanced(
                io.Combo.Input("branch", options=list(BRANCHES), default="positive", optional=True,
                               tooltip="Which conditioning is read. negative needs a CFG above 1."),
                io.Int.Input("rows", default=128, min=16, max=1024, optional=True,
                             tooltip="Image tokens sampled per call, evenly spread. 128 is plenty for pictures, 256 for video; time and memory grow with it. (spec: M)"),
                io.Combo.Input("importance", options=list(MODES), default="off", optional=True,
                               tooltip="How much each head matters: what pruning it does to the prediction, at each chosen step. full: one evaluation of the model per head and step; screen: first whole layers, then the heads of the six that matter most; fast: an estimate for all heads from one evaluation with a gradient per step. The image stays the same."),
                io.Combo.Input("prune", options=list(PRUNE), default="mean", optional=True,
                               tooltip="What a pruned head does: mean: every token reads the mean of all; identity: each keeps to itself, as in Head Guidance at u 1; zero: the head is put out, which is farther from what the model knows."),
                io.Boolean.Input("sure", default=False, optional=True, tooltip="Allows importance to take more than 5000 evaluations of the model."),
                io.Boolean.Input("spare_memory", default=False, optional=True,
                                 tooltip="Only for importance fast: keep what its gradient needs in system memory instead of the GPU's; slower, for large models and pictures."),
                io.Boolean.Input("guidance", default=False, optional=True,
                                 tooltip="Also prunes each head for the negative prompt, and measures what that does to the direction of CFG (importance guidance): how much the head carries the prompt. Twice the evaluations; needs cfg above 1 and importance screen or full."),
                io.Combo.Input("part", options=list(PARTS), default=WHOLE, optional=True,
                               tooltip="Prunes only a part of each head. words: what the picture reads from the words in 'words', in every model with a prompt; the others need text and picture in one attention: what the picture reads from the text is image_text. Its probabilities are set to 0, whatever 'prune' says, and the rest stays as it is."),
                io.Boolean.Input("reuse_prefix", default=False, optional=True,
                                 tooltip="Computes the blocks before a pruned layer once and hands them on to the evaluations of all its heads: about half the time, the same numbers. Not for U-Nets (SD 1.5, SDXL, SVD) and importance fast."),
                ),
            ],
            outputs=[
                common.model_output(),
                Inspection.Output(display_name="inspection", tooltip="What was read; connect it to Attention Pictures."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, steps: str, **more: Any) -> io.NodeOutput:
        """validate -> configure -> attach."""
        mode = common.choice("importance", more.pop("importance", "off"), list(MODES))
        asked = {name: more.pop(name) for name in ("prune", "sure", "spare_memory", "guidance", "part", "reuse_prefix") if name in more}
        method = configure(steps, **more)
        patched = attach(model, method)
        return io.NodeOutput(patched if mode == "off" else install(patched, method, mode, **asked), method.into)


def configure(
    steps: str = "0.15, 0.45, 0.75",
    blocks: str = "",
    words: str = "",
    prompt: str = "",
    clip: Any = None,
    conditioning: Any = None,
    points: str = "",
    branch: str = "positive",
    rows: int = 128,
) -> Inspector:
    """The node's inputs as a method. Raises LoomError."""
    return Inspector(
        percents=tuple(_numbers(steps, "steps", "0.15, 0.45, 0.75")),
        branch=branch,  # type: ignore[arg-type]
        rows=rows,
        points=_points(points),
        words=_words(words, prompt, clip, conditioning),
        into=Collection(),
        blocks=common.blocks(blocks),
    )


def _numbers(text: str, name: str, example: str) -> list[float]:
    try:
        return [float(part) for part in re.split(r"[\s,;]+", text.strip()) if part]
    except ValueError:
        raise LoomError(f"{name} '{text}' cannot be read; write numbers, for instance {example}.") from None


def _points(text: str) -> tuple[tuple[float, float], ...]:
    pairs = [_numbers(part, "points", "0.5,0.5; 0.2,0.8") for part in re.split(r"[;\n]+", text) if part.strip()]
    for pair in pairs:
        if len(pair) != 2:
            raise LoomError(f"points '{text}' cannot be read; write x,y pairs separated by semicolons, for instance 0.5,0.5; 0.2,0.8.")
    return tuple((x, y) for x, y in pairs)


def _words(words: str, prompt: str, clip: Any, conditioning: Any) -> Located | None:
    phrases = [w.strip() for w in re.split(r"[,;\n]+", words) if w.strip()]
    if not phrases:
        return None
    missing = [name for name, given in (("clip", clip is not None), ("conditioning", bool(conditioning)), ("prompt", bool(prompt.strip()))) if not given]
    if missing:
        raise LoomError(f"words were given without {' and '.join(missing)}; connect the text encoder and the encoded prompt and write the same prompt here, or empty 'words'.")
    return locate(clip, prompt, phrases, conditioning[0][0].shape[1])


class LoomInspectorPictures(io.ComfyNode):
    """Draws what an Attention Inspector read in its last sampling run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """An output node, so it runs without anything behind it."""
        return io.Schema(
            node_id="LoomInspectorPictures",
            display_name="Attention Pictures",
            category=common.category("analysis"),
            description="Draws after sampling what the Attention Inspector read: heat map of all heads, distances, layers, patterns, groups, words. Hands on a list of heads for Head Guidance (SoftPAG), and all numbers as JSON.",
            inputs=[
                Inspection.Input("inspection", tooltip="From the Attention Inspector."),
                io.AnyType.Input("after", tooltip="The sampler's latent, or anything made from it: the pictures are drawn once this is there."),
                io.Combo.Input("picture", options=["all", *PICTURES], default="all", tooltip="Which picture to draw; all draws every one this run has numbers for."),
                io.Combo.Input("measure", options=list(MEASURES), default="distance",
                               tooltip="The number that colours the heat map and ranks heads. distance: how far a head looks; own place: how much at itself; text mass: at the prompt; entropy: how spread; importance: what pruning it changes (switch it on in the Inspector)."),
                io.Combo.Input("order", options=list(ORDERS), default="lowest", tooltip="Whether the list holds the heads with the highest or the lowest measure."),
                io.Int.Input("top_heads", default=24, min=1, max=256, tooltip="How many heads the list and the pattern picture hold."),
                io.Image.Input("image", optional=True, tooltip="The decoded image or video frames: heat maps of words and points are laid over it."),
                *common.advanced(
                io.Int.Input("groups", default=8, min=2, max=16, optional=True, tooltip="Groups of like heads (k-means clusters)."),
                io.Combo.Input("sort", options=list(SORT), default=SORT[0], optional=True, tooltip="Order of the heads within a line of the heat map."),
                io.Combo.Input("normalise", options=list(NORMALISE), default=NORMALISE[0], optional=True,
                               tooltip="What the colours of the heat map span: the whole picture, each layer by itself, or always 0 to 1 (to compare pictures)."),
                io.Combo.Input("colour_map", options=list(COLOUR_MAPS), default=COLOUR_MAPS[0], optional=True, tooltip="Colours of heat maps and patterns."),
                ),
            ],
            outputs=[
                io.Image.Output(display_name="pictures", is_output_list=True, tooltip="The pictures, one after the other."),
                Heads.Output(display_name="heads", tooltip="The heads of the list, for Head Guidance (SoftPAG)."),
                io.String.Output(display_name="report", tooltip="The main findings as text, with the list of heads."),
                io.String.Output(display_name="json", tooltip="All numbers, per layer, head and step."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        """An inspection changes without its socket changing: always look again."""
        return time.time()

    @classmethod
    def execute(
        cls, inspection: Collection, after: Any, picture: str, measure: str, order: str, top_heads: int, image: Any = None, groups: int = 8, sort: str = SORT[0], normalise: str = NORMALISE[0], colour_map: str = COLOUR_MAPS[0]
    ) -> io.NodeOutput:  # fmt: skip
        """Reads the last study, ranks, draws."""
        study = check(inspection.last)
        look = Look(
            common.choice("measure", measure, list(MEASURES)), common.choice("order", order, list(ORDERS)), top_heads, groups, common.choice("sort", sort, list(SORT)),
            common.choice("normalise", normalise, list(NORMALISE)), common.choice("colour_map", colour_map, list(COLOUR_MAPS)),
        )  # fmt: skip
        heads = rank(study, look.measure, look.count, look.order)
        frames = None if image is None else image.cpu().float().numpy()
        drawn = draw(study, common.choice("picture", picture, ["all", *PICTURES]), look, heads, frames)
        report = text(study, measure, heads)
        pictures = [torch.from_numpy(np.array(d)).float()[None] / 255 for d in drawn]
        shown = [saved for p in pictures for saved in ui.PreviewImage(p, cls=cls).as_dict()["images"]]
        return io.NodeOutput(pictures, heads_text(heads), report, as_json(study, measure, order, heads), ui={"images": shown, "text": (report,)})
