"""The drag as geometry, the schedules, the copying of nearest rows: against plain loops and closed forms. Needs no host."""

import math

import pytest
import torch
from attention_loom.core.anchoring import Anchoring
from attention_loom.core.blob import Blob
from attention_loom.core.buckets import Buckets
from attention_loom.core.drag import Drag, Scene, check, dragged, owned, redrawn
from attention_loom.core.errors import LoomError
from attention_loom.core.nearest import CHUNK, MARGIN, nearest
from attention_loom.core.regions import Box, Disc, Drawn

FRAME = (64, 96)


def painted(top, bottom, left, right, frame=FRAME):
    mask = torch.zeros(frame)
    mask[top:bottom, left:right] = 1
    return mask


def disc(y, x, r, frame=FRAME):
    v, u = torch.meshgrid(torch.arange(frame[0]) + 0.5, torch.arange(frame[1]) + 0.5, indexing="ij")
    return ((v - y) ** 2 + (u - x) ** 2 <= r * r).float()


# --- where an object is -------------------------------------------------------------------------------------------------


def test_an_ellipse_has_the_masks_centre_and_spread():
    round_ = Blob.of_mask(disc(30, 40, 12), "ellipse")
    assert abs(round_.x - 40) < 0.01 and abs(round_.y - 30) < 0.01
    assert abs(round_.a - 12) < 0.15 and abs(round_.b - 12) < 0.15
    v, u = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(96) + 0.5, indexing="ij")
    turn = math.radians(30)
    along, across = (u - 48) * math.cos(turn) + (v - 32) * math.sin(turn), (v - 32) * math.cos(turn) - (u - 48) * math.sin(turn)
    leaning = Blob.of_mask(((along / 20) ** 2 + (across / 7) ** 2 <= 1).float(), "ellipse")
    assert abs(leaning.a - 20) < 0.3 and abs(leaning.b - 7) < 0.3 and abs(leaning.angle - turn) < 0.02


@pytest.mark.parametrize("shape", ["ellipse", "box", "mask"])
def test_tokens_are_those_whose_centre_is_inside(shape):
    mask = painted(10, 35, 20, 61)
    blob = Blob.of_mask(mask, shape)
    for y, x in ((64, 96), (16, 24), (8, 12)):
        got = blob.tokens(y, x)
        for row in range(y):
            for column in range(x):
                v, u = (row + 0.5) * 64 / y - blob.y, (column + 0.5) * 96 / x - blob.x
                if shape == "ellipse":
                    inside = (u / blob.a) ** 2 + (v / blob.b) ** 2 <= 1
                elif shape == "box":
                    inside = abs(u) <= 20.5 and abs(v) <= 12.5
                else:
                    size = 64 // y
                    inside = float(mask[row * size : (row + 1) * size, column * size : (column + 1) * size].mean()) >= 0.5
                assert bool(got[row, column]) == inside, (shape, row, column)
    speck = Blob.of_mask(painted(33, 34, 51, 52), shape)
    assert speck.tokens(4, 6).nonzero().tolist() == [[2, 3]], "the token nearest to the centre, whatever the grid"


def test_places_in_words_become_blobs():
    box = Blob.of_place(Box(0.25, 0.5, 0.75, 1.0), FRAME, "ellipse")
    assert box.edges == (24, 32, 72, 64) and (box.x, box.y, box.a, box.b) == (48, 48, 24, 16)
    assert Blob.of_place(Disc(0.5, 0.5, 0.25), FRAME, "box").edges == (32, 16, 64, 48)
    drawn = Blob.of_place(Drawn(painted(0, 16, 0, 24, (32, 48))), FRAME, "mask")
    assert drawn.edges == (0, 0, 48, 32)


# --- the drag -----------------------------------------------------------------------------------------------------------


def test_a_drag_moves_whole_tokens():
    blob = Blob.of_mask(painted(10, 35, 20, 61), "mask")
    drag = Drag(dx=19, dy=-5)
    for y, x in ((64, 96), (16, 24), (8, 12)):
        down, right = round(-5 * y / 64), round(19 * x / 96)
        assert drag.shift(FRAME, y, x) == (down, right)
        found = dragged(blob, drag, y, x)
        old, new, back = found.old.view(y, x), found.new.view(y, x), found.back.view(y, x)
        assert torch.equal(old, blob.tokens(y, x))
        for row in range(y):
            for column in range(x):
                r, c = row - down, column - right
                inside = 0 <= r < y and 0 <= c < x and bool(old[r, c])
                assert bool(new[row, column]) == inside and int(back[row, column]) == (r * x + c if inside else -1)
        assert torch.equal(found.moves.view(y, x, 2)[old], torch.tensor([[down, right]]).float().expand(int(old.sum()), 2))
        assert torch.equal(found.vacated, found.old & ~found.new)


def test_no_drag_is_the_identity():
    blob = Blob.of_mask(disc(30, 40, 12), "ellipse")
    found = dragged(blob, Drag(0, 0), 16, 24)
    assert torch.equal(found.old, found.new) and not found.moves.any() and not found.vacated.any()
    assert torch.equal(found.back[found.new], found.new.nonzero()[:, 0])
    assert Drag(1, 1).none(FRAME, 16, 24) and not Drag(1, 1).none(FRAME, 64, 96) and not Drag(0, 0, 1.1).none(FRAME, 16, 24)


@pytest.mark.parametrize("scale", [0.5, 1.5, 2.0])
def test_a_scaled_object_takes_the_nearest_token(scale):
    blob, drag = Blob.of_mask(disc(32, 40, 10), "ellipse"), Drag(8, 0, scale)
    y, x = 32, 48
    found = dragged(blob, drag, y, x)
    row, column = blob.center(y, x)
    old = found.old.view(y, x)
    for at in range(y * x):
        r = math.floor(row + (at // x - row) / scale + 0.5)
        c = math.floor(column + (at % x - 4 - column) / scale + 0.5)
        inside = 0 <= r < y and 0 <= c < x and bool(old[r, c])
        assert bool(found.new[at]) == inside
        if inside:
            assert int(found.back[at]) == r * x + c
            moved = torch.tensor([r, c]) + found.moves[r * x + c]
            assert (moved - torch.tensor([at // x, at % x])).abs().max() <= scale / 2 + 1e-4, "a key is turned to about where it is shown"
    assert abs(float(found.new.sum()) / float(found.old.sum()) / scale**2 - 1) < 0.25


def test_an_object_is_never_lost():
    speck = Blob.of_mask(painted(2, 4, 2, 4), "mask")
    found = dragged(speck, Drag(-30, 10), 8, 12)
    assert int(found.new.sum()) == 1 and found.new.view(8, 12)[1, 0]
    assert int(found.back[found.new]) == int(found.old.nonzero()[0])
    smaller = dragged(Blob.of_mask(disc(32, 40, 3), "ellipse"), Drag(0, 0, 0.25), 16, 24)
    assert smaller.new.any() and bool(smaller.old[smaller.back[smaller.new]].all())


def test_no_token_is_two_objects():
    blobs = tuple(Blob.of_edges(e, FRAME, "box") for e in ((0, 0, 24, 24), (40, 0, 88, 48), (48, 8, 72, 32)))
    scene = Scene(blobs, ("a", "b", "c"), Drag(48, 0))
    found = scene.on(16, 24)
    own = owned(found)
    assert torch.equal(own[0], found[0].new), "the dragged object has all of its own"
    assert torch.equal(own[2], found[2].new & ~found[0].new) and torch.equal(own[1], found[1].new & ~found[0].new & ~found[2].new)
    assert int(torch.stack(own).sum(0).max()) == 1 and scene.on(16, 24) is found


def test_what_is_drawn_anew():
    blob, drag = Blob.of_mask(disc(30, 30, 8), "ellipse"), Drag(40, 0)
    y, x = 8, 12
    found = dragged(blob, drag, y, x)
    both = (found.old | found.new).view(y, x)
    got = redrawn(blob, None, drag, y, x, cells=1, share=0)
    want = torch.zeros(y, x)
    for row, column in both.nonzero().tolist():
        want[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = 1
    assert torch.equal(got, want)
    assert torch.equal(redrawn(blob, None, drag, y, x, 0, 0), both.float())
    wide = painted(20, 41, 16, 49)
    touched = redrawn(blob, wide, drag, y, x, 0, 0)
    assert touched[2:6, 2:7].all() and touched[2:6, 7:12].all(), "every cell the painted mask touches, there and here"
    grown = redrawn(blob, None, drag, 64, 96, 2, 0.5)
    assert torch.equal(grown, redrawn(blob, None, drag, 64, 96, 2 + 0.5 * 16, 0))


@pytest.mark.parametrize(
    ("edges", "drag", "more", "words"),
    [
        ((0, 0, 3, 2), Drag(20, 0), {}, "below one latent token"),
        ((8, 8, 40, 40), Drag(-20, 0), {}, "out of the picture by 12 pixels on the left"),
        ((8, 8, 40, 40), Drag(0, 33), {}, "by 9 pixels on the bottom"),
        ((8, 8, 40, 40), Drag(0, 0, 2.0), {}, "by 8 pixels on the left"),
        ((8, 8, 40, 40), Drag(200, 0), {"clip": True}, "altogether"),
        ((56, 8, 88, 40), Drag(0, 0), {}, "'cat' and 'dog' have the same box"),
        ((8, 8, 40, 40), Drag(40, 0), {}, "puts 'cat' over 75% of 'dog'"),
    ],
)
def test_what_cannot_be_dragged_is_said(edges, drag, more, words):
    scene = Scene((Blob.of_edges(edges, FRAME, "box"), Blob.of_edges((56, 8, 88, 40), FRAME, "box")), ("cat", "dog"), drag)
    with pytest.raises(LoomError, match=words):
        check(scene, 16, 24, **more)


def test_what_the_switches_allow():
    boxes = (Blob.of_edges((8, 8, 40, 40), FRAME, "box"), Blob.of_edges((56, 8, 88, 40), FRAME, "box"))
    check(Scene(boxes, ("a", "b"), Drag(-20, 0)), 16, 24, clip=True)
    check(Scene(boxes, ("a", "b"), Drag(40, 0)), 16, 24, allow_overlap=True)
    check(Scene(boxes, ("a", "b"), Drag(15, 8)), 16, 24)
    with pytest.raises(LoomError, match=r"scale 0\.2 was given"):
        Drag(0, 0, 0.2)
    with pytest.raises(LoomError, match="plain numbers"):
        Drag(math.nan, 0)
    for mask, words in ((torch.zeros(FRAME), "is empty"), (torch.ones(FRAME), "covers the whole picture")):
        with pytest.raises(LoomError, match=words):
            Blob.of_mask(mask, "ellipse")


# --- schedules ----------------------------------------------------------------------------------------------------------


def test_anchoring_weights():
    for schedule, form in (("layout first", lambda u: u), ("source first", lambda u: 1 - u), ("constant", lambda u: 0.3)):
        anchoring = Anchoring(schedule, end=0.6, level=0.3, amount=0.5)
        for u in (0.0, 0.2, 0.59, 0.6, 0.9, 1.0):
            assert anchoring.weight(u) == pytest.approx(0.5 * form(min(u, 0.6)))
            assert anchoring.copies(u) == (u >= 0.6)
    with pytest.raises(LoomError, match="choose one of layout first, source first, constant"):
        Anchoring("sideways")
    with pytest.raises(LoomError, match=r"anchor_end 1\.5"):
        Anchoring(end=1.5)


def test_buckets():
    each = Buckets()
    assert [each.number(i, 6) for i in range(7)] == [0, 1, 2, 3, 4, 5, 5] and not each.held(6)
    assert [Buckets(2).number(i, 6) for i in range(6)] == [0, 0, 0, 1, 1, 1] and Buckets(2).held(6) and not Buckets(6).held(6)
    assert [Buckets(4).number(i, 6) for i in range(6)] == [0, 0, 1, 2, 2, 3]
    first = torch.randn(1, 4, 3, 3)
    noises = [Buckets(0, 5).noise(b, first) for b in range(4)]
    assert noises[0] is first and all((a - b).abs().max() > 0.5 for i, a in enumerate(noises) for b in noises[:i])
    assert torch.equal(Buckets(0, 5).noise(2, first), noises[2]) and not torch.equal(Buckets(0, 6).noise(2, first), noises[2])
    assert all(Buckets(0, 5, fresh=False).noise(b, first) is first for b in range(4))
    Buckets(6).check(6)
    with pytest.raises(LoomError, match="7 buckets and 6 steps"):
        Buckets(7).check(6)


# --- nearest rows -------------------------------------------------------------------------------------------------------


def rows(n, c=16, seed=0):
    return torch.randn(n, c, generator=torch.Generator().manual_seed(seed))


def test_nearest_finds_the_permutation():
    source = rows(40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(nearest(source[order], source), order)
    assert torch.equal(nearest(3.0 * source[order], source, torch.zeros(40, dtype=torch.long)), order), "length plays no part, nor does a wrong preference"
    big = rows(CHUNK + 70, seed=2)
    assert torch.equal(nearest(big, big), torch.arange(CHUNK + 70)), "beyond one chunk"


def test_ties_go_to_the_preferred_row():
    source = rows(6)
    source[4] = source[1]
    near = source[1] + 1e-6 * source[2]
    assert nearest(near[None], source, torch.tensor([4])).tolist() == [4]
    assert nearest(near[None], source, torch.tensor([1])).tolist() == [1]
    angle = math.acos(1 - 3 * MARGIN)
    pair = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])
    assert nearest(pair[:1], pair, torch.tensor([1])).tolist() == [0], "three margins away is no tie"
    angle = math.acos(1 - 0.3 * MARGIN)
    pair = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])
    assert nearest(pair[:1], pair, torch.tensor([1])).tolist() == [1], "a third of the margin is one"


def test_a_shifted_picture_is_found_where_it_came_from():
    y, x = 8, 12
    blob, drag = Blob.of_mask(painted(10, 35, 8, 50), "box"), Drag(16, 8)
    found = dragged(blob, drag, y, x)
    source = rows(y * x, 24)
    down, right = drag.shift(FRAME, y, x)
    moved = source.view(y, x, -1).roll((down, right), (0, 1)).view(y * x, -1) + 0.01 * rows(y * x, 24, 3)
    at, old = found.new.nonzero()[:, 0], found.old.nonzero()[:, 0]
    place = torch.full((y * x,), -1).scatter(0, old, torch.arange(len(old)))
    got = old[nearest(moved[at], source[old], place[found.back[at]])]
    assert torch.equal(got, found.back[at]) and len(at) > 10
