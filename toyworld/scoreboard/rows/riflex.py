"""RIFLEx (arXiv 2502.15894): twice the trained length without starting over."""

from __future__ import annotations

from typing import Any

from ..graphs import through
from ..prompts import moving
from ..row import Arm, Judge, Row

CODE = ("core/methods/riflex.py", "nodes/riflex.py")


def riflex(**settings: Any) -> tuple[str, dict[str, Any]]:
    """The node with settings of one's own."""
    return "LoomRIFLEx", {"preset": "custom", "strength": 1.0, **settings}


def windows(length: int = 21, overlap: int = 5) -> tuple[str, dict[str, Any]]:
    """The host's own way to longer video: native windows that share frames. Its lengths are pixel frames: 21 and 5 are 6 and 2 latent ones."""
    fixed = {"context_schedule": "standard_static", "context_stride": 1, "closed_loop": False, "fuse_method": "pyramid"}
    return "WanContextWindowsManual", {"context_length": length, "context_overlap": overlap, **fixed}


SCENES = "scenes_wan_t2v"
SCENES_NATIVE = 9
"""Latent frames of a native clip of the second world."""
SCENES_WINDOWS = Arm("context windows", through(windows(33, 9)))
"""9 latent frames, 3 of them shared."""
TIMES = {2: "twice", 3: "three times"}


def frequency(k: int, name: str = "RIFLEx k={}") -> Arm:
    """RIFLEx with a frequency of one's own."""
    return Arm(name.format(k), through(riflex(k=k)), CODE)


def scenes(times: int) -> Row:
    """RIFLEx in the second world at so many native lengths."""
    return Row(
        name=f"riflex-scenes-{times}x",
        method="riflex",
        claim=f"At {TIMES[times]} the trained length patterned objects that move for ever repeat less than with the stock model, and keep their shape, motion and pattern.",
        latent_frames=times * SCENES_NATIVE,
        stock=Arm("stock", through()),
        alternatives=(frequency(2), frequency(4), SCENES_WINDOWS),
        ours=frequency(3, "RIFLEx"),
        judges=(Judge("repetition", "repetition", "lower"), Judge("iou", "shape IoU"), Judge("motion_kept", "motion kept"), Judge("identity", "identity")),
        notes=(
            "k = 3: its period (14.5 latent frames) is nearest to one and a half native lengths, about where a published model repeats (HunyuanVideo: 50 latent frames "
            "of 33); no drawn clip had a say. Its neighbours are shown beside it. Context windows: the host's own node, 9 latent frames with 3 shared."
        ),
        world=SCENES,
    )


ROWS = (
    Row(
        name="riflex-2x",
        method="riflex",
        claim="At twice the trained length the clip does not start over: moving objects repeat less than with the stock model.",
        latent_frames=12,
        stock=Arm("stock", through()),
        alternatives=(frequency(1, "another frequency (k={})"), Arm("context windows", through(windows()))),
        # On six clips of other seeds the stock model came nearest to itself after 31 frames: 8 latent frames, whose nearest period is that of k = 2.
        ours=Arm("RIFLEx", through(riflex(k=0, repeat_frames=8.0)), CODE),
        judges=(Judge("repetition", "repetition", "lower"), Judge("iou", "shape IoU"), Judge("motion_kept", "motion kept")),
        notes="k is the paper's choice: the frequency whose period (9.5 latent frames, k = 2) is nearest to where the stock model was seen to repeat, 8 latent frames. Moving objects only: one that rests repeats by right.",
        prompts=moving,
    ),
    scenes(2),
    scenes(3),
)
