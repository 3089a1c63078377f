"""FIFO-Diffusion (arXiv 2405.11473) and Ouroboros (arXiv 2501.09019): clips without an end, part by part as in the paper's ablation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...bundles import BUNDLES
from ...steady import steadiness
from ..footage import Footage, measure_video
from ..graphs import REPORT, SAMPLER, Graph, Shot, base, through
from ..prompts import held_out
from ..row import Arm, Judge, Row
from ..worlds import world
from .ditraj import plain
from .riflex import SCENES_WINDOWS, windows

CODE = (*tuple(f"core/samplers/{name}.py" for name in ("ouroboros", "per_frame", "queue", "tail", "store")), "core/video_decode.py", "nodes/ouroboros.py")
SUBJECT_CODE = (*CODE, "core/methods/endless_subject.py", "core/unrotated.py", "core/samplers/recurrent.py", "core/subject_mask.py")
FRAMES, PARTITIONS = 52, 4
"""Latent frames made (205 of video), and the paper's number of partitions. Windows have the model's native length."""
ROUND = ("clockwise", "still", "counterclockwise")
"""Motions that are right for ever: a straight mover would leave the picture."""


def endless(tail: str, subject: dict[str, Any] | None = None) -> Callable[[Shot], Graph]:
    """The queue with a kind of tail, and with settings of Keep Subject in Endless Video if given."""

    def graph(shot: Shot) -> Graph:
        nodes, model, window = base(shot), ["shift", 0], world(shot.world).bundle.latent_frames
        nodes["latent"]["inputs"]["length"] = 4 * window - 3
        positive = ["positive", 0]
        if subject is not None:
            words = " ".join(shot.caption.split()[1:3])
            inputs = {"model": model, "clip": ["clip", 0], "prompt": shot.caption, "subject": words, **subject}
            nodes["method_1"] = {"class_type": "LoomEndlessSubject", "inputs": inputs}
            model, positive = ["method_1", 0], ["method_1", 1]
        told = nodes.pop(SAMPLER)["inputs"]
        nodes["queue"] = {"class_type": "LoomOuroboros", "inputs": {"frames": shot.latent_frames, "window": window, "partitions": PARTITIONS, "tail": tail}}
        nodes["noise"] = {"class_type": "RandomNoise", "inputs": {"noise_seed": shot.seed}}
        nodes["guider"] = {"class_type": "CFGGuider", "inputs": {"model": model, "positive": positive, "negative": ["negative", 0], "cfg": told["cfg"]}}
        nodes["levels"] = {"class_type": "BasicScheduler", "inputs": {"model": model, "scheduler": told["scheduler"], "steps": ["queue", 1], "denoise": 1.0}}
        links = {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["queue", 0], "sigmas": ["levels", 0], "latent_image": ["latent", 0]}
        nodes[SAMPLER] = {"class_type": "SamplerCustomAdvanced", "inputs": links}
        nodes["decode"] = {"class_type": "LoomDecodeEndless", "inputs": {"samples": [SAMPLER, 0], "vae": ["vae", 0], "method": "auto"}}
        if subject is not None:
            nodes[REPORT] = {"class_type": "LoomReport", "inputs": {"model": model, "after": [SAMPLER, 0]}}
        return nodes

    return graph


def one_level(graph: Callable[[Shot], Graph]) -> Callable[[Shot], Graph]:
    """The same graph with the model that was trained with one level per clip."""

    def other(shot: Shot) -> Graph:
        nodes, bundle = graph(shot), BUNDLES["wan_t2v"]
        nodes["unet"]["inputs"]["unet_name"], nodes["clip"]["inputs"]["clip_name"] = bundle.model, bundle.text
        return nodes

    return other


def watched(footage: Footage) -> dict[str, float]:
    """All of the world's measures, and those of the ground."""
    return measure_video(footage) | steadiness(footage.frames)


ROWS = (
    Row(
        name="ouroboros-205",
        method="ouroboros",
        claim="Over 205 frames the object keeps its colour, size and shape better with a coherent tail and the subject kept than with fresh noise (FIFO), and goes on moving.",
        latent_frames=FRAMES,
        stock=Arm("stock, one run", through()),
        alternatives=(
            Arm("context windows", through(windows())),
            Arm("FIFO", endless("fresh noise"), CODE),
            Arm("coherent tail", endless("coherent"), CODE),
            Arm("tail and subject", endless("coherent", {"strength": 1.0, "guidance": 0.0}), SUBJECT_CODE),
        ),
        ours=Arm("tail, subject, guidance", endless("coherent", {"strength": 1.0, "guidance": 1.0}), SUBJECT_CODE),
        judges=(
            Judge("identity", "identity"),
            Judge("iou", "shape IoU"),
            Judge("broken", "broken frames", "lower"),
            Judge("motion_kept", "motion kept"),
            Judge("colour", "colour right"),
            Judge("ground_drift", "ground's drift", "lower"),
            Judge("ground_flicker", "ground's flicker", "lower"),
        ),
        notes="Windows of 6 latent frames, the native length, and 4 partitions, the paper's: 24 levels, 8 model calls per latent frame. All parts at the paper's or the nodes' own settings, nothing "
        "was tuned. Stock: all 52 latent frames in one run, nearly nine times the trained length. Context windows: the host's own node, 6 latent frames with 2 shared. Orbits and rests only, which are "
        "right for ever. The model was trained with one noise level per clip.",
        prompts=lambda count: held_out(count, ROUND),
        measure=watched,
    ),
    Row(
        name="ouroboros-levels",
        method="ouroboros",
        claim="Over 205 frames a model trained with a noise level per latent frame keeps object and motion better in the queue than the same model trained with one level per clip.",
        latent_frames=FRAMES,
        stock=Arm("stock, one run", through()),
        alternatives=(
            SCENES_WINDOWS,
            Arm("FIFO, one-level model", one_level(endless("fresh noise")), CODE),
            Arm("coherent tail, one-level model", one_level(endless("coherent")), CODE),
            Arm("FIFO", endless("fresh noise"), CODE),
        ),
        ours=Arm("coherent tail", endless("coherent"), CODE),
        judges=(
            Judge("iou", "shape IoU"),
            Judge("broken", "broken frames", "lower"),
            Judge("motion_kept", "motion kept"),
            Judge("colour", "colour right"),
        ),
        notes="Windows of 9 latent frames, the native length, and 4 partitions: 36 levels, 8 model calls per latent frame. The model is that of the other video rows of this world, trained on with an "
        "independent level for every latent frame (diffusion forcing). Orbits and rests only, which are right for ever. Nothing was tuned.",
        world="scenes_wan_forcing",
        prompts=plain(*ROUND),
        more=((BUNDLES["wan_t2v"].model, "diffusion_models"), (BUNDLES["wan_t2v"].text, "text_encoders")),
    ),
)
