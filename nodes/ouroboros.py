"""Nodes: Endless Video (Ouroboros), its prompts over time, and the decoder for clips of any length."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..core.errors import LoomError
from ..core.samplers import prompts, tail
from ..core.samplers.ouroboros import Ouroboros, Settings
from ..core.video_decode import METHODS, decode
from . import common

NAME = re.compile(r"[\w\- ]{1,80}")
TAIL = ["coherent", "fresh noise"]
RENORM = ["auto", "on", "off"]
ON_STOP = ["keep the frames so far", "cancel"]


class LoomOuroboros(io.ComfyNode):
    """Makes a :class:`core.samplers.ouroboros.Ouroboros`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Simple inputs first, expert inputs optional and last."""
        return io.Schema(
            node_id="LoomOuroboros",
            display_name="Endless Video (Ouroboros)",
            category=common.category("video"),
            description=(
                "A sampler that makes a video of any length with a model for short clips, in constant memory: a queue of frames at rising noise, from "
                "which one clean frame leaves at a time. Connect it to SamplerCustomAdvanced, and steps to the scheduler. "
                "(FIFO-Diffusion, arXiv 2405.11473; Ouroboros-Diffusion, arXiv 2501.09019)"
            ),
            inputs=[
                io.Int.Input("frames", default=60, min=1, max=1_000_000,
                             tooltip="Latent frames to make. Wan: n of them are 4 n - 3 frames of video (60 -> 237). Stop at any time: what has been made goes on to the next node."),
                io.Int.Input("window", default=21, min=2, max=128,
                             tooltip="Latent frames the model sees at once, best its native length: Wan 2.1 21, Wan 2.2 TI2V 31. The latent you connect must have at least so many. (paper: f)"),
                io.Int.Input("partitions", default=4, min=1, max=16,
                             tooltip="How finely the queue is divided: window x partitions noise levels. More is better and slower. (paper: n)"),
                io.Combo.Input("tail", options=TAIL, default="coherent",
                               tooltip="What enters the queue: coherent keeps the coarse layout of the frame before it, which holds subject and scene together (Ouroboros); fresh noise drifts and flickers more (FIFO)."),
                io.String.Input("save_queue", default="", optional=True,
                                tooltip="Name of a queue file to write, while it runs and at the end, to output/attention_loom/queues. With it a clip can go on later. Empty: none."),
                io.String.Input("resume_from", default="", optional=True,
                                tooltip="Name of a queue file to go on from: the new frames follow those of that run bit for bit if seed, prompts and settings are the same. May equal save_queue."),
                *common.advanced(
                io.Boolean.Input("lookahead", default=True, optional=True,
                                 tooltip="Let every frame see cleaner ones before it. Better, at twice the model calls."),
                io.Float.Input("tail_width", default=0.25, min=0.0, max=1.0, step=0.01, optional=True,
                               tooltip="Which share of the frequencies a coherent tail keeps; higher holds more and moves less, 0 is fresh noise. (paper: d_s)"),
                io.Combo.Input("tail_filter", options=list(tail.FILTERS), default="centred", optional=True,
                               tooltip="centred: true frequencies, keeps the mean. source: the released code's filter, weaker by 0.607."),
                io.Float.Input("rho", default=0.91, min=0.0, max=1.0, step=0.01, optional=True,
                               tooltip="On flow models: how much of the frame before is kept in what the coherent tail takes its low frequencies from."),
                io.Combo.Input("renorm", options=RENORM, default="auto", optional=True,
                               tooltip="Give the coherent tail the variance of noise. auto: on flow models only; off as in the released code."),
                io.Float.Input("eta", default=0.0, min=0.0, max=1.0, step=0.01, optional=True,
                               tooltip="Random part of each step (DDIM eta) for models that predict noise; the paper uses 1. Flow models such as Wan need 0."),
                io.Combo.Input("switch_prompt", options=list(prompts.SWITCHES), default="each frame", optional=True,
                               tooltip="With prompts over time: each frame takes its own prompt, or (as in the paper) the whole queue changes when the frame leaves, which shows later."),
                io.Boolean.Input("fresh_tail_at_switch", default=True, optional=True,
                                 tooltip="Let fresh noise in for half a window when the prompt changes, so that the old scene does not hold the new one back."),
                io.Combo.Input("on_stop", options=ON_STOP, default=ON_STOP[0], optional=True,
                               tooltip="When you interrupt: go on to decoding and saving with the frames made so far, or cancel as other samplers do. A queue file is written either way."),
                io.Boolean.Input("longer_window", default=False, optional=True,
                                 tooltip="Allow a window beyond the length the model was trained on."),
                ),
            ],
            outputs=[
                io.Sampler.Output(display_name="sampler", tooltip="For SamplerCustomAdvanced. The clip comes out of its output; denoised_output holds the last frame only."),
                io.Int.Output(display_name="steps", tooltip="window x partitions: the number of steps the scheduler must have. Connect it to the scheduler's steps."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, resume_from: str = "", **rest: Any) -> str:
        """Made again when the queue file has changed."""
        path = queue_path(resume_from)
        return f"{rest} {path} {path.stat().st_mtime_ns if path and path.is_file() else 0}"

    @classmethod
    def execute(cls, frames: int, window: int, partitions: int, tail: str, **expert: Any) -> io.NodeOutput:
        """validate -> configure."""
        settings = configure(frames, window, partitions, tail, **expert)
        return io.NodeOutput(Ouroboros(settings), window * partitions)


def configure(
    frames: int = 60,
    window: int = 21,
    partitions: int = 4,
    tail_kind: str = "coherent",
    save_queue: str = "",
    resume_from: str = "",
    lookahead: bool = True,
    tail_width: float = 0.25,
    tail_filter: str = "centred",
    rho: float = 0.91,
    renorm: str = "auto",
    eta: float = 0.0,
    switch_prompt: str = "each frame",
    fresh_tail_at_switch: bool = True,
    on_stop: str = ON_STOP[0],
    longer_window: bool = False,
) -> Settings:
    """The node's inputs as settings. Raises LoomError."""
    common.choice("tail", tail_kind, TAIL)
    common.choice("tail_filter", tail_filter, list(tail.FILTERS))
    again = {"auto": None, "on": True, "off": False}[common.choice("renorm", renorm, RENORM)]
    return Settings(
        frames=frames,
        window=window,
        partitions=partitions,
        lookahead=lookahead,
        tail=tail.Coherent(tail_filter, tail_width, again, rho) if tail_kind == "coherent" else None,  # type: ignore[arg-type]
        eta=eta,
        switch=common.choice("switch_prompt", switch_prompt, list(prompts.SWITCHES)),  # type: ignore[arg-type]
        fresh_tail_at_switch=fresh_tail_at_switch,
        longer_window=longer_window,
        save=queue_path(save_queue),
        resume=queue_path(resume_from),
        keep_on_stop=common.choice("on_stop", on_stop, ON_STOP) == ON_STOP[0],
    )


def queue_path(name: str) -> Path | None:
    """Where a queue file of that name lies, None for no name. Raises LoomError for a name that is no plain file name."""
    import folder_paths

    clean = name.strip().removesuffix(".safetensors")
    if not clean:
        return None
    if not NAME.fullmatch(clean):
        raise LoomError(f"'{name}' is not a name for a queue file; use letters, digits, blanks, - and _.")
    return Path(folder_paths.get_output_directory()) / "attention_loom" / "queues" / f"{clean}.safetensors"


class LoomEndlessPrompts(io.ComfyNode):
    """Encodes prompts that hold from given frames on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A text in, one conditioning out."""
        return io.Schema(
            node_id="LoomEndlessPrompts",
            display_name="Prompts Over Time (Ouroboros)",
            category=common.category("video"),
            description="Several prompts for one endless video, each from a frame on, for Endless Video (Ouroboros). Other samplers would mix them.",
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of your model."),
                io.String.Input("text", multiline=True, default="0: a fox sleeps in the snow\n40: the fox wakes up and runs",
                                tooltip="One prompt per line as 'frame: prompt', the frame counted in latent frames (Wan: 4 frames of video each). The first begins at 0."),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="As positive or negative prompt of the guider.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, clip: Any, text: str) -> io.NodeOutput:
        """One conditioning entry per scene, marked with its frame."""
        out = []
        for scene in prompts.scenes(text):
            for tensor, extra in clip.encode_from_tokens_scheduled(clip.tokenize(scene.text)):
                out.append([tensor, extra | {prompts.FROM: scene.frame}])
        return io.NodeOutput(out)


class LoomDecodeEndless(io.ComfyNode):
    """Decodes a clip part by part."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Latent and VAE in, pictures out."""
        return io.Schema(
            node_id="LoomDecodeEndless",
            display_name="Decode Long Video",
            category=common.category("video"),
            description="Decodes a video latent of any length part by part, in constant device memory and without flicker where the parts meet. For Create Video and Save Video.",
            inputs=[
                io.Latent.Input("samples", tooltip="A video latent of any length. Join several from one queue first (LatentConcat over t): parts decoded apart flicker where they meet."),
                io.Vae.Input("vae", tooltip="The video VAE of your model."),
                io.Combo.Input("method", options=list(METHODS), default="auto",
                               tooltip="exact: the same pictures as one whole decode (Wan's VAEs). overlap: any video VAE; parts overlap and what overlaps is dropped. auto: exact where it can be."),
                *common.advanced(
                io.Int.Input("chunk", default=24, min=1, max=1024, optional=True, tooltip="Latent frames kept from each part; fewer take less memory."),
                io.Int.Input("overlap", default=12, min=1, max=256, optional=True,
                             tooltip="With overlap: latent frames decoded with each part on both sides and dropped; more is closer to one whole decode and slower."),
                ),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="All frames in order, for Create Video.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, samples: Any, vae: Any, method: str, chunk: int = 24, overlap: int = 12) -> io.NodeOutput:
        """Decode with a progress bar."""
        import comfy.utils

        latent = samples["samples"]
        bar = comfy.utils.ProgressBar(latent.shape[2] if latent.ndim == 5 else 1)
        images, _ = decode(vae, latent, method, chunk, overlap, lambda done, total: bar.update_absolute(done, total))
        return io.NodeOutput(images)
