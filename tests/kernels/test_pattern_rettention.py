"""Re-ttention: the identity it rests on, its schedule, its cache and memory; and the window patterns it brings along."""

import gc
import weakref
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from attention_loom.kernels import AttentionPlan, BlockPlan, FrameTable, Labels, Modulation, attend
from attention_loom.kernels.block_mask import admitted
from attention_loom.kernels.builders import block_list
from attention_loom.kernels.order import raster
from attention_loom.kernels.patterns import rettention as module
from attention_loom.kernels.patterns.adaspa import AdaSpa
from attention_loom.kernels.patterns.band import FrameBand, pairs
from attention_loom.kernels.patterns.base import Moment, Pattern, Tokens
from attention_loom.kernels.patterns.dense import Dense
from attention_loom.kernels.patterns.draft import Draft
from attention_loom.kernels.patterns.radial import Radial
from attention_loom.kernels.patterns.residual import Residual, size
from attention_loom.kernels.patterns.rettention import Rettention, covered, grown
from attention_loom.kernels.patterns.sparsed import SparseD
from attention_loom.kernels.sparse import Sparse
from history_cases import BARE, TEXT, Core, NoWaiting, backends_agree, call, dense_of, play, rms

BASES = {
    "auto": None,
    "band": FrameBand(block=32, density=0.2),
    "tiles": FrameBand(block=32, spatial="tiles"),
    "radial": Radial(block=32),
    "draft": Draft(block=32, sparsity=0.6),
    "adaspa": AdaSpa(block=32, sparsity=0.6),
    "sparsed": SparseD(block=32, keep=0.3, keep_context=0),
}


@dataclass(frozen=True)
class Scattered(Pattern):
    """Random blocks for each head; ``lost`` rows of blocks read nothing."""

    name: ClassVar[str] = "scattered"
    reads: ClassVar = "geometry"

    seed: int = 0
    lost: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        return f"scattered{self.seed}"

    def blocks(self, s):
        order = raster(s.tokens.count, self.block)
        heads = s.q.shape[1]
        mask = torch.rand(heads, order.blocks, order.blocks, generator=torch.Generator().manual_seed(self.seed)) < 0.4
        mask[:, list(self.lost)] = False
        return BlockPlan(order, order, block_list(mask), torch.arange(heads, dtype=torch.int32)[None])


def pattern(base, **settings):
    return Rettention(**({"base": base, "start": 0.25, "every": 5, "block": 32, "cache": "fp32"} | settings))


# --- the identity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tokens"),
    [pytest.param(name, tokens, id=f"{name}-{where}") for name in BASES for where, tokens in (("text", TEXT), ("bare", BARE)) if tokens.grid or name not in ("radial", "draft")],
)
def test_unchanged_inputs_give_the_dense_output_right_after_a_refresh(name, tokens):
    p = pattern(BASES[name])
    p.check(tokens)
    run = play(p, 20, tokens=tokens, at=[5, 6])
    want = dense_of(run[0].s)
    assert rms(run[0].o, want) < 1e-6
    assert rms(run[1].o, want) < 1e-6
    assert run[1].core.sparse == 1
    assert run[1].core.dense == 0
    assert len(run[1].s.densities) == 1
    alone, _ = Core(run[1].s.scale)(run[1].s.q, run[1].s.k, run[1].s.v, AttentionPlan(blocks=run[1].core.calls[0][0]), False)
    assert rms(alone, want) > 1e-3  # the repair has something to repair


@pytest.mark.parametrize(("dtype", "cache"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float16, "bf16"), (torch.float32, "bf16")])
def test_the_identity_holds_in_half_precision(dtype, cache):
    p, state = pattern(Radial(block=32), cache=cache), {}
    outs = []
    for step in (5, 6):
        s = call(TEXT, step=step, steps=20, state=state)
        s = replace(s, q=s.q.to(dtype), k=s.k.to(dtype), v=s.v.to(dtype))
        outs.append(p.run(s, Core(s.scale))[0])
    assert outs[1].dtype == dtype
    want = dense_of(replace(s, q=s.q.float(), k=s.k.float(), v=s.v.float()))
    assert rms(outs[1], want) <= 4e-3


def test_half_the_cache_costs_less_than_half_a_percent_in_int8():
    """A narrow window: R is more than half of the output. fp8 is coarser and stays a choice."""
    errors, tokens = {}, Tokens(3 * 256 + 40, (3, 16, 16))
    for cache in ("bf16", "int8", "fp8"):
        run = play(pattern(FrameBand(block=32, density=0.03), cache=cache), 20, tokens=tokens, at=[5, 6], width=64)
        errors[cache] = rms(run[1].o, dense_of(run[1].s))
        residual = run[1].s.state["refresh"].residual
        assert residual.values.element_size() == {"bf16": 2, "int8": 1, "fp8": 1}[cache]
        held = residual.values.nbytes + (0 if residual.scales is None else residual.scales.nbytes)
        assert held == size(run[1].o.shape, cache)
    assert errors["int8"] <= errors["bf16"] + 0.5e-2
    assert errors["fp8"] <= errors["bf16"] + 2e-2


@pytest.mark.parametrize(("precision", "group", "error"), [("fp8", 128, 0.04), ("int8", 1, 0.01)])
@pytest.mark.parametrize("rows", [1, 128, 150])
def test_scales_follow_each_head_and_group_of_rows(precision, group, error, rows):
    g = torch.Generator().manual_seed(0)
    o = torch.randn(1, 2, rows, 32, generator=g)
    o[0, 1] *= 1e4
    o[0, 0, 128:] *= 1e-5
    nothing = torch.zeros_like(o), torch.zeros(1, 2, rows)
    kept = Residual.of(o, *nothing, precision)
    assert kept.scales.shape == (1, 2, -(-rows // group))
    back = kept.repair(*nothing)
    for part in ((0, slice(0, 128)), (1, slice(0, 128)), (0, slice(128, rows))):
        if o[0][part].numel():
            assert rms(back[0][part], o[0][part]) < error
    assert torch.equal(Residual.of(o, o, torch.ones(1, 2, rows), precision).repair(*nothing), nothing[0])


@pytest.mark.parametrize("base", [FrameBand(block=32, density=0.2), AdaSpa(block=32, sparsity=0.6)], ids=lambda b: b.name)
def test_the_identity_holds_beside_other_parts_of_a_call_and_with_shared_keys(base):
    """Key bias, modulation by frames and labels act in both parts; four query heads share two key heads."""
    n, state = TEXT.count, {}
    ids = torch.where(torch.arange(n) < TEXT.inside, torch.arange(n) // 64, -1).to(torch.int16)
    table = FrameTable(ids, ids, (torch.arange(4)[:, None] - torch.arange(4)[None]).abs().gt(1).to(torch.uint8), torch.tensor([1.0, 0.6]))
    bias = torch.randn(1, 4, n, generator=torch.Generator().manual_seed(0))
    labels = Labels((torch.arange(n) % 3 == 0).to(torch.int8)[None], torch.where(torch.arange(n) % 2 == 0, 3, 1)[None], 2)
    plan = AttentionPlan(key_bias=bias, modulation=Modulation(frames=table, positive_only=True, center_keys=True), labels=labels)
    for step in (5, 6):
        s = call(TEXT, step=step, steps=20, state=state, heads=4)
        s = replace(s, k=s.k[:, :2], v=s.v[:, :2], plan=plan)
        o, _ = pattern(base).run(s, Core(s.scale))
        assert rms(o, dense_of(s)) < 1e-6


def test_a_base_that_reads_everything_leaves_nothing_to_repair():
    run = play(pattern(Dense(block=32)), 20, at=[5, 6])
    kept = run[0].s.state["refresh"]
    assert (kept.ratio == 1).all()
    assert not kept.residual.values.any()
    assert rms(run[1].o, dense_of(run[1].s)) < 1e-6


def test_rows_that_the_base_does_not_read_get_the_dense_output_back():
    run = play(pattern(Scattered(block=32, lost=(1,)), growth=0.04), 20, tokens=BARE, at=[5, 6, 8])
    kept = run[0].s.state["refresh"]
    want = dense_of(run[0].s)
    assert (kept.ratio[:, :, 32:64] == 0).all()
    assert ((kept.ratio >= 0) & (kept.ratio <= 1)).all()
    for step in run:
        assert step.o.isfinite().all()
        assert rms(step.o[:, :, 32:64], want[:, :, 32:64]) < 1e-6


def test_queries_without_any_key_stay_zero():
    allow = torch.ones(1, 150, dtype=torch.int64)
    allow[:, 40:50] = 0
    labels, state = Labels(torch.zeros(1, 150, dtype=torch.int8), allow, 1), {}
    for step in (5, 6, 8):
        s = replace(call(BARE, step=step, steps=20, state=state), plan=AttentionPlan(labels=labels))
        o, _ = pattern(Scattered(block=32)).run(s, Core(s.scale))
        assert o.isfinite().all()
        assert not o[:, :, 40:50].any()


@pytest.mark.parametrize("chunk", range(4))
def test_pattern_and_complement_make_dense_attention_and_cost_one(chunk):
    """200 random plans. At a refresh the two parts together read every block once."""
    for seed in range(50 * chunk, 50 * chunk + 50):
        s = call(Tokens(96), step=5, steps=20, heads=2, width=16, seed=seed)
        core = Core(s.scale)
        o, _ = pattern(Scattered(block=32, seed=seed)).run(s, core)
        assert rms(o, dense_of(s)) < 1e-6
        (part, _), (rest, _) = core.calls
        assert torch.equal(part.kinds() == 0, rest.kinds() != 0)
        assert not part.approximate
        assert not rest.approximate


def test_what_is_kept_is_made_and_used_without_waiting():
    o, part, lse = torch.randn(1, 2, 150, 32), torch.randn(1, 2, 150, 32), torch.rand(1, 2, 150)
    with NoWaiting():
        ratio = covered(lse - 1, lse)
        for precision in ("fp32", "bf16", "fp16", "fp8", "int8"):
            Residual.of(o, part, ratio, precision).repair(part, grown(ratio, 2, 0.04))


# --- between refreshes -------------------------------------------------------------------------------------------------


def test_the_covered_share_grows_and_stops_at_one():
    ratio = torch.tensor([0.30, 0.95])
    used = [[round(float(x), 2) for x in grown(ratio, k, 0.04)] for k in (1, 2, 3, 4)]
    assert used == [[0.30, 0.95], [0.34, 0.99], [0.38, 1.0], [0.42, 1.0]]
    assert torch.equal(grown(ratio, 0.5, 0.04), ratio)


def test_each_step_uses_its_distance_from_the_refresh():
    p, state = pattern(FrameBand(block=32, density=0.2), growth=0.1), {}
    run = play(p, 20, state=state, at=[5])
    kept = state["refresh"]
    for step, k in ((6, 1), (8, 3), (9, 4), (9.5, 4.5)):
        run = play(p, 20, state=state, at=[step])
        part = attend(run[0].s.q, run[0].s.k, run[0].s.v, AttentionPlan(blocks=run[0].core.calls[0][0]), scale=run[0].s.scale, backend="chunked")
        want = (kept.ratio.float() + 0.1 * (k - 1)).clamp(max=1)[..., None] * part + kept.residual.values
        assert rms(run[0].o, want) < 1e-6
    assert play(p, 20, state=state, at=[10])[0].note == "dense: refresh"
    again = play(p, 20, state=state, at=[11])[0]
    assert rms(again.o, dense_of(again.s)) < 1e-6  # k = 1 again


def test_growth_by_default_depends_on_the_base():
    assert Rettention(base=FrameBand())._growth(TEXT) == 0.04
    assert Rettention(base=Radial())._growth(TEXT) == 0.02
    assert Rettention(base=AdaSpa())._growth(TEXT) == 0.0
    assert Rettention(base=AdaSpa(), growth=0.01)._growth(TEXT) == 0.01


def test_a_base_that_reads_q_and_k_keeps_the_blocks_of_the_refresh():
    p, state = pattern(Draft(block=32, sparsity=0.6)), {}
    first = play(p, 20, state=state, at=[5])[0].core.calls[0][0].kinds()
    assert torch.equal(play(p, 20, state=state, at=[6], seed=4)[0].core.calls[0][0].kinds(), first)
    assert not torch.equal(play(p, 20, state=state, at=[10], seed=4)[0].core.calls[0][0].kinds(), first)


def test_a_base_with_a_history_searches_at_each_refresh():
    p, state = pattern(AdaSpa(block=32, sparsity=0.6)), {}
    run = play(p, 20, state=state, at=[5, 6])
    assert (run[0].core.dense, run[0].core.sparse) == (1, 1)
    first = run[1].core.calls[0][0].kinds()
    assert not torch.equal(play(p, 20, state=state, at=[10, 11], seed=4)[1].core.calls[0][0].kinds(), first)


def test_the_log_sum_exp_is_that_of_all_keys():
    for base in (FrameBand(block=32, density=0.2), Scattered(block=32, lost=(0,)), AdaSpa(block=32)):
        state = {}
        for step in (5, 6):
            s = replace(call(TEXT, step=step, steps=20, state=state), lse=True)
            _, lse = pattern(base).run(s, Core(s.scale))
            _, want = attend(s.q, s.k, s.v, s.plan, scale=s.scale, return_lse=True, backend="chunked")
            assert torch.allclose(lse, want, atol=3e-3 if step == 6 else 1e-5)  # the ratio is kept in half precision


def test_the_layout_of_the_caller_is_kept():
    state = {}
    for step in (5, 6):
        s = call(TEXT, step=step, steps=20, state=state)
        s = replace(s, **{x: getattr(s, x).transpose(1, 2).contiguous().transpose(1, 2) for x in "qkv"})
        o, _ = pattern(Radial(block=32)).run(s, Core(s.scale))
        assert o.stride() == s.q.stride()


# --- schedule ----------------------------------------------------------------------------------------------------------


def _steps(p, steps):
    due = [p.refresh_due(Moment(i / steps, steps)) for i in range(steps)]
    return "".join("D" if d is None else "R" if d == i else "s" for i, d in enumerate(due))


def test_step_patterns_of_the_published_settings():
    assert _steps(Rettention(start=0.25, every=5), 20) == "DDDDDRssssRssssRssss"
    assert _steps(Rettention(start=0.2, every=5), 50) == "D" * 10 + "Rssss" * 8
    assert _steps(Rettention(start=0.3, every=5), 50) == "D" * 15 + "Rssss" * 7
    assert _steps(Rettention(), 20) == "DDDD" + "Rss" * 5 + "R"
    assert _steps(Rettention(), 50) == "D" * 10 + "Rssss" * 8


def test_twenty_steps_run_as_the_schedule_says():
    run = play(pattern(Radial(block=32)), 20)
    assert "".join("s" if x.note == "sparse" else "R" if x.note == "dense: refresh" else "D" for x in run) == "DDDDDRssssRssssRssss"
    assert [x.core.dense for x in run[:5]] == [1] * 5
    assert [len(x.core.calls) for x in run[5:]] == [2, 1, 1, 1, 1] * 3
    assert sum(len(x.s.densities) for x in run) == 12
    for x in run[:6]:
        assert rms(x.o, dense_of(x.s)) < 1e-6


def test_a_sampler_that_evaluates_between_steps_refreshes_once_each():
    run = play(pattern(Radial(block=32)), 20, at=[i / 2 for i in range(40)])
    assert [i / 2 for i, x in enumerate(run) if x.note == "dense: refresh"] == [5, 10, 15]


def test_a_run_entered_late_refreshes_at_its_first_step():
    run = play(pattern(Radial(block=32)), 20, at=[12, 13])
    assert [x.note for x in run] == ["dense: refresh", "sparse"]


@pytest.mark.parametrize(("steps", "words"), [(8, "too few steps"), (4, "too few steps"), (0, "unknown")])
def test_runs_without_room_for_refreshes_stay_dense(steps, words):
    s = call(TEXT, step=min(3, steps), steps=steps)
    o, _ = pattern(Radial(block=32)).run(s, Core(s.scale))
    assert s.note.startswith("dense: ")
    assert words in s.note
    assert torch.equal(o, dense_of(s))


# --- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "layers", "gigabytes"),
    [((1, 12, 32760, 128), 30, 3.0), ((1, 40, 75600, 128), 40, 31), ((1, 24, 119056, 128), 60, 44), ((1, 30, 17776, 64), 30, 2.0), ((1, 16, 4096, 72), 28, 0.26)],
)
def test_size_of_the_cache(shape, layers, gigabytes):
    assert layers * size(shape, "bf16") / 1e9 == pytest.approx(gigabytes, rel=0.03)
    assert size(shape, "fp8") < 0.51 * size(shape, "bf16")
    assert size(shape, "int8") < 0.54 * size(shape, "bf16")


def test_the_cache_shrinks_to_what_memory_allows_and_the_note_says_so(monkeypatch):
    p = pattern(Radial(block=32), cache="bf16", layers=10)
    bf16, int8 = (10 * size(call(TEXT).q.shape, x) for x in ("bf16", "int8"))
    for free, want, note in (
        (8 * bf16, "bf16", "dense: refresh"),
        (8 * bf16 - 1, "int8", "dense: refresh, residual in int8 to fit memory"),
        (8 * int8, "int8", "dense: refresh, residual in int8 to fit memory"),
        (8 * int8 - 1, None, "dense: refresh, no memory for a residual, pooled tail instead"),
    ):
        monkeypatch.setattr(module, "free_memory", lambda device, free=free: free)
        run = play(p, 20, at=[5, 6])
        assert run[0].note == note
        assert run[0].s.state["refresh"].precision == want
        assert run[1].note == "sparse"
        assert rms(run[0].o, dense_of(run[0].s)) < 1e-6


def test_a_precision_once_chosen_stays(monkeypatch):
    p, state = pattern(Radial(block=32), cache="bf16"), {}
    play(p, 20, state=state, at=[5])
    monkeypatch.setattr(module, "free_memory", lambda device: 0)
    play(p, 20, state=state, at=[10])
    assert state["refresh"].precision == "bf16"


@pytest.mark.parametrize("base", [Radial(block=32), AdaSpa(block=32, sparsity=0.6), Draft(block=32, sparsity=0.6)], ids=lambda b: b.name)
def test_without_a_residual_the_pooled_tail_steps_in(base):
    run = play(pattern(base, cache="off"), 20, at=[5, 6])
    assert run[0].note == "dense: refresh, no residual, pooled tail instead"
    assert run[0].s.state["refresh"].residual is None
    assert run[1].core.calls[0][0].tail == "row"
    assert torch.equal(run[0].o, dense_of(run[0].s))


def test_no_pooled_tail_where_single_pairs_have_rules():
    state = {}
    for step in (5, 6):
        s = replace(call(TEXT, step=step, steps=20, state=state), plan=AttentionPlan(key_bias=torch.zeros(1, 1, TEXT.count)))
        core = Core(s.scale)
        pattern(Radial(block=32), cache="off").run(s, core)
    assert core.calls[0][0].tail == "off"


def test_fixed_plans_are_derived_once():
    run = play(pattern(Radial(block=32)), 20, at=[5, 6, 10])
    assert run[0].core.calls[0][0] is run[1].core.calls[0][0] is run[2].core.calls[0][0]
    assert run[0].core.calls[1][0] is run[2].core.calls[1][0]


# --- state -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [None, AdaSpa(block=32, sparsity=0.6)], ids=["auto", "adaspa"])
def test_guided_batches_in_either_order_equal_runs_of_one_conditioning_each(base):
    p = pattern(base, cache="bf16")
    cond, uncond = call(TEXT, seed=1), call(TEXT, seed=2)
    together, alone = ({}, {}), ({}, {})
    for step in range(3, 18):
        moment = Moment(step / 20, 20)
        sides = ((0, cond), (1, uncond)) if step % 2 else ((1, uncond), (0, cond))
        q, k, v = (torch.cat([getattr(x, name) + 0.01 * step for _, x in sides]) for name in "qkv")
        both = attend(q, k, v, AttentionPlan(blocks=Sparse(p, TEXT, moment, tuple((1, together[i]) for i, _ in sides))), backend="chunked")
        for row, (i, _) in enumerate(sides):
            one = slice(row, row + 1)
            plan = AttentionPlan(blocks=Sparse(p, TEXT, moment, ((1, alone[i]),)))
            assert torch.equal(both[one], attend(q[one], k[one], v[one], plan, backend="chunked"))


def test_another_run_size_or_shape_never_meets_an_old_residual():
    p, state = pattern(FrameBand(block=32, density=0.2)), {}
    play(p, 20, state=state)
    again = play(p, 20, state=state, seed=5)
    fresh = play(p, 20, seed=5)
    assert all(torch.equal(a.o, b.o) for a, b in zip(again, fresh))
    assert play(p, 20, state=state, at=[19], tokens=BARE)[0].note == "dense: refresh"
    assert play(p, 20, state=state, at=[19], heads=3)[0].note == "dense: refresh"
    assert play(p, 20, state=state, at=[16], heads=3)[0].note == "dense: refresh"


def test_nothing_is_left_when_the_state_is_cleared():
    state = {}
    play(pattern(AdaSpa(block=32)), 20, state=state, at=[5, 6])
    kept = state["refresh"]
    held = [weakref.ref(x) for x in (kept.ratio, kept.residual.values, state["base"]["found"].mask.words)]
    del kept
    state.clear()
    gc.collect()
    assert all(x() is None for x in held)


# --- the window patterns -----------------------------------------------------------------------------------------------


def test_window_counts_of_the_worked_examples():
    assert FrameBand(density=0.03125).half_width(Tokens(1024)) == 16
    assert FrameBand(density=0.03125).half_width(Tokens(4096, (1, 64, 64))) == 64
    assert pairs(Tokens(4096, (1, 64, 64)), 64) == 524_224
    clip = Tokens(17776, (13, 30, 45), 226)
    half = FrameBand(density=0.03125).half_width(clip)
    assert half == 21
    assert pairs(Tokens(1350, (1, 30, 45)), half) == 57_588
    assert pairs(clip, half) == 169 * 57_588 + 2 * 226 * 17_550 + 226**2 == 17_716_048


def test_computed_area_of_the_video_window_is_larger_than_its_pairs():
    clip = Tokens(17776, (13, 30, 45), 226)
    assert abs(17_716_048 / 17_776**2 - 0.056) < 5e-4
    assert 0.12 < float(FrameBand(block=64, density=0.03125).plan(clip).density()) < 0.17


@pytest.mark.parametrize("tokens", [Tokens(150), Tokens(130, (1, 10, 12), 4), TEXT, Tokens(3 * 45 + 8, (3, 5, 9), 8)], ids=["bare", "picture", "text", "ragged"])
@pytest.mark.parametrize("density", [0.03, 0.2, 0.7, 1.0])
def test_the_window_admits_the_pairs_it_says(tokens, density):
    band = FrameBand(block=32, density=density)
    every = torch.arange(tokens.count)
    got = admitted(band.plan(tokens), 0, every, every)
    inside = (every >= tokens.start) & (every < tokens.start + tokens.inside) if tokens.grid else torch.ones(tokens.count, dtype=torch.bool)
    per_frame = tokens.grid[1] * tokens.grid[2] if tokens.grid else tokens.count
    place = (every - tokens.start) % per_frame
    near = (place[:, None] - place[None]).abs() <= band.half_width(tokens)
    want = near | ~inside[:, None] | ~inside[None]
    assert torch.equal(got, want)
    assert int(got.sum()) == pairs(tokens, band.half_width(tokens))


def test_tiles_read_the_same_tile_of_every_frame():
    tokens = Tokens(3 * 64 + 10, (3, 8, 8))
    kinds = FrameBand(block=32, spatial="tiles").plan(tokens).kinds()[0]
    assert torch.equal(kinds[:6, :6] != 0, torch.eye(2, dtype=torch.bool).repeat(3, 3))
    assert (kinds[6:] != 0).all()
    assert (kinds[:, 6:] != 0).all()


# --- settings ----------------------------------------------------------------------------------------------------------


def test_the_base_by_default_suits_the_tokens():
    assert isinstance(Rettention().base_for(TEXT), Radial)
    assert isinstance(Rettention().base_for(BARE), FrameBand)
    assert isinstance(Rettention().base_for(Tokens(64, (1, 8, 8))), FrameBand)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Rettention(start=1.0), "starts at"),
        (lambda: Rettention(every=1), "refreshes every"),
        (lambda: Rettention(growth=-0.1), "growth"),
        (lambda: Rettention(base=Rettention()), "over rettention"),
        (lambda: Rettention(base=Radial()).check(BARE), "needs a grid"),
        (lambda: FrameBand(density=0.0), "density"),
        (lambda: FrameBand(spatial="rows"), "spatial"),
    ],
)
def test_settings_without_meaning_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.timeout(120)
def test_the_triton_kernels_give_the_same():
    assert backends_agree(pattern(FrameBand(block=64, density=0.2), block=64), 20, [5, 6]) == ["dense: refresh", "sparse"]
