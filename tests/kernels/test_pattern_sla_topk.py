"""Top-k blocks by pooled scores: exact counts, ties, what must not change the lists, and what is forced."""

import math

import pytest
import torch
from attention_loom.kernels import AttentionPlan, reference_attend
from attention_loom.kernels.patterns.base import Tokens
from attention_loom.kernels.patterns.sla_topk import SlaTopk
from kernel_cases import assert_close
from pattern_tools import NO_GRID, PICTURE, TEXT_FIRST, VIDEO, assert_batch_does_not_matter, assert_runs_like_reference, call, counted_density, listed, run

BARE = {"diagonal": False, "first_frame": False}


@pytest.mark.parametrize(("blocks", "keep", "count"), [(512, 0.05, 25), (512, 0.1, 51), (512, 0.15, 76), (5, 0.1, 1), (100, 0.29, 29), (7, 1.0, 7)])
def test_every_row_reads_the_same_number(blocks, keep, count):
    plan = SlaTopk(block=1, keep=keep, **BARE).blocks(call(Tokens(blocks), width=16))
    for group in range(plan.groups):
        assert {len(row) for row in listed(plan, group)} == {count}


def test_the_highest_scores_are_read():
    """Spelled out: block means, keys less their mean, the best columns of each row."""
    s = call(NO_GRID, heads=2)
    plan = SlaTopk(block=16, keep=0.3, **BARE).blocks(s)
    k = s.k - s.k.mean(2, keepdim=True)
    for h in range(2):
        q_means, k_means = ([x[0, h, a : a + 16].mean(0) for a in range(0, 150, 16)] for x in (s.q, k))
        for a, row in enumerate(listed(plan, h)):
            scores = [float(q_means[a] @ key) for key in k_means]
            assert row == set(sorted(range(10), key=lambda b: -scores[b])[:3])


def test_of_equal_scores_the_lower_column():
    s = call(NO_GRID)
    s.k[:] = 1.0
    assert listed(SlaTopk(block=16, keep=0.3, **BARE).blocks(s)) == [{0, 1, 2}] * 10


@pytest.mark.parametrize("tokens", [NO_GRID, VIDEO])
def test_the_same_vector_on_all_keys_changes_nothing(tokens):
    s = call(tokens)
    s.q, s.k = (8 * s.q).round() / 8, (8 * s.k).round() / 8  # so that sums are exact
    want = SlaTopk(block=16).blocks(s).kinds()
    s.k = s.k + torch.arange(s.k.shape[-1]) % 5 * 4.0
    assert torch.equal(SlaTopk(block=16).blocks(s).kinds(), want)


@pytest.mark.parametrize("tokens", [NO_GRID, VIDEO, TEXT_FIRST])
def test_keeping_all_is_dense(tokens):
    s = call(tokens)
    assert (SlaTopk(block=32, keep=1.0).blocks(s).kinds() == 2).all()
    assert_close("o", run(SlaTopk(block=32, keep=1.0), s), reference_attend(s.q, s.k, s.v, AttentionPlan()), 3e-6)


@pytest.mark.parametrize("tokens", [VIDEO, TEXT_FIRST])
def test_what_is_forced(tokens):
    plan = SlaTopk(block=16, keep=0.01).blocks(call(tokens))
    kinds = plan.kinds() == 2
    own, per_frame = plan.q.grid_blocks, math.ceil(tokens.inside / tokens.grid[0] / 16)
    assert kinds.diagonal(dim1=1, dim2=2).all()
    assert kinds[:, own:].all()
    assert kinds[:, :, own:].all()
    assert kinds[:, :, :per_frame].all()
    inner = kinds[:, :own, per_frame:own]
    assert inner.sum(-1).max() <= 2, "one by score, one on the diagonal"
    bare = SlaTopk(block=16, keep=0.01, **BARE).blocks(call(tokens)).kinds() == 2
    assert (bare[:, :own, :own].sum(-1) == 1).all()


def test_a_picture_has_no_first_frame():
    with_first, without = (SlaTopk(block=16, keep=0.3, first_frame=f).blocks(call(PICTURE)) for f in (True, False))
    assert torch.equal(with_first.kinds(), without.kinds())
    assert float(with_first.density()) < 0.6


def test_free_tokens_take_no_places():
    """What is read anyway does not use up the share of a row."""
    s = call(VIDEO)
    s.k[:, :, VIDEO.inside :] *= 50
    plan = SlaTopk(block=16, keep=0.25, **BARE).blocks(s)
    own = plan.q.grid_blocks
    assert (plan.kinds()[:, :own, :own].bool().sum(-1) == int(0.25 * own)).all()


def test_grouped_key_heads():
    s = call(VIDEO, heads=4, key_heads=2)
    grouped = SlaTopk(block=16).blocks(s).kinds()
    s.k = s.k.repeat_interleave(2, 1)
    assert torch.equal(SlaTopk(block=16).blocks(s).kinds(), grouped)


@pytest.mark.parametrize("pattern", [SlaTopk(block=32), SlaTopk(block=16, keep=0.1, **BARE), SlaTopk(block=32, tail="row")], ids=lambda p: p.label)
def test_runs_like_the_reference(pattern):
    assert_runs_like_reference(pattern, VIDEO, heads=4, key_heads=2)
    assert_runs_like_reference(pattern, NO_GRID, heads=2, batch=2)
    assert_runs_like_reference(pattern, TEXT_FIRST)


@pytest.mark.parametrize("tokens", [NO_GRID, VIDEO])
def test_batch_does_not_matter(tokens):
    assert_batch_does_not_matter(SlaTopk(block=16), tokens)


@pytest.mark.parametrize("tokens", [NO_GRID, TEXT_FIRST])
def test_density_is_the_counted_one(tokens):
    plan = SlaTopk(block=16).blocks(call(tokens, batch=2, heads=2))
    assert float(plan.density()) == pytest.approx(counted_density(plan), rel=1e-6)


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.01, math.nan])
def test_bad_settings_are_refused(keep):
    with pytest.raises(ValueError, match="keep of sla_topk"):
        SlaTopk(keep=keep)


def test_labels_tell_settings_apart():
    assert SlaTopk().label == "sla_topk_b128_k0.30_diagonal_first"
    assert SlaTopk(block=64, keep=0.15, **BARE).label == "sla_topk_b64_k0.15"
