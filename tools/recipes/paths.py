"""Workflows for paths: what is drawn before anything is sampled."""

from __future__ import annotations

from ...core.tracks import KeyFrame, Track, Tracks
from .base import Node, Recipe, link, track_editor

TWO = Tracks(
    81, 832, 480,
    (
        Track("cat", (
            KeyFrame(0, (0.04, 0.5, 0.3, 0.94), "ease_in_out"),
            KeyFrame(40, (0.38, 0.2, 0.58, 0.55), "ease_in_out"),
            KeyFrame(80, (0.66, 0.44, 0.98, 0.96)),
        )),
        Track("bird", (
            KeyFrame(0, (0.78, 0.06, 0.92, 0.24), "ease_out"),
            KeyFrame(56, (0.08, 0.08, 0.22, 0.26), visible=False),
            KeyFrame(80, (0.08, 0.08, 0.22, 0.26), visible=False),
        )),
    ),
)  # fmt: skip


def draw_path() -> Recipe:
    """A path for two objects and a clip of it, to see the timing before a model is loaded."""
    draw, look = "Path", "Timing"
    nodes = {
        "editor": track_editor(TWO, draw, preview="every frame"),
        "save": Node(
            "SaveAnimatedWEBP", {"images": link("editor", 1), "filename_prefix": "attention_loom/path", "fps": 16.0, "lossless": False, "quality": 80, "method": "default"}, look
        ),
    }
    note = (
        "# Draw a path\n\n"
        "Drag the boxes, make key frames, play. Queue to get the path as a clip: the timing can be judged before any model is loaded. "
        "No model is needed.\n\n"
        "**?** in the editor lists keys and mouse. The button **<>** shows the JSON, which is all that is saved and all that a script has to send "
        "(docs/track-schema.md).\n\n"
        "The output *track* goes to nodes that steer objects."
    )
    return Recipe("draw_path", {draw: (0, 0), look: (1, 0)}, nodes, note)
