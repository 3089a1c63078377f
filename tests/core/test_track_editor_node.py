"""The node Draw Path: what it reads, what it gives, which sockets it has on which host."""

import json

import host_inprocess
import pytest
import torch
from attention_loom.core.errors import LoomError
from attention_loom.core.tracks import Tracks

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def module():
    host_inprocess.import_host()
    from attention_loom.nodes import track_editor

    return track_editor


def names(module):
    return [i.id for i in module.LoomTrackEditor.define_schema().inputs]


def test_the_node_is_useful_at_once(module):
    result = module.LoomTrackEditor.execute(module.DEFAULT, 81, 832, 480)
    tracks, picture, text = result.result
    assert isinstance(tracks, Tracks) and tracks.frames == 81
    assert picture.shape == (1, 480, 832, 3)
    assert Tracks.parse(text) == tracks
    assert result.ui == {"loom_track": (text,), "loom_source": ("drawn",)}


def test_the_preview_can_be_a_clip(module):
    _, clip, _ = module.LoomTrackEditor.execute(module.DEFAULT, 9, 64, 48, "every frame").result
    assert clip.shape == (9, 48, 64, 3)
    with pytest.raises(LoomError, match="preview 'film' was given"):
        module.LoomTrackEditor.execute(module.DEFAULT, 9, 64, 48, "film")


def test_the_schema_is_a_string_for_scripts_and_a_canvas_for_the_browser(module):
    track = module.LoomTrackEditor.define_schema().inputs[0]
    assert track.get_io_type() == "STRING"
    assert track.as_dict()["widgetType"] == module.WIDGET
    script = (host_inprocess.ROOT / "web" / "js" / "track_editor.js").read_text()
    assert f'const WIDGET = "{module.WIDGET}"' in script
    default = json.loads(module.DEFAULT)
    values = {i.id: i.default for i in module.LoomTrackEditor.define_schema().inputs if i.id in ("frames", "width", "height")}
    assert {k: default[k] for k in values} == values


def test_sockets_for_host_values_only_where_the_host_has_them(module, monkeypatch):
    plain = ["track", "frames", "width", "height", "preview", "background"]
    monkeypatch.delattr(module.io, "Tracks", raising=False)
    monkeypatch.delattr(module.io, "BoundingBox", raising=False)
    assert names(module) == plain
    monkeypatch.setattr(module.io, "Tracks", module.io.Custom("TRACKS"), raising=False)
    monkeypatch.setattr(module.io, "BoundingBox", module.io.Custom("BOUNDING_BOX"), raising=False)
    assert names(module) == [*plain, "tracks", "point_width", "point_height", "boxes"]
    assert all(i.optional for i in module.LoomTrackEditor.define_schema().inputs[5:])


def test_a_connected_value_takes_the_drawings_place(module):
    points = {"track_path": torch.tensor([[[8.0, 8.0]], [[16.0, 8.0]]]), "track_visibility": torch.ones(2, 1)}
    result = module.LoomTrackEditor.execute(module.DEFAULT, 2, 64, 48, tracks=points, point_width=0.25, point_height=0.25)
    assert [t.name for t in result.result[0].objects] == ["point 1"]
    assert result.ui["loom_source"] == ("connected",)
    boxes = module.LoomTrackEditor.execute("", 2, 64, 48, boxes={"x": 8, "y": 8, "width": 16, "height": 16}).result[0]
    assert boxes.boxes()[0, 1].tolist() == [0.125, 8 / 48, 0.375, 0.5]
    with pytest.raises(LoomError, match="Both tracks and boxes are connected"):
        module.LoomTrackEditor.execute("", 2, 64, 48, tracks=points, boxes={})


def test_what_is_wrong_is_said(module):
    with pytest.raises(LoomError, match="The track is empty"):
        module.LoomTrackEditor.execute("", 81, 832, 480)
