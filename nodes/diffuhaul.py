"""Node: Drag Object (DiffUHaul)."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..core import drag, drag_grounding, drag_request
from ..core.anchoring import SCHEDULES, Anchoring
from ..core.attach import attach
from ..core.blob import SHAPES
from ..core.buckets import Buckets
from ..core.families import family_of
from ..core.families.unet import channels
from ..core.methods.diffuhaul import SCOPES, DiffUHaul
from ..core.methods.sourced import Source
from . import common
from .track_editor import LOOM_TRACK

GROUNDINGS = ["auto", "gligen", "regional text", "off"]
SOURCES = ["picture", "generated beside"]
VACATES = ["auto", "on", "off"]


class LoomDiffUHaul(io.ComfyNode):
    """Attaches :class:`core.methods.diffuhaul.DiffUHaul`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Simple inputs first, expert inputs optional and last."""
        return io.Schema(
            node_id="LoomDiffUHaul",
            display_name="Drag Object (DiffUHaul)",
            category=common.category("image"),
            description=(
                "Moves one object of a picture to another place and fills where it was, without training: the model sees the picture beside the result at every step, and the result reads its "
                "attention. Connect all three outputs to the sampler. For SD 1.5 (best with GLIGEN), SDXL, SD3, FLUX.1 and Qwen-Image. (DiffUHaul, arXiv 2406.01594)"
            ),
            inputs=[
                common.model_input(),
                io.Conditioning.Input("positive", tooltip="The prompt of the whole picture, one text encoder. With GLIGEN: with a GLIGEN Textbox Apply for each object, where it is now."),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode. With source 'generated beside': the empty latent it is generated from."),
                io.Mask.Input("mask", optional=True, tooltip="Where the object is, painted on the picture. It may be left out if a track is connected, whose first box then is the object."),
                io.Int.Input("dx", default=0, min=-16384, max=16384, tooltip="How far to the right, in pixels of the mask; negative is to the left."),
                io.Int.Input("dy", default=0, min=-16384, max=16384, tooltip="How far down, in pixels of the mask; negative is up."),
                io.Float.Input("scale", default=1.0, min=drag.LEAST_SCALE, max=drag.MOST_SCALE, step=0.01, tooltip="Size at the new place; 1 keeps it."),
                common.strength_input("How strongly the result is held to the picture's features, anchoring and copying alike."),
                io.String.Input("caption", default="", tooltip="What the object is, for instance: a red vase. Read at the object's place. With GLIGEN or grounding off it may be empty."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder of this model, which reads the captions. Not needed with GLIGEN or grounding off."),
                LOOM_TRACK.Input("track", optional=True,
                                 tooltip="From Draw Path: the first box is where the object is, the last where it goes. Takes the place of dx, dy and scale; without a mask also of the mask."),
                io.Combo.Input("source", options=SOURCES, default="picture", optional=True,
                               tooltip="picture: the latent is a picture; everything outside mask and drag stays as it is. generated beside: the picture is drawn anew in one batch with the result; give the seed, prompt and sampler it was made with."),
                *common.advanced(
                io.String.Input("others", multiline=True, default="", optional=True,
                                tooltip="Other objects that shall keep their place: caption @ place, one per line. A place is x, y or x, y, radius or left, top, right, bottom (0 to 1), a word, or mask."),
                io.Mask.Input("other_masks", optional=True, tooltip="One mask for each line of others that says '@ mask', stacked in their order."),
                io.Combo.Input("grounding", options=GROUNDINGS, default="auto", optional=True,
                               tooltip="What keeps objects to their places. gligen: the prompt's boxes, moved, with its exchange cut outside them. regional text: captions read in their places. auto takes gligen if the prompt has it."),
                io.String.Input("target", default="", optional=True, tooltip="Where the object goes, in place of dx and dy: x, y of its centre or left, top, right, bottom of its box, from 0 to 1."),
                io.Combo.Input("anchor_schedule", options=list(SCHEDULES), default="layout first", optional=True,
                               tooltip="How the weight of the picture's features runs until anchor_end: layout first grows from 0, source first falls from 1, constant is anchor_level."),
                io.Float.Input("anchor_end", default=0.5, min=0.0, max=1.0, step=0.01, optional=True,
                               tooltip="From which part of the sampling on features are copied; the weight of anchoring stays what it is then."),
                io.Float.Input("anchor_level", default=0.5, min=0.0, max=1.0, step=0.01, optional=True, tooltip="Weight with the schedule constant."),
                io.Combo.Input("anchor_scope", options=list(SCOPES), default="auto", optional=True,
                               tooltip="Where features are anchored: everywhere, or everywhere but at the object's old and new place. auto: everywhere on SD 1.5 and SDXL, else outside."),
                io.Float.Input("share_start", default=0.0, min=0.0, max=1.0, step=0.01, optional=True,
                               tooltip="From which part of the sampling on the result reads the picture's keys and values in place of its own."),
                io.Float.Input("share_end", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, tooltip="Up to which part of the sampling it reads them."),
                io.Float.Input("copy_blend", default=1.0, min=0.0, max=1.0, step=0.05, optional=True,
                               tooltip="After anchor_end each token of an object becomes the picture's token most like it: 1 wholly (the paper), 0 not."),
                io.Combo.Input("vacate", options=VACATES, default="auto", optional=True,
                               tooltip="Whether the place the object leaves may not look at the object (nor, on models with text and picture in one attention, at the prompt), so that it is not drawn there again. auto: off with GLIGEN, on without."),
                io.Boolean.Input("masked_exchange", default=True, optional=True,
                                 tooltip="With GLIGEN: cut the exchange of each box's text with the picture outside its region, in the picture and in the result."),
                io.Combo.Input("region_shape", options=list(SHAPES), default="ellipse", optional=True,
                               tooltip="What of a mask or box counts as the object: the ellipse of its size (the paper's blobs), the box around it, or the mask itself."),
                io.Float.Input("redraw_cells", default=2.0, min=0.0, max=16.0, step=0.5, optional=True,
                               tooltip="By how many latent cells the old and new place are widened for what is drawn anew. Shadows and reflections need more."),
                io.Float.Input("redraw_share", default=0.05, min=0.0, max=1.0, step=0.01, optional=True, tooltip="And by this share of the object's longer side."),
                io.Boolean.Input("clip_to_frame", default=False, optional=True, tooltip="Let the object stand out of the picture in part, instead of an error."),
                io.Boolean.Input("allow_overlap", default=False, optional=True, tooltip="Let the object cover more than half of another one, instead of an error."),
                io.Int.Input("buckets", default=0, min=0, max=1000, optional=True,
                             tooltip="How many noises the picture is shown with; steps of one bucket share what was read, which saves evaluations. 0: one per step."),
                io.Int.Input("seed", default=0, min=0, max=2**32 - 1, optional=True, tooltip="Of those noises. The first is the sampler's own."),
                io.Boolean.Input("fresh_noise", default=True, optional=True,
                                 tooltip="Each bucket's noise is a new one (the paper). Off: always the sampler's own, so picture and result stay closer; for samplers without noise of their own."),
                io.Boolean.Input("control_on_result", default=False, optional=True,
                                 tooltip="Let ControlNets of the prompt act on the result too. Off: on the picture alone, because their hints show the object at its old place."),
                io.Boolean.Input("force_run", default=False, optional=True, tooltip="Run although nothing moves: then the picture should come out as it is."),
                io.Float.Input("radius", default=0.2, min=0.05, max=0.5, step=0.01, optional=True, tooltip="Size of other objects given as a point, in parts of the shorter side."),
                ),
                *common.place_inputs(),
            ],
            outputs=[
                common.model_output(),
                io.Latent.Output(display_name="latent", tooltip="The picture with a mask of what is drawn anew; with 'generated beside' a batch of picture and result."),
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with moved boxes or with the captions behind it; as it came where there is nothing to add."),
                io.Mask.Output(display_name="redrawn", tooltip="What is drawn anew, to look at or to composite with, in latent cells."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, positive: Any, latent: Any, dx: int, dy: int, scale: float, strength: float, caption: str, **more: Any) -> io.NodeOutput:
        """read -> check -> attach."""
        return io.NodeOutput(*dragged(model, positive, latent, dx=dx, dy=dy, scale=scale, strength=strength, caption=caption, **more))


def dragged(
    model: Any,
    positive: Any,
    latent: Any,
    mask: Any = None,
    dx: int = 0,
    dy: int = 0,
    scale: float = 1.0,
    strength: float = 1.0,
    caption: str = "",
    clip: Any = None,
    track: Any = None,
    source: str = "picture",
    others: str = "",
    other_masks: Any = None,
    grounding: str = "auto",
    target: str = "",
    region_shape: str = "ellipse",
    redraw_cells: float = 2.0,
    redraw_share: float = 0.05,
    clip_to_frame: bool = False,
    allow_overlap: bool = False,
    masked_exchange: bool = True,
    force_run: bool = False,
    radius: float = 0.2,
    **settings: Any,
) -> tuple[Any, Any, Any, Any]:
    """MODEL, LATENT, CONDITIONING and MASK [1, h, w]. Raises LoomError."""
    shape: Any = common.choice("region_shape", region_shape, list(SHAPES))
    beside = common.choice("source", source, SOURCES) == SOURCES[1]
    if strength == 0:
        return model.clone(), latent, positive, torch.zeros(1, *latent["samples"].shape[-2:])
    painted = drag_request.mask_of(mask)
    scene = drag_request.scene_of(painted, shape, dx, dy, scale, target, track, caption, others, other_masks, radius)
    samples = drag_request.picture_of(latent, beside)
    cells = int(samples.shape[-2]), int(samples.shape[-1])
    drag_request.fits(scene.objects[0].frame, *cells)
    diffusion = model.get_model_object("diffusion_model")
    family = family_of(diffusion)
    _, y, x = family.geometry(diffusion, samples, None, {}).grid
    if scene.rests(y, x) and not force_run:
        still = torch.zeros(1, *cells)
        return model.clone(), latent if beside else latent | {"noise_mask": still}, positive, still
    way = drag_grounding.way(common.choice("grounding", grounding, GROUNDINGS), positive)
    if way == "gligen":
        widths = [] if family.joint else channels(diffusion)
        scene, positive = drag_grounding.with_moved_boxes(positive, scene, shape, cells, widths, beside, masked_exchange)
    drag.check(scene, y, x, clip_to_frame, allow_overlap)
    texts = drag_grounding.captions(clip, scene, caption) if way == "regional text" else ()
    if texts and family.joint:
        positive = drag_grounding.joined(positive, texts)
    method = configure(scene, texts, family.joint, way == "gligen", strength, None if beside else samples, **settings)
    new = drag.redrawn(scene.objects[0], painted, scene.drag, *cells, redraw_cells, redraw_share)[None]
    drawn = drag_request.doubled(latent, samples) if beside else latent | {"noise_mask": new}
    return attach(model, method), drawn, positive, new


def configure(
    scene: drag.Scene,
    texts: tuple[Any, ...],
    joint: bool,
    grounded: bool,
    strength: float = 1.0,
    latent: Any = None,
    anchor_schedule: str = "layout first",
    anchor_end: float = 0.5,
    anchor_level: float = 0.5,
    anchor_scope: str = "auto",
    share_start: float = 0.0,
    share_end: float = 1.0,
    copy_blend: float = 1.0,
    vacate: str = "auto",
    buckets: int = 0,
    seed: int = 0,
    fresh_noise: bool = True,
    control_on_result: bool = False,
    blocks: str = "",
    backend: str = "auto",
) -> DiffUHaul:
    """The node's settings as a method. latent: of the picture, None where it is generated beside. Raises LoomError."""
    vacates = common.choice("vacate", vacate, VACATES)
    return DiffUHaul(
        scene=scene,
        texts=() if joint else texts,
        spans=tuple(t.shape[1] for t in texts) if joint else (),
        anchoring=Anchoring(anchor_schedule, anchor_end, anchor_level, strength),  # type: ignore[arg-type]
        scope=anchor_scope,  # type: ignore[arg-type]
        share_from=share_start,
        share_to=share_end,
        copy=strength * copy_blend,
        vacate=vacates == "on" or (vacates == "auto" and not grounded),
        source=None if latent is None else Source(latent, Buckets(buckets, seed, fresh_noise)),
        control=control_on_result,
        blocks=common.blocks(blocks),
        backend=common.choice("backend", backend, common.BACKENDS),
    )
