"""UltraViCo (arXiv 2511.20123): four times the trained length."""

from __future__ import annotations

from ..graphs import text_to_video
from ..row import Arm, Judge, Row
from .riflex import CODE as RIFLEX_CODE
from .riflex import riflex, windows

NATIVE = 6
"""Latent frames of a native clip."""

ROWS = (
    Row(
        name="ultravico-4x",
        method="ultravico",
        claim="At four times the trained length shapes hold and fewer frames break than with the stock model or RIFLEx, and motion is kept.",
        latent_frames=4 * NATIVE,
        stock=Arm("stock", text_to_video()),
        alternatives=(*(Arm(f"RIFLEx k={k}", text_to_video(riflex(k=k)), RIFLEX_CODE) for k in (1, 2, 3)), Arm("context windows", text_to_video(windows()))),
        ours=Arm(
            "UltraViCo 0.6",
            text_to_video(("LoomUltraViCo", {"preset": "custom", "alpha": 0.6, "strength": 1.0, "train_frames": NATIVE, "first_frame": "off"})),
            ("core/methods/ultravico.py", "nodes/ultravico.py"),
        ),
        judges=(Judge("iou", "shape IoU"), Judge("broken", "broken frames", "lower"), Judge("motion_kept", "motion kept"), Judge("repetition", "repetition", "lower")),
        notes="alpha 0.6 was chosen in the length study, on other prompts and seeds; the paper's 0.9 is for large models. Context windows: the host's own node, 6 latent frames with 2 shared.",
    ),
)
