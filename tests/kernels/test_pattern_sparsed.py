"""SparseD: budgets of two groups, isolation between them, one search in a run."""

import hashlib
import math
from dataclasses import replace

import pytest
import torch
from attention_loom.kernels import AttentionPlan, attend
from attention_loom.kernels.patterns import search as engine
from attention_loom.kernels.patterns.base import Moment, Tokens
from attention_loom.kernels.patterns.search import token_order
from attention_loom.kernels.patterns.sparsed import SparseD, agreement_of, kept
from attention_loom.kernels.selection import topk_mask
from attention_loom.kernels.sparse import Sparse
from history_cases import BARE, TEXT, Core, NoWaiting, backends_agree, call, dense_of, play, rms

EDIT = Tokens(160 + 110, (1, 10, 16), 60)
"""A picture of five blocks of 32 between a context of 60 and one of 50 tokens: four blocks, the last one with 14."""


def literal_importance(s, order, only=None):
    """fp64 [b, H, nQ, nK]: mean over live pairs of the probability, of all keys or renormalised over key blocks [0, only)."""
    logits = s.scale * s.q.double() @ s.k.double().transpose(-1, -2)
    if s.plan.key_bias is not None:
        logits = logits + s.plan.key_bias.double()[:, :, None]
    home = order.inverse.long() // order.block
    if only is not None:
        logits = logits.masked_fill(home >= only, -math.inf)
    member = torch.nn.functional.one_hot(home, order.blocks).double()
    live = member.sum(0)
    return (member.T @ logits.softmax(-1) @ member) / live[:, None] / live


def literal_mask(s, pattern):
    order = token_order(s.tokens, pattern.block, "cpu")
    n, g = order.blocks, order.blocks if s.tokens.grid is None else order.grid_blocks
    out = torch.zeros(s.q.shape[0], s.q.shape[1], n, n, dtype=torch.bool)
    over_g, over_all = literal_importance(s, order, g), literal_importance(s, order)

    def best(row, columns, count):
        return sorted(columns, key=lambda j: (-float(row[j]), j))[:count]

    for b in range(out.shape[0]):
        for h in range(out.shape[1]):
            for a in range(n):
                keep_g = best(over_g[b, h, a], range(g), math.floor(g * pattern.keep) + 1)
                if pattern.context == "joint-top":
                    keep_c = [j for j in best(over_all[b, h, a], range(n), math.floor(n * pattern.keep) + 1) if j >= g]
                else:
                    keep_c = best(over_all[b, h, a], range(g, n), math.floor((n - g) * pattern.keep) + 1)
                out[b, h, a, keep_g + keep_c] = True
    return out


def found(pattern, s):
    pattern.learn(s, None)
    return s.state["found"].bools()


@pytest.mark.parametrize(("blocks", "share", "want"), [(10, 0.3, 4), (3, 0.5, 2), (1, 0.25, 1), (10, 1.0, 10), (100, 0.29, 30), (4, 0.01, 1)])
def test_row_counts_of_the_worked_examples(blocks, share, want):
    assert kept(share, blocks) == want


@pytest.mark.parametrize("tokens", [EDIT, BARE], ids=["edit", "bare"])
@pytest.mark.parametrize("context", ["separate", "joint-top"])
def test_the_mask_is_that_of_the_true_probabilities(tokens, context):
    s = call(tokens, heads=3)
    pattern = SparseD(block=32, keep=0.3, context=context, keep_context=0)
    assert torch.equal(found(pattern, s), literal_mask(s, pattern))


def test_rows_keep_their_count_in_both_groups():
    mask = found(SparseD(block=32, keep=0.4, keep_context=0), call(EDIT, heads=3))
    assert (mask[..., :5].sum(-1) == 3).all()
    assert (mask[..., 5:].sum(-1) == 2).all()


def test_joint_budgets_may_leave_the_context_with_less():
    mask = found(SparseD(block=32, keep=0.2, context="joint-top", keep_context=0), call(EDIT, heads=3))
    assert (mask[..., :5].sum(-1) == 2).all()
    assert (mask[..., 5:].sum(-1) <= 2).all()


def test_a_short_context_is_read_whole_and_reads_everything():
    mask = found(SparseD(block=32, keep=0.2), call(EDIT, heads=2))
    assert mask[..., 5:].all()
    assert mask[..., 5:, :].all()
    assert (mask[..., :5, :5].sum(-1) == 2).all()
    assert not found(SparseD(block=32, keep=0.2, keep_context=109), call(EDIT, heads=2))[..., 5:].all()


def test_keeping_everything_is_dense_attention():
    for tokens in (EDIT, BARE):
        s = call(tokens)
        pattern = SparseD(block=32, keep=1.0, keep_context=0)
        o, _ = pattern.sparse(s, Core(s.scale), pattern.blocks(s))
        assert float(s.densities[0]) == pytest.approx(1.0)
        assert rms(o, dense_of(s)) < 1e-6


def test_a_context_that_absorbs_all_attention_changes_nothing_in_the_other_group():
    pattern = SparseD(block=32, keep=0.3, keep_context=0)
    s = call(EDIT, heads=8)
    lone = replace(s, tokens=Tokens(160, (1, 10, 16)), q=s.q[:, :, 60:220], k=s.k[:, :, 60:220], v=s.v[:, :, 60:220], state={})
    bias = torch.zeros(1, 1, 270)
    bias[..., :60], bias[..., 220:] = 20.0, 20.0
    s.plan = AttentionPlan(key_bias=bias)
    isolated = found(pattern, s)[..., :5, :5]
    assert torch.equal(isolated, found(pattern, lone))
    order = token_order(s.tokens, 32, "cpu")
    shared = topk_mask(literal_importance(s, order)[..., :5], kept(0.3, 5))[..., :5, :]
    assert not torch.equal(isolated, shared)


def test_the_bound_on_the_lists_holds():
    for context in ("separate", "joint-top"):
        for keep_context in (0, 1024):
            for keep in (0.1, 0.5, 1.0):
                s = call(EDIT, heads=3, batch=2)
                mask = found(SparseD(block=32, keep=keep, context=context, keep_context=keep_context), s)
                assert int(mask.sum()) <= s.state["found"].capacity


def test_a_search_waits_for_nothing():
    for keep_context in (0, 1024):
        s = call(EDIT, heads=3)
        token_order(EDIT, 32, "cpu")
        with NoWaiting():
            SparseD(block=32, keep_context=keep_context).learn(s, None)


# --- schedule and state ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "e"), [(50, 11), (4, 1), (128, 26), (20, 5), (15, 4)])
def test_the_search_step(steps, e):
    assert SparseD().search_step(steps) == e


@pytest.mark.parametrize(("steps", "dense"), [(50, 12), (4, 2), (1, 1)])
def test_dense_until_the_search_and_sparse_behind_it(steps, dense, monkeypatch):
    passes = []
    real = engine.block_mass
    monkeypatch.setattr(engine, "block_mass", lambda *args, **options: passes.append(1) or real(*args, **options))
    run = play(SparseD(block=32), steps)
    assert [x.core.dense for x in run] == [1] * dense + [0] * (steps - dense)
    assert [x.core.sparse for x in run] == [0] * dense + [1] * (steps - dense)
    assert len(passes) == (steps > 1)
    if steps > 1:
        assert run[dense - 1].note == "dense: search"
        assert {x.note for x in run[dense:]} == {"sparse"}


def test_a_second_call_at_the_step_of_the_search_stays_dense():
    run = play(SparseD(block=32), 20, at=[4, 5, 5, 5.5, 6])
    assert [x.note for x in run] == ["dense: warm-up", "dense: search", "dense: warm-up", "sparse", "sparse"]


def _hash(step):
    plan = step.core.calls[0][0]
    return hashlib.sha256(plan.full.ptr.numpy().tobytes() + plan.full.col.numpy().tobytes()).hexdigest()


def test_the_mask_stays_and_every_branch_has_its_own():
    a, b = play(SparseD(block=32), 50, at=[11, 12, 30, 49], seed=1), play(SparseD(block=32), 50, at=[11, 12], seed=2)
    assert _hash(a[1]) == _hash(a[2]) == _hash(a[3])
    assert _hash(a[1]) != _hash(b[1])


def test_another_run_or_number_of_steps_or_size_searches_again():
    pattern, state = SparseD(block=32), {}
    play(pattern, 20, state=state, at=[5, 6, 7])
    again = play(pattern, 20, state=state, at=[5, 6], seed=9)
    assert [x.note for x in again] == ["dense: search", "sparse"]
    assert _hash(again[1]) == _hash(play(pattern, 20, at=[5, 6], seed=9)[1])
    assert play(pattern, 25, state=state, at=[20])[0].note == "dense: search"
    assert play(pattern, 25, state=state, at=[21], tokens=BARE)[0].note == "dense: search"


def test_the_meter_compares_with_a_fresh_search_once(monkeypatch):
    pattern, state = SparseD(block=32, meter=True), {}
    play(pattern, 20, state=state, at=[5, 6, 11])
    assert agreement_of(state) is None
    play(pattern, 20, state=state, at=[12])
    assert float(agreement_of(state)) == 1.0
    first = state["agreement"]
    play(pattern, 20, state=state, at=[13], seed=3)
    assert state["agreement"] is first
    drifted = {}
    play(pattern, 20, state=drifted, at=[5])
    play(pattern, 20, state=drifted, at=[12], seed=3)
    assert 0.0 < float(agreement_of(drifted)) < 1.0


@pytest.mark.parametrize("tokens", [EDIT, BARE], ids=["edit", "bare"])
def test_guided_batches_equal_runs_of_one_conditioning_each(tokens):
    pattern = SparseD(block=32, keep=0.3, keep_context=0)
    cond, uncond = call(tokens, seed=1), call(tokens, seed=2)
    together, alone = ({}, {}), ({}, {})
    for step in range(5):
        moment = Moment(step / 5, 5)
        sides = ((0, cond), (1, uncond)) if step % 2 else ((1, uncond), (0, cond))
        q, k, v = (torch.cat([getattr(x, name) + 0.01 * step for _, x in sides]) for name in "qkv")
        both = attend(q, k, v, AttentionPlan(blocks=Sparse(pattern, tokens, moment, tuple((1, together[i]) for i, _ in sides))), backend="chunked")
        for row, (i, _) in enumerate(sides):
            one = slice(row, row + 1)
            plan = AttentionPlan(blocks=Sparse(pattern, tokens, moment, ((1, alone[i]),)))
            assert torch.equal(both[one], attend(q[one], k[one], v[one], plan, backend="chunked"))
    assert not torch.equal(together[0]["found"].words, together[1]["found"].words)


def test_sparse_steps_run_the_mask_of_the_state():
    run = play(SparseD(block=32), 10, tokens=TEXT)
    want = attend(run[9].s.q, run[9].s.k, run[9].s.v, AttentionPlan(blocks=run[9].s.state["found"].plan()), scale=run[9].s.scale, backend="chunked")
    assert torch.equal(run[9].o, want)


@pytest.mark.parametrize("settings", [{"keep": 0.0}, {"keep": 1.1}, {"skip": 1.0}, {"skip": -0.1}, {"context": "both"}])
def test_settings_without_meaning_are_refused(settings):
    with pytest.raises(ValueError, match="sparsed"):
        SparseD(**settings)


@pytest.mark.timeout(120)
def test_the_triton_kernels_give_the_same():
    assert backends_agree(SparseD(block=64, keep=0.3), 20, [5, 6]) == ["dense: search", "sparse"]
