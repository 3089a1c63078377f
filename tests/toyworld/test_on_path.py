"""Measures of a path: a perfect object, one that is shifted, small, late, of another colour or absent."""

import pytest
import torch
from attention_loom.toyworld.on_path import LOST, follow
from attention_loom.toyworld.readings import read
from attention_loom.toyworld.scenes.grammar import GROUNDS
from attention_loom.toyworld.world import COLOURS

CAPTION = "a red square moving right on a grey background"


def path(frames=5):
    return torch.tensor([[f / 8, f / 8, f / 8 + 0.5, f / 8 + 0.5] for f in range(frames)])


def clip(boxes, colour="red", size=64):
    frames = torch.tensor(GROUNDS["grey"]).expand(len(boxes), size, size, 3).clone()
    for frame, (x0, y0, x1, y1) in zip(frames, (boxes * size).round().long().tolist(), strict=True):
        frame[y0:y1, x0:x1] = torch.tensor(COLOURS[colour])
    return frames


def score(boxes, colour="red", wanted=None):
    return follow(read(clip(boxes, colour), CAPTION), path() if wanted is None else wanted)


def test_an_object_that_fills_its_box():
    found = score(path())
    assert found["path_iou"] == pytest.approx(1.0) and found["path_error"] == pytest.approx(0.0, abs=1e-6)
    assert found["path_inside"] == found["path_seen"] == 1.0


def test_shifted_small_and_late():
    shifted = score(path() + torch.tensor([0.125, 0.0, 0.125, 0.0]).clamp(max=1))
    assert shifted["path_error"] == pytest.approx(0.125, abs=0.02) and 0.5 < shifted["path_iou"] < 0.7 and shifted["path_inside"] == 1.0
    small = score(path() + torch.tensor([0.125, 0.125, -0.125, -0.125]))
    assert small["path_iou"] == pytest.approx(0.25, abs=0.02) and small["path_error"] == pytest.approx(0.0, abs=0.01)
    late = score(path()[:1].expand(5, 4))
    assert late["path_error"] == pytest.approx(2**0.5 * 2 / 8, abs=0.02) and late["path_inside"] < 1.0


def test_another_colour_and_nothing_at_all():
    assert score(path(), "blue")["path_seen"] == 0.0
    nothing = score(torch.zeros(5, 4))
    assert nothing == {"path_iou": 0.0, "path_error": pytest.approx(LOST), "path_inside": 0.0, "path_seen": 0.0}


def test_one_box_per_frame():
    with pytest.raises(ValueError, match="5 frames need 5 boxes"):
        follow(read(clip(path()), CAPTION), path(4))


def test_the_rows_command_what_they_draw():
    """The commanded boxes are those of the graph's own track, and whole tokens at every latent frame of the straight and the round path."""
    from attention_loom.core.tracks import Tracks
    from attention_loom.toyworld.scoreboard.rows.ditraj import PATHS, ROWS

    for row in ROWS:
        (shot,) = row.shots(1)
        graph = row.ours.graph(shot)
        kind = row.name.removeprefix("ditraj-")
        assert torch.equal(Tracks.parse(graph["track"]["inputs"]["track"]).boxes(), PATHS[kind].boxes())
        assert graph["sampler"]["inputs"]["positive"] == ["method_1", 1]
        assert graph["ground"]["inputs"]["text"].startswith("a ") and " on " not in graph["ground"]["inputs"]["text"]
        assert row.measure is not None and PATHS[kind].boxes().shape == (1, 33, 4)
    ring = PATHS["circle"].boxes()[0, ::4] * 4
    assert torch.allclose(ring, ring.round())
