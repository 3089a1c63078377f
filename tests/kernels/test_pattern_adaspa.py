"""AdaSpa and the search engine under it: what is chosen, when, from which state; against literal fp64 probabilities."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from attention_loom.kernels import AttentionPlan, FrameTable, Labels, Modulation, attend
from attention_loom.kernels.order import by_frame, raster
from attention_loom.kernels.patterns import search as engine
from attention_loom.kernels.patterns.adaspa import AdaSpa, head_levels, keep, recall_of
from attention_loom.kernels.patterns.base import Moment, Tokens
from attention_loom.kernels.patterns.search import Mask, head_ranges, recall, row_shares, search, token_order
from attention_loom.kernels.sparse import Sparse
from history_cases import BARE, TEXT, Core, NoWaiting, backends_agree, call, dense_of, play, rms


def literal_mass(s, order):
    """fp64 [b, H, nQ, nK] token by token: mean over a block's live queries of the probability that falls on each key block."""
    k = s.k.repeat_interleave(s.q.shape[1] // s.k.shape[1], 1).double()
    logits = s.scale * s.q.double() @ k.transpose(-1, -2)
    if s.plan.key_bias is not None:
        logits = logits + s.plan.key_bias.double()[:, :, None]
    p = logits.softmax(-1)
    home = order.inverse.long() // order.block
    member = torch.nn.functional.one_hot(home, order.blocks).double()
    return (member.T @ p @ member) / member.sum(0)[:, None]


def literal_mask(mass, chosen, count):
    """Row by row with Python's sort: the diagonal, the heaviest, everything of the free tokens."""
    out = torch.ones(mass.shape, dtype=torch.bool)
    for b in range(mass.shape[0]):
        for h in range(mass.shape[1]):
            for row in range(chosen):
                ranked = sorted((j for j in range(chosen) if j != row), key=lambda j: (-float(mass[b, h, row, j]), j))
                out[b, h, row, :chosen] = False
                out[b, h, row, [row, *ranked[: count - 1]]] = True
    return out


@pytest.mark.parametrize("tokens", [TEXT, BARE, Tokens(140, (1, 10, 12), 7), Tokens(4 * 30 + 9, (4, 5, 6), 9)], ids=["text", "bare", "start", "small frames"])
def test_the_search_keeps_the_heaviest_blocks_of_the_true_probabilities(tokens):
    s = call(tokens, heads=3)
    pattern = AdaSpa(block=32, sparsity=0.6, adaptive=False)
    plan = pattern.blocks(s)
    order = plan.q
    chosen = order.blocks if tokens.grid is None else order.grid_blocks
    want = literal_mask(literal_mass(s, order), chosen, pattern.counts(chosen)[0])
    assert torch.equal(s.state["found"].mask.bools(), want)
    assert torch.equal(plan.kinds().view_as(want) != 0, want)


def test_rows_keep_exactly_their_count_and_free_tokens_everything():
    s = call(Tokens(6 * 64 + 40, (6, 8, 8)), heads=4)
    pattern = AdaSpa(block=32, sparsity=0.5)
    pattern.blocks(s)
    mask, n = s.state["found"].mask.bools(), 12
    level = head_levels(s.state["found"].recall)[0]
    want = torch.tensor(pattern.counts(n))[[0, 1, 2]][torch.where(level > 0, 1, torch.where(level < 0, 2, 0))]
    assert torch.equal(mask[0, :, :n, :n].sum(-1), want[:, None].expand(-1, n))
    assert mask[..., n:, :].all()
    assert mask[..., :, n:].all()
    assert mask.diagonal(dim1=-2, dim2=-1).all()


def test_sparsity_zero_is_dense_attention():
    s = call(BARE, step=6, steps=20)
    core = Core(s.scale)
    pattern = AdaSpa(block=32, sparsity=0.0)
    pattern.learn(s, None)
    o, _ = pattern.sparse(s, core, pattern.blocks(s))
    assert float(s.densities[0]) == 1.0
    assert rms(o, dense_of(s)) < 1e-6


def test_recall_grows_with_the_budget_and_no_exchange_of_blocks_improves_it():
    s = call(Tokens(5 * 64, (5, 8, 8)), heads=2)
    order = token_order(s.tokens, 32, "cpu")
    shares = row_shares(literal_mass(s, order).float())
    found = [recall(shares, keep(shares, order, k)) for k in range(1, order.blocks + 1)]
    assert all((b >= a - 1e-7).all() for a, b in zip(found, found[1:]))
    assert torch.allclose(found[-1], torch.ones(()), atol=1e-6)
    g = torch.Generator().manual_seed(3)
    mask = keep(shares, order, 3)
    for _ in range(50):
        row = int(torch.randint(order.blocks, (), generator=g))
        have = [j for j in mask[0, 0, row].nonzero()[:, 0].tolist() if j != row]
        lack = (~mask[0, 0, row]).nonzero()[:, 0].tolist()
        out, into = have[int(torch.randint(len(have), (), generator=g))], lack[int(torch.randint(len(lack), (), generator=g))]
        other = mask.clone()
        other[0, 0, row, out], other[0, 0, row, into] = False, True
        assert recall(shares, mask)[0, 0] >= recall(shares, other)[0, 0]


# --- budgets -----------------------------------------------------------------------------------------------------------


def test_budgets_of_the_worked_examples():
    assert AdaSpa(sparsity=0.8).counts(100) == (20, 10, 30)
    assert AdaSpa(sparsity=0.9).counts(100) == (10, 5, 15)
    assert AdaSpa(sparsity=0.2).counts(100) == (80, 60, 100)
    assert AdaSpa(sparsity=0.0).counts(7) == (7, 7, 7)
    assert AdaSpa(sparsity=0.99).counts(10) == (1, 1, 1)


@pytest.mark.parametrize(("qualifying", "moved"), [(24, 12), (13, 12), (5, 5), (0, 0)])
def test_as_many_heads_get_more_as_get_less(qualifying, moved):
    recalls = torch.linspace(0.5, 0.79, 24).flip(0)
    recalls[:qualifying] += 0.35 - 0.3 * (qualifying == 24) * (recalls[:qualifying] - 0.5) / 0.29
    recalls = recalls.clamp(max=1.0)
    assert int((recalls > 0.8).sum()) == qualifying
    shuffle = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    level = head_levels(recalls[shuffle][None])[0]
    assert int((level == 1).sum()) == int((level == -1).sum()) == moved
    if moved:
        assert recalls[shuffle][level == 1].min() >= recalls[shuffle][level != 1].max()
        assert recalls[shuffle][level == -1].max() <= recalls[shuffle][level != -1].min()


def test_moving_blocks_between_heads_keeps_the_total_within_a_block_a_row():
    for blocks in range(3, 120):
        for sparsity in (0.5, 0.75, 0.8, 0.9):
            even, fewer, more = AdaSpa(sparsity=sparsity).counts(blocks)
            assert abs(fewer + more - 2 * even) <= 2, (blocks, sparsity)


def test_each_batch_element_ranks_its_own_heads():
    a, b = torch.tensor([0.9, 0.1, 0.85, 0.2]), torch.tensor([0.1, 0.2, 0.95, 0.3])
    both = head_levels(torch.stack([a, b]))
    assert both.tolist() == [[1, -1, 1, -1], [-1, 0, 1, 0]]


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("heads", [1, 3, 4])
def test_the_lists_never_outgrow_the_bound(adaptive, heads):
    for seed in range(3):
        for sparsity in (0.0, 0.3, 0.6, 0.9):
            s = call(Tokens(4 * 64 + 10, (4, 8, 8)), heads=heads, seed=seed, batch=2)
            AdaSpa(block=32, sparsity=sparsity, adaptive=adaptive).blocks(s)
            mask = s.state["found"].mask
            assert int(mask.bools().sum()) <= mask.capacity


# --- the engine --------------------------------------------------------------------------------------------------------


def test_few_heads_at_a_time_find_the_same(monkeypatch):
    s = call(TEXT, heads=6, batch=2)
    pattern = AdaSpa(block=32, sparsity=0.5)
    pattern.blocks(s)
    monkeypatch.setattr(engine, "BYTES", 1)
    t = replace(s, state={})
    pattern.blocks(t)
    assert torch.equal(s.state["found"].mask.words, t.state["found"].mask.words)
    assert torch.equal(s.state["found"].recall, t.state["found"].recall)


@pytest.mark.parametrize(("heads", "key_heads"), [(6, 6), (8, 2), (8, 1), (12, 4), (1, 1)])
def test_head_ranges_cover_all_heads_and_never_tear_a_group(heads, key_heads):
    group = heads // key_heads
    for at_once in range(1, heads + 2):
        ranges = list(head_ranges(heads, key_heads, at_once))
        assert [h for a, b in ranges for h in range(a, b)] == list(range(heads))
        for a, b in ranges:
            assert b - a <= at_once
            assert a // group == (b - 1) // group or (a % group == 0 and b % group == 0)


@pytest.mark.parametrize("at_once", [1, 10**9])
def test_heads_that_share_keys_are_searched_with_those_keys(monkeypatch, at_once):
    monkeypatch.setattr(engine, "BYTES", at_once)
    s = call(BARE, heads=4)
    s.k, s.v = s.k[:, :2], s.v[:, :2]
    AdaSpa(block=32, sparsity=0.6, adaptive=False).blocks(s)
    want = literal_mask(literal_mass(s, raster(150, 32)), 5, 2)
    assert torch.equal(s.state["found"].mask.bools(), want)


def test_dropped_keys_have_no_mass():
    s = call(BARE)
    bias = torch.zeros(1, 1, 150)
    bias[..., 32:64] = -torch.inf
    s.plan = AttentionPlan(key_bias=bias)
    AdaSpa(block=32, sparsity=0.6, adaptive=False).blocks(s)
    assert not s.state["found"].mask.bools()[..., [0, 2, 3, 4], 1].any()


def test_blocks_that_labels_forbid_are_not_chosen():
    s = call(BARE)
    half = (torch.arange(150) >= 64).to(torch.int8)
    s.plan = AttentionPlan(labels=Labels(half[None], (1 << half.long())[None], 2))
    AdaSpa(block=32, sparsity=0.6, adaptive=False).blocks(s)
    mask = s.state["found"].mask.bools()
    assert not mask[..., :2, 2:].any()
    assert not mask[..., 2:, :2].any()


def test_a_modulated_call_is_searched_with_its_own_normalisation():
    """The log-sum-exp of modulated logits does not belong to the logits the mass is made of."""
    s = call(BARE)
    ids = (torch.arange(150) // 50).to(torch.int16)
    table = FrameTable(ids, ids, torch.ones(3, 3, dtype=torch.uint8), torch.tensor([1.0, 0.2]))
    s.plan = AttentionPlan(modulation=Modulation(frames=table))
    pattern = AdaSpa(block=32, sparsity=0.6, adaptive=False)
    pattern.learn(s, torch.full((1, 2, 150), 5.0))
    want = literal_mass(replace(s, plan=AttentionPlan()), raster(150, 32)).float()
    got = recall_of(s.state)
    assert torch.allclose(got, recall(want, s.state["found"].mask.bools()), atol=1e-5)


def test_frames_are_padded_to_blocks_unless_that_is_a_waste():
    assert token_order(Tokens(3 * 64, (3, 8, 8)), 32, "cpu") is by_frame(3 * 64, 32, (3, 8, 8), 0, "cpu")
    order = token_order(Tokens(4 * 30 + 9, (4, 5, 6), 9), 32, "cpu")
    assert (order.blocks, order.grid_blocks) == (5, 4)  # 120 grid tokens end to end, 9 free ones


def test_masks_are_kept_as_bits():
    """HunyuanVideo at 720p, one layer: 931 x 931 blocks of 128, 24 heads."""
    assert 24 * 931 * -(-931 // 8) == 2_614_248
    s = call(TEXT, heads=2)
    AdaSpa(block=32).blocks(s)
    words = s.state["found"].mask.words
    assert words.shape == (1, 2, 9, 2)
    assert words.dtype == torch.uint8


def test_a_mask_of_a_plan_gives_the_plan_back():
    s = call(TEXT, heads=3)
    plan = AdaSpa(block=32, sparsity=0.5).blocks(s)
    assert torch.equal(Mask.of(plan).plan().kinds(), plan.kinds())


def test_a_search_waits_for_nothing():
    for tokens in (TEXT, BARE):
        s, lse = call(tokens, heads=3), torch.zeros(1, 3, tokens.count)
        token_order(tokens, 32, "cpu")  # orders are made once, on the host
        with NoWaiting():
            AdaSpa(block=32).learn(s, lse)
            s.state["found"].mask.bools()
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        lse.max().item()


# --- schedule ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def passes(monkeypatch):
    """The log-sum-exp each pass over q and k was given."""
    seen = []
    real = engine.block_mass

    def counted(q, k, lse, *args, **options):
        seen.append(lse)
        return real(q, k, lse, *args, **options)

    monkeypatch.setattr(engine, "block_mass", counted)
    return seen


def test_fifty_steps_cost_eleven_dense_ones_and_two_passes(passes):
    run = play(AdaSpa(block=32, sparsity=0.5), 50)
    assert [step.core.dense for step in run] == [1] * 11 + [0] * 39
    assert [step.core.sparse for step in run] == [0] * 11 + [1] * 39
    assert [step for step, x in enumerate(run) if x.core.calls[0][1]] == [10]
    assert len(passes) == 2
    assert passes[0] is not None
    assert torch.equal(passes[0], passes[1])  # the old log-sum-exp
    assert run[9].note == "dense: warm-up"
    assert run[10].note == "dense: search"
    assert run[11].note == run[31].note == run[49].note == "sparse"
    assert run[30].note == "sparse: search"
    for step in run[:11]:
        assert torch.equal(step.o, dense_of(step.s))
    for step in run[11:]:
        assert len(step.s.densities) == 1
    assert run[-1].s.state["found"].lse is None


@pytest.mark.parametrize(("steps", "dense"), [(1, 1), (2, 2), (4, 2), (8, 2), (10, 2), (11, 3), (20, 5)])
def test_short_runs_search_at_step_one(steps, dense):
    run = play(AdaSpa(block=32), steps)
    assert sum(step.core.dense for step in run) == dense


def test_search_steps_of_the_defaults_and_of_the_extreme_setting():
    assert AdaSpa().search_steps(50) == (10, 30)
    assert AdaSpa(at=(0.0, 0.6)).search_steps(50) == (0, 30)
    assert AdaSpa().search_steps(10) == (1,)
    run = play(AdaSpa(block=32, at=(0.0, 0.6)), 20)
    assert [step.note for step in run[:2]] == ["dense: search", "sparse"]


def test_a_sampler_that_evaluates_between_steps_searches_once_each():
    run = play(AdaSpa(block=32), 20, at=[i / 2 for i in range(40)])
    assert [step.note for step in run].count("dense: search") == 1
    assert [step.note for step in run].count("sparse: search") == 1
    assert run[8].note == "dense: search"
    assert run[24].note == "sparse: search"


def test_a_run_entered_late_searches_at_its_first_step():
    run = play(AdaSpa(block=32), 20, at=[15, 16])
    assert [step.note for step in run] == ["dense: search", "sparse"]


def test_without_a_number_of_steps_progress_decides():
    state, notes = {}, []
    for progress in (0.0, 0.1, 0.2, 0.3, 0.6, 0.7):
        s = call(TEXT, state=state)
        s.moment = Moment(progress, 0)
        AdaSpa(block=32).run(s, Core(s.scale))
        notes.append(s.note)
    assert notes == ["dense: warm-up", "dense: warm-up", "dense: search", "sparse", "sparse: search", "sparse"]


def test_the_second_search_on_unchanged_q_and_k_changes_nothing():
    run = play(AdaSpa(block=32, sparsity=0.5), 20, at=[4, 5])
    before = run[-1].s.state["found"]
    play(AdaSpa(block=32, sparsity=0.5), 20, at=[12], state=run[-1].s.state)
    after = run[-1].s.state["found"]
    assert after is not before
    assert torch.equal(after.mask.words, before.mask.words)
    assert torch.allclose(after.recall, before.recall, atol=2e-6)


@pytest.mark.parametrize("lse", ["fp32", "fp16"])
@pytest.mark.parametrize("factor", [1.3, 0.7, 1e4])
def test_an_old_log_sum_exp_still_gives_shares_that_sum_to_one(factor, lse):
    pattern = AdaSpa(block=32, sparsity=0.5, lse=lse)
    s = call(TEXT, step=4, steps=20)
    pattern.run(s, Core(s.scale))
    kept = s.state["found"].lse
    assert kept.dtype == (torch.float16 if lse == "fp16" else torch.float32)
    t = replace(s, q=s.q * factor)
    order = token_order(t.tokens, 32, "cpu")
    (shares,) = search(t, order, kept, lambda part: (row_shares(part.mass()),))
    assert shares.isfinite().all()
    assert torch.allclose(shares.sum(-1), torch.ones(()), atol=1e-5)
    pattern.learn(t, kept)
    assert ((recall_of(t.state) > 0) & (recall_of(t.state) <= 1 + 1e-5)).all()


# --- state -------------------------------------------------------------------------------------------------------------


def test_another_run_in_the_same_state_searches_again():
    pattern, state = AdaSpa(block=32, sparsity=0.5), {}
    play(pattern, 20, state=state)
    again = play(pattern, 20, state=state, seed=7)
    fresh = play(pattern, 20, seed=7)
    assert [x.note for x in again] == [x.note for x in fresh]
    assert all(torch.equal(a.o, b.o) for a, b in zip(again, fresh))


def test_a_run_of_the_same_state_that_starts_behind_the_search_does_not_trust_it():
    """The noise rises again but not as far as to before the search: the mask is of other q and k all the same."""
    pattern, state = AdaSpa(block=32), {}
    play(pattern, 20, state=state)
    assert play(pattern, 20, state=state, at=[10])[0].note == "dense: search"


@pytest.mark.parametrize("other", [{"tokens": BARE}, {"heads": 4}, {"batch": 2}, {"width": 64}])
def test_another_shape_never_meets_an_old_mask(other):
    pattern, state = AdaSpa(block=32), {}
    play(pattern, 20, state=state, at=[4, 5, 6])
    assert play(pattern, 20, state=state, at=[7], **other)[0].note == "dense: search"


def test_another_number_of_steps_searches_again():
    pattern, state = AdaSpa(block=32), {}
    play(pattern, 20, state=state, at=[4, 5])
    assert play(pattern, 25, state=state, at=[15])[0].note == "dense: search"


def test_nothing_is_left_when_the_state_is_cleared():
    state = {}
    play(AdaSpa(block=32), 20, state=state, at=[4, 5])
    held = [weakref.ref(x) for x in (state["found"].lse, state["found"].mask.words, state["found"].recall)]
    state.clear()
    gc.collect()
    assert all(x() is None for x in held)


@pytest.mark.parametrize("tail", ["off", "row"])
def test_guided_batches_in_either_order_equal_runs_of_one_conditioning_each(tail):
    pattern = AdaSpa(block=32, sparsity=0.5, tail=tail)
    cond, uncond = call(TEXT, seed=1), call(TEXT, seed=2)
    together, alone = ({}, {}), ({}, {})
    for step in range(11):
        moment = Moment(step / 11, 11)
        sides = ((0, cond), (1, uncond)) if step % 3 else ((1, uncond), (0, cond))
        q, k, v = (torch.cat([getattr(x, name) + 0.01 * step for _, x in sides]) for name in "qkv")
        both = attend(q, k, v, AttentionPlan(blocks=Sparse(pattern, TEXT, moment, tuple((1, together[i]) for i, _ in sides))), backend="chunked")
        for row, (i, _) in enumerate(sides):
            one = slice(row, row + 1)
            plan = AttentionPlan(blocks=Sparse(pattern, TEXT, moment, ((1, alone[i]),)))
            assert torch.equal(both[one], attend(q[one], k[one], v[one], plan, backend="chunked"))
    assert not torch.equal(together[0]["found"].mask.words, together[1]["found"].mask.words)


def test_the_log_sum_exp_is_handed_on_where_the_caller_wants_it():
    state = {}
    for step in (3, 4, 5):
        s = replace(call(TEXT, step=step, steps=20, state=state), lse=True)
        o, lse = AdaSpa(block=32).run(s, Core(s.scale))
        assert lse is not None
        assert lse.shape == o.shape[:3]
    o, lse = AdaSpa(block=32).run(call(TEXT, step=4, steps=20), Core(s.scale))
    assert lse is None


# --- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"sparsity": 1.0}, "sparsity"), ({"sparsity": -0.1}, "sparsity"), ({"at": ()}, "searches at"), ({"at": (0.6, 0.2)}, "searches at"), ({"at": (0.2, 1.0)}, "searches at")],
)
def test_settings_without_meaning_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        AdaSpa(**settings)


def test_the_label_says_the_settings():
    assert AdaSpa(block=64).label == "adaspa_b64_s0.80_adaptive"


@pytest.mark.timeout(120)
def test_the_triton_kernels_give_the_same():
    assert backends_agree(AdaSpa(block=64, sparsity=0.5), 20, [4, 5, 12]) == ["dense: search", "sparse", "sparse: search"]
