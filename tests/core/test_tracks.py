"""Paths drawn as boxes at key frames: reading, refusing, interpolating."""

import json
import math
from pathlib import Path

import pytest
import torch
from attention_loom.core.errors import LoomError
from attention_loom.core.tracks import EASES, KeyFrame, Track, Tracks, ease, stretched

A, B = [0.1, 0.2, 0.4, 0.6], [0.5, 0.3, 1, 0.9]


def document(*keys, frames=9, name="cat", **more):
    return {"version": 1, "frames": frames, "width": 64, "height": 48, "objects": [{"name": name, "keys": list(keys)}], **more}


def key(frame, box=A, **more):
    return {"frame": frame, "box": box, **more}


def parse(data, **sizes):
    return Tracks.parse(json.dumps(data), **sizes)


def test_edges_move_linearly_from_key_to_key():
    boxes = parse(document(key(0), key(4, B), key(8, A))).boxes()
    assert boxes.shape == (1, 9, 4) and boxes.dtype == torch.float64
    steps = torch.tensor([0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0], dtype=torch.float64)[:, None]
    torch.testing.assert_close(boxes[0], torch.tensor(A).double() + (torch.tensor(B).double() - torch.tensor(A).double()) * steps, rtol=0, atol=1e-7)
    assert boxes[0, 4].tolist() == B and boxes[0, 0].tolist() == A, "at a key frame the box is exactly the key's"


@pytest.mark.parametrize("kind", EASES)
def test_eases_start_at_the_box_and_never_run_backwards(kind):
    values = [ease(kind, u / 64) for u in range(64)]
    assert values[0] == 0 and values == sorted(values) and values[-1] < 1
    shape = {"linear": 0.5, "ease_in": 0.25, "ease_out": 0.75, "ease_in_out": 0.5, "hold": 0.0}
    assert ease(kind, 0.5) == shape[kind]
    if kind == "ease_in_out":
        assert ease(kind, 0.25) < 0.25 and ease(kind, 0.75) > 0.75
    jump = parse(document(key(0, ease=kind), key(8, B))).boxes()[0, 7, 0].item()
    assert jump == pytest.approx(0.1 + 0.4 * ease(kind, 7 / 8))


def test_an_invisible_key_takes_the_object_away_until_the_next():
    boxes = parse(document(key(0), key(3, B, visible=False), key(6, B), key(8, A))).boxes()[0]
    assert torch.isnan(boxes).all(1).tolist() == [False, False, False, True, True, True, False, False, False]
    assert not torch.isnan(boxes).any(1)[2]


def test_clip_cuts_boxes_at_the_picture_after_they_moved():
    outside = [1.2, 0.2, 1.5, 0.6]
    boxes = parse(document(key(0), key(8, outside), clip=True)).boxes()[0]
    assert boxes[4, 2] == pytest.approx(0.4 + 1.1 / 2) and boxes[4, 0] == pytest.approx(0.1 + 1.1 / 2)
    assert boxes[6, 2] == 1 and boxes[6, 0] < 1
    assert torch.isnan(boxes[8]).all()
    with pytest.raises(LoomError, match=r'object 1 "cat", key frame at 8: x0 is 1.20; keep the box inside the picture, 0 to 1, or set "clip": true'):
        parse(document(key(0), key(8, outside)))


def test_several_objects_lie_above_each_other():
    data = document(key(0), key(8))
    data["objects"].append({"name": "dog", "keys": [key(0, B), key(8, B)]})
    assert parse(data).boxes()[:, 0].tolist() == [A, B]


def test_hold_fills_both_ends():
    t = parse(document(key(2, ease="ease_in"), key(6, B, visible=False), extend="hold"))
    assert [(k.frame, k.visible) for k in t.objects[0].keys] == [(0, True), (2, True), (6, False), (8, False)]
    assert t.boxes()[0, 0].tolist() == t.boxes()[0, 2].tolist() == A


def test_json_brings_back_exactly_the_same_value():
    third = 1 / 3
    t = Tracks(49, 832, 480, (Track('the "cat" 猫', (KeyFrame(0, (0.0, third, 0.1 + 0.2, 1.0), "ease_out"), KeyFrame(48, (0.0, 0.0, 1.0, 1.0), "hold", False))),), clip=True)
    assert Tracks.parse(t.json()) == t
    held = parse(document(key(2), extend="hold"))
    assert Tracks.parse(held.json()) == held


def test_another_number_of_frames_moves_the_keys_in_proportion():
    drawn = document(key(0), key(40, B), key(80), frames=81)
    for frames, middle in ((81, 40), (161, 80), (41, 20), (49, 24), (3, 1)):
        t = parse(drawn, frames=frames)
        assert t.frames == frames and [k.frame for k in t.objects[0].keys] == [0, middle, frames - 1]
    assert [stretched(f, 5, 4) for f in range(5)] == [0, 1, 2, 2, 3], "halves go up"
    with pytest.raises(LoomError, match=r'object 1 "cat", drawn for 81 frames, does not fit into 2: the key frames at 40 and 80 both fall on frame 1;'):
        parse(drawn, frames=2)


def test_the_clip_is_what_the_caller_says():
    t = parse(document(key(0), key(8)), frames=9, width=100, height=50)
    assert (t.width, t.height) == (100, 50)
    bare = {"version": 1, "objects": [{"name": "cat", "keys": [key(0), key(8)]}]}
    assert parse(bare, frames=9, width=8, height=8).frames == 9
    with pytest.raises(LoomError, match='says nothing of frames; add "frames"'):
        parse(bare)


def test_one_frame_is_a_clip_too():
    assert parse(document(key(0), frames=1)).boxes().tolist() == [[A]]


@pytest.mark.parametrize(
    ("keys", "more", "words"),
    [
        ([key(0), key(3), key(3), key(8)], {}, r'object 1 "cat" has two key frames at 3; keep one of them'),
        ([key(0), key(5), key(3), key(8)], {}, r"has the key frame at 3 after the one at 5; order them by frame"),
        ([key(1), key(8)], {}, r'has its first key frame at 1 and none at 0; add one there or set "extend": "hold"'),
        ([key(0), key(7)], {}, r"has its last key frame at 7 and none at 8, the last of 9 frames"),
        ([], {}, "has no key frames"),
        ([key(0), key(9)], {}, r'object 1 "cat", key frame number 2: frame is 9; it is a whole number from 0 to 8'),
        ([key(0), key(2.5), key(8)], {}, "frame is 2.5"),
        ([key(0), key(True), key(8)], {}, "frame is true"),
        ([{"box": A}], {}, "key frame number 1 has no frame"),
        ([7], {}, "key frame number 1 is 7"),
        ([key(0), key(8, [0.45, 0, 0.3, 1])], {}, r'object 1 "cat", key frame at 8: x1 0.30 is left of x0 0.45; swap them\.'),
        ([key(0), key(8, [0, 0.7, 0.3, 0.6])], {}, r"y1 0.60 is above y0 0.70; swap them"),
        ([key(0), key(8, [0.3, 0, 0.3, 1])], {}, r"x0 and x1 are both 0.30; a box needs a width above 0"),
        ([key(0), key(8, [0, 0, math.nan, 1])], {}, "x1 is nan, which is not a finite number"),
        ([key(0), key(8, [0, 0, math.inf, 1])], {"clip": True}, "x1 is inf, which is not"),
        ([key(0), key(8, [0, 0, 1.5, 1])], {}, "x1 is 1.50; keep the box inside"),
        ([key(0), key(8, [0, 0, 99, 1])], {"clip": True}, "x1 is 99.00; keep it between -10 and 11"),
        ([key(0), key(8, [0, 0, 1])], {}, "it is four numbers"),
        ([key(0), key(8, [0, 0, "1", 1])], {}, "it is four numbers"),
        ([key(0), {"frame": 8}], {}, "box is null"),
        ([key(0, ease="bounce"), key(8)], {}, r'ease is "bounce"; choose one of linear, ease_in'),
        ([key(0, visible=1), key(8)], {}, "visible is 1; it is true or false"),
        ([key(0, easing="linear"), key(8)], {}, r'key frame at 0 has the field "easing", which is not known here'),
        ([key(0), key(8)], {"extend": "loop"}, r'extend of the track is "loop"; choose one of none, hold'),
        ([key(0), key(8)], {"clip": "yes"}, r'clip of the track is "yes"'),
        ([key(0), key(8)], {"version": 2}, "has version 2; this pack reads version 1"),
        ([key(0), key(8)], {"fps": 16}, r'The track has the field "fps"'),
        ([key(0), key(8)], {"objects": []}, "has no objects"),
        ([key(0), key(8)], {"objects": [{"name": str(i), "keys": []} for i in range(17)]}, "has 17 objects; at most 16"),
        ([key(0), key(8)], {"objects": [{"name": " ", "keys": []}]}, "object 1 has the name"),
        ([key(0), key(8)], {"frames": 0}, "frames of the track is 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_object_and_key_frame(keys, more, words):
    with pytest.raises(LoomError, match=words) as caught:
        parse(document(*keys) | more)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_names_are_different():
    data = document(key(0), key(8))
    data["objects"].append(data["objects"][0])
    with pytest.raises(LoomError, match='objects 1 and 2 are both called "cat"'):
        parse(data)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "is empty"), ("{", "not JSON: line 1, column 2"), ("[1]", r"The track is \[1\]"), ('{"version": 1, "version": 1}', '"version" twice'), ("[" * 100_000, "nested too deep"), (None, "is empty")],
)  # fmt: skip
def test_text_that_is_no_track(text, words):
    with pytest.raises(LoomError, match=words):
        Tracks.parse(text)


def test_the_server_and_the_editor_compute_the_same_boxes():
    """The other half is tests/ui/geometry.test.mjs."""
    cases = json.loads((Path(__file__).resolve().parents[1] / "fixtures" / "track_cases.json").read_text())
    assert len(cases) > 10
    for case in cases:
        boxes = parse(case["track"], frames=case["frames"]).boxes().tolist()
        assert [[None if math.isnan(box[0]) else box for box in row] for row in boxes] == case["boxes"], case["why"]
