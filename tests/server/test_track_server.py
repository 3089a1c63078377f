"""Draw Path by a script: the JSON goes in through the API, boxes, picture and background come out."""

import json

import pytest
import torch
from attention_loom.core.tracks import Tracks
from attention_loom.tools.headless import HostError
from PIL import Image

pytestmark = pytest.mark.server

TRACK = {
    "version": 1,
    "extend": "hold",
    "objects": [{"name": "cat", "keys": [{"frame": 0, "box": [0, 0.25, 0.5, 0.75]}, {"frame": 8, "box": [0.5, 0.25, 1, 0.75], "ease": "hold"}]}],
}


def prompt(track, **inputs):
    values = {"track": track if isinstance(track, str) else json.dumps(track), "frames": 9, "width": 64, "height": 48, "preview": "every frame", **inputs}
    return {
        "picture": {"class_type": "EmptyImage", "inputs": {"width": 100, "height": 100, "batch_size": 1, "color": 0xFFFFFF}},
        "editor": {"class_type": "LoomTrackEditor", "inputs": values},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["editor", 1], "filename_prefix": "path"}},
    }


def test_a_path_by_hand(host):
    done = host.run(prompt(TRACK, background=["picture", 0]))
    tracks = Tracks.parse(done.outputs["editor"]["loom_track"][0])
    assert tracks == Tracks.parse(json.dumps(TRACK), 9, 64, 48)
    assert len(done.outputs["save"]["images"]) == 9
    with Image.open(host.file(done.outputs["editor"]["loom_background"][0])) as ground:
        assert ground.size == (64, 48) and ground.getpixel((60, 40)) == (255, 255, 255)


def test_a_wrong_one_is_one_sentence_with_object_and_key_frame(host):
    wrong = json.loads(json.dumps(TRACK))
    wrong["objects"][0]["keys"][1]["box"] = [0.45, 0.1, 0.3, 0.9]
    with pytest.raises(HostError, match=r'object 1 "cat", key frame at 8: x1 0.30 is left of x0 0.45; swap them\.') as caught:
        host.run(prompt(wrong))
    assert len(str(caught.value)) < 600


def given(host, track_nodes, socket):
    """The path Draw Path makes of what these nodes of the host give into ``socket``; skipped where the host has no such nodes."""
    if not {n["class_type"] for n in track_nodes.values()} <= set(host.get("/object_info")):
        pytest.skip("this host has no such values")
    done = host.run(prompt(TRACK, **{socket: [list(track_nodes)[-1], 0]}) | track_nodes)
    return Tracks.parse(done.outputs["editor"]["loom_track"][0]), done.outputs["editor"]["loom_source"][0]


def test_boxes_of_the_host_take_the_drawings_place(host):
    box = {"class_type": "PrimitiveBoundingBox", "inputs": {"x": 16, "y": 12, "width": 32, "height": 24}}
    tracks, source = given(host, {"box": box}, "boxes")
    assert source == "connected"
    assert tracks.boxes().shape == (1, 9, 4)
    assert tracks.boxes()[0, 4].tolist() == pytest.approx([0.25, 0.25, 0.75, 0.75])


def test_point_tracks_of_the_host_take_the_drawings_place(host):
    made = {
        "width": 64, "height": 48, "start_x": 0.25, "start_y": 0.5, "end_x": 0.75, "end_y": 0.5, "num_frames": 9, "num_tracks": 1, "track_spread": 0.0,
        "bezier": False, "mid_x": 0.5, "mid_y": 0.5, "interpolation": "linear",
    }  # fmt: skip
    tracks, source = given(host, {"points": {"class_type": "GenerateTracks", "inputs": made}}, "tracks")
    assert source == "connected"
    middles = (tracks.boxes()[0, :, :2] + tracks.boxes()[0, :, 2:]) / 2
    assert torch.allclose(middles[[0, 8]], torch.tensor([[0.25, 0.5], [0.75, 0.5]], dtype=middles.dtype), atol=0.03)
    assert bool((middles[:, 0].diff() > 0).all())


def test_without_anything_connected_the_drawing_counts(host):
    """A host may give an unconnected input a value of its own; ours has none."""
    info = host.get("/object_info")["LoomTrackEditor"]["input"]["optional"]
    assert all(spec[1].get("forceInput") for name, spec in info.items() if name == "boxes")
    assert host.run(prompt(TRACK)).outputs["editor"]["loom_source"][0] == "drawn"


def test_the_editors_files_are_served_as_modules(host):
    import urllib.request

    for name in ("track_editor", "track_panel", "track_input", "track_paint", "track_controls", "track_document", "track_geometry"):
        with urllib.request.urlopen(f"{host.url}/extensions/attention-loom/js/{name}.js") as file:
            assert "javascript" in file.headers["Content-Type"]
    assert "/extensions/attention-loom/js/track_editor.js" in host.get("/extensions")
