"""Kinds of tiles against a brute-force look at every pair of every tile."""

import torch
from attention_loom.kernels import MASKED, DistanceTable, FrameTable, Labels
from attention_loom.kernels.tiles import EMPTY, MIXED, PLAIN, UNIFORM, distance_kinds, frame_kinds, label_kinds
from hypothesis import given, settings
from hypothesis import strategies as st


def exact(classes: torch.Tensor, bm: int, bn: int) -> torch.Tensor:
    """Kind of each tile of an [Nq,Nk] matrix of classes."""
    rows = []
    for tile_rows in classes.split(bm):
        row = []
        for tile in tile_rows.split(bn, dim=1):
            kinds = set(tile.flatten().tolist())
            row.append(EMPTY if kinds == {MASKED} else PLAIN if kinds == {0} else UNIFORM if len(kinds) == 1 else MIXED)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.uint8)


@st.composite
def problems(draw):
    seed, n_q, n_k = draw(st.integers(0, 2**20)), draw(st.integers(1, 70)), draw(st.integers(1, 70))
    bm, bn = draw(st.sampled_from([4, 8, 16])), draw(st.sampled_from([4, 8]))
    return torch.Generator().manual_seed(seed), n_q, n_k, bm, bn, draw(st.booleans())


@given(problems())
@settings(deadline=None, max_examples=60)
def test_frame_kinds_are_exact(problem):
    g, n_q, n_k, bm, bn, sort = problem
    ids = [torch.randint(-1, 5, (n,), generator=g).to(torch.int16) for n in (n_q, n_k)]
    ids = [x.sort().values for x in ids] if sort else ids
    classes = torch.tensor([0, 0, 1, 2, MASKED])[torch.randint(0, 5, (5, 5), generator=g)].to(torch.uint8)
    t = FrameTable(*ids, classes, torch.tensor([1.0, 0.9, 0.5]))
    pairs = classes.long()[ids[0].long().clamp(min=0)][:, ids[1].long().clamp(min=0)]
    pairs[ids[0] < 0] = 0
    pairs[:, ids[1] < 0] = 0
    assert torch.equal(frame_kinds(t, bm, bn)[0], exact(pairs, bm, bn))


@given(problems())
@settings(deadline=None, max_examples=60)
def test_distance_kinds_never_promise_too_much(problem):
    g, n_q, n_k, bm, bn, outside = problem
    pos = [torch.arange(n, dtype=torch.int32) for n in (n_q, n_k)]
    if outside:
        for x in pos:
            x[torch.rand(x.shape, generator=g) < 0.1] = -1
    classes = torch.tensor([0, 0, 1, 2, MASKED])[torch.randint(0, 5, (9,), generator=g)].to(torch.uint8).repeat_interleave(8)
    t = DistanceTable(*pos, classes, torch.tensor([1.0, 0.9, 0.5]))
    pairs = classes.long()[(pos[0][:, None] - pos[1][None, :]).abs()]
    pairs[pos[0] < 0] = 0
    pairs[:, pos[1] < 0] = 0
    got, want = distance_kinds(t, bm, bn)[0], exact(pairs, bm, bn)
    assert ((got == want) | (got == MIXED)).all()
    if not outside:
        assert torch.equal(got, want)


@given(problems())
@settings(deadline=None, max_examples=60)
def test_label_kinds_are_exact(problem):
    g, n_q, n_k, bm, bn, runs = problem
    label = torch.randint(0, 4, (2, n_k), generator=g).to(torch.int8)
    allow = torch.randint(0, 16, (2, n_q), generator=g)
    if runs:
        label, allow = label.sort(-1).values, allow.sort(-1).values
    got = label_kinds(Labels(label, allow, 4), bm, bn)
    for b in range(2):
        admitted = (allow[b][:, None] >> label[b].long()[None, :]) & 1
        assert torch.equal(got[b], exact(torch.where(admitted == 1, 0, MASKED), bm, bn))


def test_ultravico_at_video_size_mostly_runs_in_plain_and_uniform_tiles():
    """Wan at 3x, 832x480: 63 frames of 1560 tokens. Memory stays O(tiles) and few tiles need a look at each pair."""
    frames, per_frame = 63, 1560
    ids = (torch.arange(frames * per_frame) // per_frame).to(torch.int16)
    apart = (torch.arange(frames)[:, None] - torch.arange(frames)[None, :]).abs()
    classes = (apart > 10).to(torch.uint8)
    classes[0, 21:] = MASKED
    kinds = frame_kinds(FrameTable(ids, ids, classes, torch.tensor([1.0, 0.9])), 128, 64)
    share = [(kinds == kind).float().mean().item() for kind in (PLAIN, UNIFORM, MIXED, EMPTY)]
    assert share[2] < 0.01
    assert share[3] > 0.005
