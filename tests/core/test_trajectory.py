"""Boxes on a token grid and the positions their tokens take: the spec's worked examples, invariants and refusals."""

import pytest
import torch
from attention_loom.core.errors import LoomError
from attention_loom.core.trajectory import Paths, doubts, moved, paths

NAN = float("nan")
EXAMPLE = torch.tensor([[[0, 1 / 4, 2 / 6, 3 / 4], [3 / 6, 1 / 4, 5 / 6, 3 / 4]]], dtype=torch.float64)
"""Two frames of 4 x 6 tokens: rows 1-2, columns 0-1, then columns 3-4."""


def boxes(*per_object):
    return torch.tensor(per_object, dtype=torch.float64)


def growing(frames=4):
    """(x0, y0, x1, y1) of a box that moves and grows on 8 x 8 tokens."""
    return boxes([[f / 8, 1 / 8, (f + 2 + f // 2) / 8, (3 + f // 2) / 8] for f in range(frames)])


def brute_force(found, y, x, resample="nearest"):
    """(position triples [N, 3], foreground, R) by the words of the paper, token by token."""
    places, front = {}, set()
    for f in range(found.tokens.shape[1]):
        for r in range(y):
            for c in range(x):
                places[f, r, c] = (f, float(r), float(c))
    for boxes_of, (ar, ac, ah, aw) in zip(found.tokens.tolist(), found.anchors, strict=True):
        for f, (r0, r1, c0, c1) in enumerate(boxes_of):
            h, w = r1 - r0, c1 - c0
            for i in range(h):
                for j in range(w):
                    yy, xx = (0 if n == 1 else k * (a - 1) / (n - 1) for k, a, n in ((i, ah, h), (j, aw, w)))
                    if resample == "nearest":
                        yy, xx = round(yy), round(xx)
                    places[f, r0 + i, c0 + j] = (f, ar + yy, ac + xx)
                    front.add((f, r0 + i, c0 + j))
    counts = {}
    for triple in places.values():
        counts[triple] = counts.get(triple, 0) + 1
    twin = {key for key, triple in places.items() if key not in front and counts[triple] > 1}
    return places, front, twin


def test_the_worked_example():
    found = paths(EXAMPLE, 4, 6)
    assert found.tokens.tolist() == [[[1, 3, 0, 2], [1, 3, 3, 5]]]
    assert found.anchors == ((1, 0, 2, 2),)
    made = moved(found, 4, 6)
    assert int((made.subject > 0).sum()) == 8
    twins = made.twin.view(2, 4, 6).nonzero().tolist()
    assert twins == [[1, r, c] for r in (1, 2) for c in (0, 1)]
    front, back = made.subject > 0, made.twin
    blocked = (front[:, None] & back[None]) | (back[:, None] & front[None])
    assert int(blocked.sum()) == 64 and torch.equal(blocked, blocked.T) and not blocked.all(1).any()
    shift = made.shift.view(2, 4, 6, 2)
    assert not shift[0].any(), "the anchor frame keeps its positions"
    assert (shift[1, 1:3, 3:5] == torch.tensor([0.0, -3.0])).all()
    assert int((made.shift != 0).any(1).sum()) == 4


def test_sizes_are_resampled_by_nearest_neighbours():
    found = Paths(torch.tensor([[[0, 2, 0, 3], [0, 4, 0, 5]]]), ((0, 0, 2, 3),))
    shift = moved(found, 8, 8).shift.view(2, 8, 8, 2)[1, :4, :5]
    assert (shift[:, 0, 0] + torch.arange(4)).tolist() == [0, 0, 1, 1]
    assert (shift[0, :, 1] + torch.arange(5)).tolist() == [0, 0, 1, 2, 2]


@pytest.mark.parametrize("resample", ["nearest", "linear"])
def test_against_the_paper_word_by_word(resample):
    found = paths(growing(), 8, 8)
    made = moved(found, 8, 8, resample)
    places, front, twin = brute_force(found, 8, 8, resample)
    for i, key in enumerate(places):
        position = [key[1] + float(made.shift[i, 0]), key[2] + float(made.shift[i, 1])]
        assert position == pytest.approx(list(places[key][1:]), abs=1e-5)
        assert bool(made.subject[i] > 0) == (key in front)
        if resample == "nearest":
            assert bool(made.twin[i]) == (key in twin)
    assert not (made.twin & (made.subject > 0)).any()
    assert made.twin.any()


def test_background_never_moves_and_a_still_box_moves_nothing():
    made = moved(paths(growing(), 8, 8), 8, 8)
    assert not made.shift[made.subject == 0].any()
    still = moved(paths(boxes([[0.25, 0.25, 0.75, 0.75]] * 3), 8, 8), 8, 8)
    assert not still.shift.any() and not still.twin.any() and int((still.subject > 0).sum()) == 3 * 16


def test_the_anchor_is_the_earliest_smallest_box_and_absent_frames_have_none():
    track = boxes([[NAN] * 4, [0, 0, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5], [0.5, 0.5, 0.75, 0.75]])
    found = paths(track, 8, 8)
    assert found.anchors == ((2, 2, 2, 2),)
    assert not (moved(found, 8, 8).subject.view(4, -1)[0] > 0).any()


def test_a_part_of_the_clip_keeps_the_anchor_of_the_whole():
    found = paths(growing(), 8, 8)
    whole, part = moved(found, 8, 8), moved(found.at((2, 3)), 8, 8)
    for name in ("subject", "shift", "twin"):
        assert torch.equal(getattr(whole, name).view(4, 64, -1)[2:], getattr(part, name).view(2, 64, -1))
    beyond = moved(found.at((3, 9)), 8, 8).subject.view(2, 64)
    assert torch.equal(beyond[0], beyond[1])


def test_corners_of_the_released_code_leave_the_last_row_and_column():
    made = moved(paths(EXAMPLE, 4, 6, inclusive=True), 4, 6)
    shift = made.shift.view(2, 4, 6, 2)
    assert (shift[1] != 0).any(-1).nonzero().tolist() == [[1, 3]]
    assert int((made.subject > 0).sum()) == 8, "the regions of the text are those of the whole box"


def test_two_objects_have_an_anchor_each():
    track = boxes([[0, 0, 0.25, 0.25], [0.25, 0, 0.5, 0.25]], [[0.5, 0.5, 0.75, 0.75], [0.75, 0.5, 1.0, 0.75]])
    found = paths(track, 8, 8)
    made = moved(found, 8, 8)
    assert found.anchors == ((0, 0, 2, 2), (4, 4, 2, 2))
    assert sorted(set(made.subject.tolist())) == [0, 1, 2]
    assert made.twin.view(2, 8, 8)[1].nonzero().tolist() == [[r, c] for r in (0, 1) for c in (0, 1)] + [[r, c] for r in (4, 5) for c in (4, 5)]


def test_edges_that_floats_blur():
    assert paths(boxes([[0.29, 0.07, 0.57, 0.58]]), 100, 100).tokens.tolist() == [[[7, 58, 29, 57]]]


@pytest.mark.parametrize(
    ("track", "words"),
    [
        (boxes([[NAN] * 4] * 2), "object 1 has no box in any frame"),
        (boxes([[0, 0, 0.5, 0.5], [0, 0, 0.2, 0.5]]), r"object 1 in latent frame 1 covers 1 x 4 tokens of a picture of 8 x 8; .* wider than 0.250"),
        (boxes([[0, 0, 0.5, 0.5]], [[0.25, 0.25, 0.75, 0.75]]), "objects 1 and 2 overlap in latent frame 0"),
    ],
)
def test_paths_that_cannot_be(track, words):
    with pytest.raises(LoomError, match=words):
        paths(track, 8, 8)


def test_what_is_odd_is_said():
    track = boxes([[0, 0, 0.25, 0.25], [0.75, 0.75, 1, 1], [0, 0, 1, 1]])
    said = " ".join(doubts(paths(track, 8, 8), 8, 8))
    assert "covers the whole of frame 2" in said and "differ 16 times in area" in said and "jumps by more than half the width between latent frames 0 and 1" in said
    assert doubts(paths(growing(), 8, 8), 8, 8) == []
