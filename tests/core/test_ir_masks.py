"""IR-Diffusion's masks and moves: on the grid of tokens, parted, grown, and where each token of a reference goes, against plain loops."""

import numpy
import pytest
import torch
from attention_loom.core.errors import LoomError
from attention_loom.core.places import apart_on_grid, closed, covered, disjoint, on_grid, refined, without_bottom
from attention_loom.core.reposition import in_place, pasted, repositioned
from ir_scene import REFERENCES, SCENE, X, Y, box, slow_reposition
from scipy import ndimage


def test_masks_on_a_grid():
    got = on_grid(REFERENCES, Y, X)
    want = torch.zeros(2, Y, X, dtype=torch.bool)
    want[0, 1:3, 2:5] = True
    want[1, :, 1:4] = True
    assert torch.equal(got, want)
    assert torch.equal(on_grid(REFERENCES, Y, X, 0.0), want), "Otsu's threshold on masks of 0 and 1"
    dot = torch.zeros(1, 32, 48)
    dot[0, 17, 23] = 1
    assert on_grid(dot, Y, X).nonzero().tolist() == [[0, 2, 2]], "a subject smaller than a token is on the token it covers"
    assert not on_grid(torch.zeros(1, 32, 48), Y, X).any()
    assert covered(0.5 * REFERENCES, Y, X).max() == 1.0


def test_no_token_has_two_subjects_and_none_is_lost():
    near = torch.stack([box(0, 1, 0, 0.45), box(0, 1, 0.45, 1), box(0.3, 0.4, 0.1, 0.14)])
    got = apart_on_grid(near, Y, X)
    assert int(got.sum(0).max()) == 1 and got.flatten(1).any(1).all()
    crowded = apart_on_grid(near, 1, 2)
    assert int(crowded.sum(0).max()) == 1 and crowded.flatten(1).any(1).tolist() == [True, True, False]


def test_scene_masks_are_parted_and_grown():
    slight = torch.stack([box(0, 0.5, 0, 0.5), box(0.48, 1, 0, 1)])
    got = disjoint(slight, "refuse")
    assert not (got[0] * got[1]).any() and torch.equal(got[0], slight[0]), "the smaller one keeps what both have"
    deep = torch.stack([box(0, 1, 0, 0.7), box(0, 1, 0.5, 1)])
    with pytest.raises(LoomError, match="subjects 1 and 2 overlap in 42% of the smaller one"):
        disjoint(deep, "refuse")
    assert torch.equal(disjoint(deep, "first wins")[0], deep[0]) and torch.equal(disjoint(deep, "smaller wins")[1], deep[1])
    small = torch.stack([box(0.4, 0.5, 0.1, 0.2), box(0, 1, 0.5, 1)])
    grown = refined(small, 0.5)
    side = round(0.5 * (32 * 48) ** 0.5)
    rows, columns = (int(grown[0].any(d).sum()) for d in (1, 0))
    assert (rows, columns) == (side, side) and not (grown[0] * grown[1]).any() and torch.equal(grown[1], small[1])
    assert torch.equal(refined(small, 0.0), small)
    beside = torch.stack([box(0.4, 0.5, 0.1, 0.2), box(0, 1, 0.25, 1)])
    assert torch.equal(refined(beside, 0.5)[1], beside[1]) and not (refined(beside, 0.5)[0] * beside[1]).any()
    three = disjoint(torch.stack([box(0, 1, 0, 0.6), box(0.9, 1, 0.9, 1), box(0, 1, 0.3, 1)]), "first wins")
    assert int(three.sum(0).max()) == 1
    holed = box(0.2, 0.8, 0.2, 0.8).bool()
    holed[15, 24] = False
    assert torch.equal(closed(holed, 4), box(0.2, 0.8, 0.2, 0.8).bool())
    assert without_bottom(SCENE[0], 0.25)[:, 24:].sum() == 0 and torch.equal(without_bottom(SCENE[0], 0.0), SCENE[0])


def slow_refined(masks, least):
    """The spec's fourth step with scipy: close, keep within the own box, widen what is small, leave the others alone."""
    own = [mask.bool().numpy() for mask in masks]
    height, width = own[0].shape
    side = least * (height * width) ** 0.5
    reach = max(1, round(side / 2)) // 2
    for i in sorted(range(len(own)), key=lambda n: own[n].sum()):
        ys, xs = own[i].nonzero()
        top, bottom, left, right = ys.min(), ys.max(), xs.min(), xs.max()
        padded = numpy.pad(own[i], reach)
        structure = numpy.ones((2 * reach + 1,) * 2)
        eroded = ndimage.binary_erosion(ndimage.binary_dilation(padded, structure), structure, border_value=1)
        made = numpy.zeros_like(own[i])
        made[top : bottom + 1, left : right + 1] = eroded[reach : height + reach, reach : width + reach][top : bottom + 1, left : right + 1]
        tall, wide, small = bottom - top + 1 >= side, right - left + 1 >= side, made.sum() < side * side
        if small or not tall or not wide:
            n = round(side)
            first_row = min(max(0, round((top + bottom + 1 - n) / 2)), height - n) if small or not tall else top
            first_column = min(max(0, round((left + right + 1 - n) / 2)), width - n) if small or not wide else left
            last_row = first_row + n - 1 if small or not tall else bottom
            last_column = first_column + n - 1 if small or not wide else right
            made[first_row : last_row + 1, first_column : last_column + 1] = True
        for j in range(len(own)):
            if j != i:
                made &= ~own[j]
        own[i] = made
    return torch.from_numpy(numpy.stack(own)).float()


def test_scene_masks_grow_as_the_paper_has_it():
    g = torch.Generator().manual_seed(4)
    kinds = set()
    for n in range(60):
        claims = torch.zeros(3, 32, 48)
        for i in range(3):
            y, x, h, w = (int(torch.randint(low, high, (), generator=g)) for low, high in ((0, 24), (0, 40), (1, 20), (1, 28)))
            claims[i, y : y + h, x : x + w] = (torch.rand(claims[i, y : y + h, x : x + w].shape, generator=g) > 0.4).float()
            claims[i, y, x] = 1
        masks = disjoint(claims, "smaller wins" if n % 2 else "first wins")
        if not masks.flatten(1).any(1).all():
            continue
        got = refined(masks, 0.26)
        assert torch.equal(got, slow_refined(masks, 0.26))
        kinds |= {tuple(bool(m.any(1).sum() < 10) or bool(m.any(0).sum() < 10) for m in masks)}
    assert len(kinds) > 2, "small and large ones in several orders"
    soft = 0.4 * torch.ones(2, 8, 8)
    assert torch.equal(refined(soft, 0.0), soft)
    empty = torch.stack([torch.zeros(32, 48), box(0.4, 0.5, 0.1, 0.2)])
    assert not refined(empty, 0.26)[0].any() and torch.equal(refined(empty, 0.26)[1:], slow_refined(empty[1:], 0.26))


def test_the_smaller_subject_says_how_much_is_too_much():
    large, small = box(0, 1, 0, 0.5), box(0.4, 0.6, 0.46, 0.76)
    with pytest.raises(LoomError, match="overlap in 14% of the smaller one"):
        disjoint(torch.stack([large, small]), "refuse")


@pytest.mark.parametrize("side", [3, 8, 21, 200])
def test_closing_is_a_dilation_and_an_erosion_by_a_square(side):
    mask = torch.rand(40, 57, generator=torch.Generator().manual_seed(side)) > 0.9
    square = numpy.ones((2 * (side // 2) + 1,) * 2, bool)
    reach = side // 2
    padded = numpy.pad(mask.numpy(), reach)
    grown = ndimage.binary_dilation(padded, square)
    assert torch.equal(closed(mask, side), torch.from_numpy(ndimage.binary_erosion(grown, square, border_value=1)[reach:-reach, reach:-reach]))


def test_reposition_is_the_nearest_token_map():
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        reference, scene = (torch.rand(7, 9, generator=g) > 0.7 for _ in range(2))
        got = repositioned(reference, scene)
        assert [(int(s), int(dy), int(dx)) for s, (dy, dx) in zip(got.source, got.shift, strict=True)] == slow_reposition(reference, scene)
    mask = torch.rand(7, 9, generator=g) > 0.6
    same = repositioned(mask, mask)
    assert torch.equal(same.source, mask.flatten().nonzero()[:, 0]) and not same.shift.any(), "masks that are equal move nothing"
    assert torch.equal(in_place(mask, scene).source, same.source)
    assert repositioned(mask, torch.zeros_like(mask)) is None and in_place(torch.zeros_like(mask), mask) is None


def test_a_picture_is_cropped_resized_and_pasted():
    picture = torch.arange(2 * 8 * 12.0).reshape(2, 8, 12)
    reference, scene = torch.zeros(8, 12, dtype=torch.bool), torch.zeros(8, 12, dtype=torch.bool)
    reference[1:4, 2:6], scene[4:7, 7:11] = True, True
    got, mask = pasted(picture, reference, scene)
    assert torch.equal(got[:, 4:7, 7:11], picture[:, 1:4, 2:6]) and torch.equal(mask, scene), "a move alone keeps the pixels"
    ground = picture[:, ~reference].mean(1)
    assert torch.allclose(got[:, ~scene], ground[:, None].expand(-1, int((~scene).sum())))
    wide = torch.zeros_like(scene)
    wide[0:8, 0:12] = True
    same = torch.full((1, 1, 8, 12), 3.0)
    same[..., 1:4, 2:6] = 5.0
    got, mask = pasted(same, reference, wide)
    assert got.shape == same.shape and torch.allclose(got, torch.full_like(got, 5.0)) and mask.all(), "a larger place is filled"
    assert pasted(picture, reference, torch.zeros_like(scene))[0] is picture
    dot = torch.zeros_like(scene)
    dot[2, 2] = dot[5, 9] = True
    assert pasted(picture, dot, torch.roll(dot, 1, 1) & False | (torch.arange(8)[:, None] == 3) & (torch.arange(12) == 3))[1].any()
