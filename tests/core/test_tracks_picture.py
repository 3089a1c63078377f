"""Pictures of paths, and paths from the host's values."""

import re
from pathlib import Path

import pytest
import torch
from attention_loom.core.errors import LoomError
from attention_loom.core.tracks import KeyFrame, Track, Tracks
from attention_loom.core.tracks_from_host import from_bounding_boxes, from_points
from attention_loom.core.tracks_picture import GROUND, PALETTE, colour_of, every_frame, first_picture, whole_path

ROOT = Path(__file__).resolve().parents[2]
MOVING = Tracks(5, 96, 64, (Track("cat", (KeyFrame(0, (0.0, 0.0, 0.25, 0.5)), KeyFrame(4, (0.75, 0.5, 1.0, 1.0)))),))
AWAY = Tracks(5, 96, 64, (Track("cat", (KeyFrame(0, (0.0, 0.0, 0.25, 0.5)), KeyFrame(2, (0.5, 0.5, 1.0, 1.0), visible=False), KeyFrame(4, (0.5, 0.5, 1.0, 1.0), visible=False))),))


def coloured(picture, index=0):
    """Where a picture [H, W, 3] has the colour of an object."""
    return ((picture * 255).round() == torch.tensor(colour_of(index)).float()).all(-1)


def test_the_whole_path_is_one_picture_with_every_key_frame():
    picture = whole_path(MOVING)
    assert picture.shape == (1, 64, 96, 3) and picture.min() >= 0 and picture.max() <= 1
    found = coloured(picture[0]).nonzero()
    assert found.min(0).values.tolist() == [0, 0] and found.max(0).values.tolist() == [63, 95]


def test_every_frame_shows_the_box_of_the_moment():
    clip = every_frame(MOVING)
    assert clip.shape == (5, 64, 96, 3)
    for f, box in enumerate(MOVING.boxes()[0]):
        x0, y0 = (box[:2] * torch.tensor([96, 64])).round().int().tolist()
        assert coloured(clip[f])[y0 + 20 : y0 + 30, x0].all(), f"left edge of frame {f}"


def test_an_absent_object_is_not_drawn():
    clip = every_frame(AWAY)
    left = [int(coloured(frame)[22:30, 0].sum()) for frame in clip]
    assert left[0] == 8 and left[2:] == [0, 0, 0]


def test_the_ground_is_the_users_picture_cut_to_the_clip():
    ramp = torch.linspace(0, 1, 200)[None, None, :, None].expand(2, 50, 200, 3).clone()
    ramp[1] = 1
    shown = first_picture(MOVING, ramp)
    assert shown.shape == (1, 64, 96, 3)
    # 200 x 50 covers 96 x 64 at scale 1.28: 75 of the 200 columns stay, around the centre
    torch.testing.assert_close(shown[0, 32, [0, -1], 0], torch.tensor([(100 - 37.1) / 199, (100 + 36.1) / 199]), atol=0.01, rtol=0)
    clip = every_frame(MOVING, ramp)
    assert clip[1, 60, 5, 0] == 1 and clip[4, 5, 5, 0] == 1, "the last picture stays"
    assert not torch.equal(clip[0, 60, 5], clip[1, 60, 5])
    assert (every_frame(MOVING)[0, 60, 5] * 255).round().tolist() == list(GROUND)


def test_the_editor_has_the_same_colours():
    text = (ROOT / "web" / "js" / "track_geometry.js").read_text()
    assert tuple(re.findall(r'"(#[0-9a-f]{6})"', text[text.index("PALETTE") :].split("]")[0])) == PALETTE


# --- values of the host -----------------------------------------------------------------------------------------------


def test_points_become_boxes_around_them():
    path = torch.tensor([[[48.0, 32.0], [10.0, 10.0]]]).repeat(5, 1, 1)
    path[:, 0, 0] += torch.tensor([0.0, 6, 12, 24, 36])
    t = from_points({"track_path": path, "track_visibility": torch.ones(5, 1, dtype=torch.bool)}, 5, 96, 64, 0.5, 0.25)
    boxes = t.boxes()
    assert [track.name for track in t.objects] == ["point 1", "point 2"]
    torch.testing.assert_close(boxes[0, 1], torch.tensor([54 / 96 - 0.25, 0.375, 54 / 96 + 0.25, 0.625]).double())
    assert [k.frame for k in t.objects[0].keys] == [0, 2, 4], "frames 1 and 3 lie on the lines"
    assert [k.frame for k in t.objects[1].keys] == [0, 4]
    assert boxes[1, 0, 0] == 0, "a box may leave the picture and is cut"


def test_points_that_vanish_are_absent_there():
    path = torch.full((6, 1, 2), 32.0)
    seen = torch.tensor([False, True, True, False, True, False])[:, None]
    t = from_points({"track_path": path, "track_visibility": seen}, 6, 64, 64, 0.2, 0.2)
    assert (~torch.isnan(t.boxes()[0, :, 0])).tolist() == seen[:, 0].tolist()
    assert Tracks.parse(t.json()) == t


@pytest.mark.parametrize("count", [1, 3, 6, 11])
def test_measured_clips_of_another_length_are_played_over_the_whole_clip(count):
    path = torch.stack([torch.linspace(8, 56, count), torch.full((count,), 32.0)], -1)[:, None]
    t = from_points({"track_path": path}, 6, 64, 64, 0.2, 0.2)
    centres = t.boxes()[0, :, [0, 2]].mean(1) * 64
    assert t.objects[0].keys[0].frame == 0 and t.objects[0].keys[-1].frame == 5
    wanted = torch.linspace(8, 56, 6).double() if count > 1 else torch.full((6,), 8.0).double()
    torch.testing.assert_close(centres, wanted, atol=5.0 if count > 6 else 5.0 if count == 3 else 0.5, rtol=0)


def test_key_frames_stay_within_two_pixels_of_a_curve():
    turn = torch.linspace(0, 6.28, 81).double()
    path = torch.stack([416 + 200 * turn.cos(), 240 + 120 * turn.sin()], -1)[:, None]
    t = from_points({"track_path": path}, 81, 832, 480, 0.2, 0.2)
    centre = (t.boxes()[0, :, :2] + t.boxes()[0, :, 2:]) / 2 * torch.tensor([832, 480]).double()
    assert (centre - path[:, 0]).abs().max() <= 2.01
    assert len(t.objects[0].keys) < 40


def test_boxes_of_the_host():
    one = {"x": 16, "y": 8, "width": 32, "height": 16}
    held = from_bounding_boxes(one, 4, 64, 64)
    assert held.boxes()[0].tolist() == [[0.25, 0.125, 0.75, 0.375]] * 4
    moving = from_bounding_boxes([one, {**one, "x": 20}, {**one, "x": 24}], 3, 64, 64)
    assert moving.boxes()[0, :, 0].tolist() == [0.25, 0.3125, 0.375]
    several = from_bounding_boxes([[one], [one, {**one, "y": 40}], []], 3, 64, 64)
    assert torch.isnan(several.boxes()[..., 0]).tolist() == [[False, False, True], [True, False, True]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: from_points({}, 5, 64, 64, 0.2, 0.2), "without track_path"),
        (lambda: from_points({"track_path": torch.zeros(5, 2)}, 5, 64, 64, 0.2, 0.2), r"shape \[5, 2\]"),
        (lambda: from_points({"track_path": torch.zeros(5, 1, 2), "track_visibility": torch.ones(4, 1)}, 5, 64, 64, 0.2, 0.2), r"\[5, 1\] fits"),
        (lambda: from_points({"track_path": torch.zeros(5, 17, 2)}, 5, 64, 64, 0.2, 0.2), "17 points; at most 16"),
        (lambda: from_points({"track_path": torch.full((5, 1, 2), float("nan"))}, 5, 64, 64, 0.2, 0.2), "point 1 is not visible in any frame"),
        (lambda: from_bounding_boxes([], 5, 64, 64), "holds no box"),
        (lambda: from_bounding_boxes([[{"x": 1, "y": 1, "width": 9, "height": 9}] if t == 1 else [] for t in range(9)], 3, 64, 64), "box 1 is not visible in any frame of the clip"),
        (lambda: from_bounding_boxes([[], []], 5, 64, 64), "holds no box in any frame"),
        (lambda: from_bounding_boxes({"x": 1}, 5, 64, 64), "boxes, frame 0: .* is not a box"),
        (lambda: from_bounding_boxes({"x": 1, "y": 1, "width": float("inf"), "height": 2}, 5, 64, 64), "not all finite"),
    ],
)  # fmt: skip
def test_host_values_that_do_not_fit(call, words):
    with pytest.raises(LoomError, match=words):
        call()
