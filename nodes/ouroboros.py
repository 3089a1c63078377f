"""Nodes: Endless Video (Ouroboros), its prompts over time, and the decoder for clips of any length."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui

from ..core.attach import attach
from ..core.concepts import Located, locate
from ..core.errors import LoomError
from ..core.methods import endless_subject
from ..core.samplers import prompts, tail
from ..core.samplers.ouroboros import Ouroboros, Settings
from ..core.video_decode import METHODS, decode
from . import common
from .prompt import encode as encode_text

NAME = re.compile(r"[\w\- ]{1,80}")
TAIL = ["coherent", "fresh noise"]
RENORM = ["auto", "on", "off"]
GUIDANCE_STEPS = ["paper", "normalised"]
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
        return io.NodeOutput([entry for scene in prompts.scenes(text) for entry in encode(clip, scene)])


def encode(clip: Any, scene: prompts.Scene) -> list[Any]:
    """A scene as conditioning entries that know from which frame they hold."""
    return [[tensor, extra | {prompts.FROM: scene.frame}] for tensor, extra in encode_text(clip, scene.text)]


class LoomEndlessSubject(io.ComfyNode):
    """Attaches :class:`core.methods.endless_subject.EndlessSubject`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Simple inputs first, expert inputs optional and last."""
        return io.Schema(
            node_id="LoomEndlessSubject",
            display_name="Keep Subject in Endless Video (Ouroboros)",
            category=common.category("video"),
            description=(
                "Holds the subject of an endless video together: it finds it by its words in every window of the queue, lets all frames attend to it more, and "
                "can draw noisy frames towards how it has looked so far. Acts only under Endless Video (Ouroboros). (Ouroboros-Diffusion, arXiv 2501.09019)"
            ),
            inputs=[
                common.model_input(),
                io.Clip.Input("clip", tooltip="The text encoder of your model; the node encodes the prompt itself."),
                io.String.Input("prompt", multiline=True, default="a fox runs through the snow",
                                tooltip="The positive prompt, or several over time as lines 'frame: prompt' (latent frames). Comes out as conditioning."),
                io.String.Input("subject", default="fox", tooltip="The subject in words of the prompt, several things separated by commas. They must stand in every prompt."),
                io.Float.Input("strength", default=1.0, min=0.0, max=10.0, step=0.05,
                               tooltip="How often more the subject's keys count in self-attention: 1 as in the paper (SACFA), 0 not at all."),
                io.Float.Input("guidance", default=0.0, min=0.0, max=100.0, step=0.05,
                               tooltip="Draw noisy frames towards the subject's mean look so far; 1 as in the paper, 0 off. Costs a forward and a backward pass per guided window. (paper: gamma)"),
                *common.advanced(
                io.Combo.Input("attend_to", options=list(endless_subject.SOURCES), default="this window", optional=True,
                               tooltip="this window: the subject's own keys in all frames of the window count more. the head: its keys in the frame that leaves the queue are added, one frame before the window (ours)."),
                io.Combo.Input("guidance_step", options=GUIDANCE_STEPS, default="paper", optional=True,
                               tooltip="paper: as large as the gradient, at most 1 per frame. normalised: the same size always, 0.05 of a frame's spread at guidance 1 (ours)."),
                io.Float.Input("memory", default=0.9, min=0.0, max=1.0, step=0.01, optional=True,
                               tooltip="How much of the remembered look stays with every new frame: 1 keeps the first, 0 takes the latest. (paper: lambda)"),
                io.Float.Input("threshold", default=0.0, min=0.0, max=1.0, step=0.01, optional=True,
                               tooltip="From where on the subject's map counts as subject, of its range in the window; 0 finds it anew each time (Otsu)."),
                io.Combo.Input("windows", options=list(endless_subject.WHICH), default="noisier half", optional=True,
                               tooltip="Windows of the queue it acts in."),
                io.Boolean.Input("spare_memory", default=False, optional=True, tooltip="Keep what a gradient needs in system memory: slower, little on the device."),
                io.String.Input("blocks", default="", optional=True,
                                tooltip="Blocks whose self-attention changes; the subject is looked for in the blocks before. Empty: the second half."),
                ),
            ],
            outputs=[
                common.model_output(),
                io.Conditioning.Output(display_name="conditioning", tooltip="The prompt, for the guider's positive input."),
                io.String.Output(display_name="tokens", tooltip="Which tokens of each prompt were found."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, clip: Any, prompt: str, subject: str, strength: float, guidance: float, **expert: Any) -> io.NodeOutput:
        """Encode -> locate -> configure -> attach."""
        scenes = prompts.scenes(prompt)
        entries = [encode(clip, scene) for scene in scenes]
        phrases = [word.strip() for word in subject.split(",") if word.strip()]
        if not phrases:
            raise LoomError("no subject was given; name it in words of the prompt, like 'fox'.")
        found = [(scene.frame, locate(clip, scene.text, phrases, int(entry[0][0].shape[1]))) for scene, entry in zip(scenes, entries, strict=True)]
        method = configure_subject(tuple(found), strength, guidance, **expert)
        text = "\n\n".join(f"from frame {frame}\n{located.text}" for frame, located in found)
        return io.NodeOutput(attach(model, method), [e for entry in entries for e in entry], text, ui=ui.PreviewText(text))


def configure_subject(
    scenes: tuple[tuple[int, Located], ...],
    strength: float = 1.0,
    guidance: float = 0.0,
    attend_to: str = "this window",
    guidance_step: str = "paper",
    memory: float = 0.9,
    threshold: float = 0.0,
    windows: str = "noisier half",
    spare_memory: bool = False,
    blocks: str = "",
) -> endless_subject.EndlessSubject:
    """The node's inputs as a method. Raises LoomError."""
    return endless_subject.EndlessSubject(
        scenes,
        copies=strength,
        source=common.choice("attend_to", attend_to, list(endless_subject.SOURCES)),  # type: ignore[arg-type]
        gamma=guidance,
        lam=memory,
        threshold=threshold,
        which=common.choice("windows", windows, list(endless_subject.WHICH)),  # type: ignore[arg-type]
        normalised=common.choice("guidance_step", guidance_step, GUIDANCE_STEPS) == "normalised",
        spare_memory=spare_memory,
        blocks=common.blocks(blocks),
    )


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
