"""Node: Draw Path. The browser draws on a canvas (web/js/track_editor.js); all it sends is the text of ``track``."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..core.errors import LoomError
from ..core.tracks import MAX_FRAMES, MAX_SIDE, Tracks
from ..core.tracks_from_host import from_bounding_boxes, from_points
from ..core.tracks_picture import every_frame, first_picture, whole_path
from . import common

LOOM_TRACK = io.Custom("LOOM_TRACK")
PREVIEWS = ["whole path", "every frame"]
WIDGET = "LOOM_TRACK_CANVAS"
DEFAULT = """{
  "version": 1, "frames": 81, "width": 832, "height": 480, "extend": "hold", "clip": false,
  "objects": [
    {"name": "subject", "keys": [
      {"frame": 0, "box": [0.06, 0.4, 0.36, 0.84], "ease": "ease_in_out"},
      {"frame": 80, "box": [0.62, 0.22, 0.94, 0.7], "ease": "linear"}
    ]}
  ]
}"""


class LoomTrackEditor(io.ComfyNode):
    """Reads the drawn JSON into :class:`core.tracks.Tracks` and shows what the server understood."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The drawing first; sockets for values of newer hosts only where the host has them."""
        track = io.String.Input("track", multiline=True, default=DEFAULT,
                                tooltip="The path: boxes of each object at key frames, drawn here or sent as JSON (docs/track-schema.md).")  # fmt: skip
        # the socket stays a STRING; the frontend draws it with our widget
        track.extra_dict = {"widgetType": WIDGET}
        return io.Schema(
            node_id="LoomTrackEditor",
            display_name="Draw Path",
            category=common.category("video"),
            description=(
                "Draw where objects are in the video: boxes at key frames on a timeline, moved and resized with the mouse, with what happens between them "
                "computed. The result goes to nodes that steer objects along a path. The drawing is one JSON text, so a script can send it too."
            ),
            inputs=[
                track,
                io.Int.Input("frames", default=81, min=1, max=MAX_FRAMES,
                             tooltip="Length of the clip in pixel frames, as in the node that makes the empty video. A path drawn for another length is played faster or slower."),
                io.Int.Input("width", default=832, min=16, max=MAX_SIDE, step=8, tooltip="Width of the video in pixels. Boxes are kept as parts of the picture, so they follow."),
                io.Int.Input("height", default=480, min=16, max=MAX_SIDE, step=8, tooltip="Height of the video in pixels."),
                io.Combo.Input("preview", options=PREVIEWS, default=PREVIEWS[0],
                               tooltip="What the output 'preview' shows: the whole path in one picture, or the box of the moment in every frame (needs memory for the whole clip)."),
                io.Image.Input("background", optional=True, tooltip="A picture or clip to draw over, for instance the first frame. It only helps to aim and changes nothing else."),
                *_host_inputs(),
            ],
            outputs=[
                LOOM_TRACK.Output(display_name="track", tooltip="The path, for Steer Object Along Path (DiTraj)."),
                io.Image.Output(display_name="preview", tooltip="The path as a picture, or as a clip of the video's length."),
                io.String.Output(display_name="json", tooltip="What the server understood, as JSON: can be pasted into another Draw Path node or sent by a script."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, track: str, frames: int, width: int, height: int, preview: str = PREVIEWS[0], background: Any = None, tracks: Any = None, boxes: Any = None,
        point_width: float = 0.2, point_height: float = 0.3,
    ) -> io.NodeOutput:  # fmt: skip
        """read -> draw."""
        common.choice("preview", preview, PREVIEWS)
        path = _path(track, frames, width, height, tracks, boxes, point_width, point_height)
        picture = (every_frame if preview == PREVIEWS[1] else whole_path)(path, background)
        text = path.json()
        shown: dict[str, Any] = {"loom_track": (text,), "loom_source": ("drawn" if tracks is None and boxes is None else "connected",)}
        if background is not None:
            shown["loom_background"] = tuple(ui.PreviewImage(first_picture(path, background), cls=cls).as_dict()["images"])
        return io.NodeOutput(path, picture, text, ui=shown)


def _path(text: str, frames: int, width: int, height: int, tracks: Any, boxes: Any, point_width: float, point_height: float) -> Tracks:
    """The drawing, or the connected value in its place."""
    if tracks is not None and boxes is not None:
        raise LoomError("Both tracks and boxes are connected; each takes the drawing's place, so connect one of them.")
    if tracks is not None:
        return from_points(tracks, frames, width, height, point_width, point_height)
    if boxes is not None:
        return from_bounding_boxes(boxes, frames, width, height)
    return Tracks.parse(text, frames, width, height)


def _host_inputs() -> list[Any]:
    """Sockets for TRACKS and BOUNDING_BOX, where the host has such values (0.3.75 has not: nothing could be connected)."""
    inputs: list[Any] = []
    if hasattr(io, "Tracks"):
        inputs += [
            io.Tracks.Input("tracks", optional=True, tooltip="Point tracks of the host, in the drawing's place: each point becomes the centre of a box."),
            *common.advanced(
            io.Float.Input("point_width", default=0.2, min=0.01, max=1.0, step=0.01, optional=True, tooltip="Width of the box around each point of 'tracks', as a part of the picture."),
            io.Float.Input("point_height", default=0.3, min=0.01, max=1.0, step=0.01, optional=True, tooltip="Height of the box around each point of 'tracks', as a part of the picture."),
            ),
        ]  # fmt: skip
    if hasattr(io, "BoundingBox"):
        # a socket by force: of itself the value is four number fields, whose 512 x 512 pixels would always take the drawing's place
        inputs.append(io.Custom("BOUNDING_BOX").Input("boxes", optional=True, extra_dict={"forceInput": True},
                      tooltip="Boxes of the host in pixels, in the drawing's place: one, one per frame, or several per frame."))  # fmt: skip
    return inputs
