"""The forward kernel on block plans: what the case table cannot show, mostly exact properties."""

import dataclasses
import math

import pytest
import torch
from attention_loom.kernels import (
    AttentionPlan,
    BackendUnavailable,
    Band,
    BlockPlan,
    Modulation,
    Trace,
    Window,
    attend,
    block_list,
    by_frame,
    by_tile,
    from_bool,
    merge,
    raster,
    reference_attend,
)
from attention_loom.kernels import backends as registry
from attention_loom.kernels import lists as lists_module
from attention_loom.kernels.tail import pool
from attention_loom.kernels.triton import op
from attention_loom.kernels.triton.arguments import gather
from attention_loom.kernels.triton.launch import place_keys
from block_cases import GRID, START, chosen, packed, sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import DEVICE, Shape, assert_close, assert_lse_close, blocks, frame_table, key_bias, labels, mixes, segment, tensors
from torch.utils._python_dispatch import TorchDispatchMode

S = Shape(n_q=118, width=32)


def both(plan, s=S, dtype=torch.float32, **how):
    q, k, v = tensors(s, dtype, **how)
    return (q, k, v), attend(q, k, v, plan, backend="triton", return_lse=True)


def agrees(plan, s=S, tolerance=3e-6):
    (q, k, v), (o, lse) = both(plan, s)
    want, want_lse = reference_attend(q, k, v, plan, return_lse=True)
    assert_close("o", o, want, tolerance)
    assert_lse_close(lse, want_lse, 2e-5)


# --- random plans ---------------------------------------------------------------------------------------------------------


@st.composite
def plans(draw):
    """(shape, plan of blocks): any order, any lists, with or without an element test."""
    order = draw(st.sampled_from(["raster", "frame", "tile"]))
    grid_tokens = GRID[0] * GRID[1] * GRID[2] + START
    n_q, n_k = (draw(st.integers(1, 100)) for _ in "qk") if order == "raster" else (draw(st.integers(grid_tokens, grid_tokens + 20)) for _ in "qk")
    s = Shape(1, 2, draw(st.sampled_from([1, 2])), n_q, n_k, 32)
    test = None if order == "raster" else draw(st.sampled_from([None, Window(2.6), Band(3), Window(2.6, inverted=True)]))
    tail = draw(st.sampled_from(["off", "off", "row"]))
    seed, density = draw(st.integers(0, 999)), draw(st.sampled_from([0.1, 0.5, 0.9]))
    q, k = sparse(s, DEVICE, order=order).q, sparse(s, DEVICE, order=order).k
    full, partial = chosen(2, q, k, density, seed), chosen(2, q, k, density, seed + 1)
    head_map = torch.tensor([[0, 1]], dtype=torch.int32, device=DEVICE)
    if test is None:  # rows may be empty
        return s, BlockPlan(q, k, block_list(full), head_map, tail=tail)
    return s, BlockPlan(q, k, block_list(full & ~partial), head_map, block_list(partial), test, tail)


@given(plans())
@settings(deadline=None, max_examples=8)
def test_any_plan_agrees_with_the_reference(problem):
    s, plan = problem
    agrees(AttentionPlan(blocks=plan), s)


# --- orders ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["frame", "tile"])
def test_ordering_the_tokens_of_a_dense_plan_changes_rounding_only(order):
    _, (o, lse) = both(AttentionPlan(blocks=sparse(S, DEVICE, order=order, density=1.0)))
    _, (want, want_lse) = both(AttentionPlan())
    assert_close("o", o, want, 1e-6)
    assert_lse_close(lse, want_lse, 2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_pass_over_the_keys_orders_pads_and_pools(dtype):
    order = by_tile(118, 32, GRID, START, (1, 4, 5), DEVICE)
    _, k, v = tensors(Shape(batch=2, n_q=118, width=40), dtype, layout="bnhd")
    k_out, v_out, k_mean, v_mean = place_keys(k, v, order.perm, order.blocks, order.block, pool=True)
    live = order.perm >= 0
    for out, x, mean in ((k_out, k, k_mean), (v_out, v, v_mean)):
        assert torch.equal(out[:, :, live], x[:, :, order.perm[live].long()])
        assert (out[:, :, ~live] == 0).all()
        assert_close("mean", mean, pool(x, order), 1e-6)


def test_pooling_alone_leaves_the_keys_where_they_are():
    order = raster(100, 32, DEVICE)
    _, k, v = tensors(Shape(n_q=100, width=32))
    k_out, v_out, k_mean, _ = place_keys(k, v, None, order.blocks, order.block, pool=True)
    assert k_out is k
    assert v_out is v
    assert_close("mean", k_mean, pool(k, order), 1e-6)


# --- keys that are not read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_keys_of_unlisted_blocks_are_never_loaded(junk):
    order = by_frame(118, 32, GRID, START, DEVICE)
    mask = torch.ones(1, order.blocks, order.blocks, dtype=torch.bool, device=DEVICE)
    mask[:, :, 1] = False
    plan = AttentionPlan(blocks=from_bool(mask, order, order))
    q, k, v = tensors(S)
    want, want_lse = attend(q, k, v, plan, backend="triton", return_lse=True)
    gone = order.perm.view(order.blocks, -1)[1].long()
    k[:, :, gone[gone >= 0]] = junk
    v[:, :, gone[gone >= 0]] = junk
    o, lse = attend(q, k, v, plan, backend="triton", return_lse=True)
    assert torch.equal(o, want)
    assert torch.equal(lse, want_lse)


def test_what_lies_behind_the_last_key_is_never_loaded():
    q, k, v = tensors(Shape(n_q=100, n_k=128, width=32))
    k[:, :, 100:] = math.nan
    v[:, :, 100:] = math.nan
    plan = AttentionPlan(blocks=from_bool(torch.ones(1, 4, 4, dtype=torch.bool, device=DEVICE), raster(100, 32, DEVICE), raster(100, 32, DEVICE)))
    o = attend(q, k[:, :, :100], v[:, :, :100], plan, backend="triton")
    assert o.isfinite().all()


def test_empty_rows_give_zero_and_minus_infinity():
    order = raster(100, 32, DEVICE)
    mask = torch.ones(1, 4, 4, dtype=torch.bool, device=DEVICE)
    mask[:, 1] = False
    plan = BlockPlan(order, order, block_list(mask), torch.zeros(1, 1, dtype=torch.int32, device=DEVICE))
    _, (o, lse) = both(AttentionPlan(blocks=plan), Shape(n_q=100, width=32))
    assert (o[:, :, 32:64] == 0).all()
    assert (lse[:, :, 32:64] == -math.inf).all()
    assert lse[:, :, 64:].isfinite().all()


# --- numbers --------------------------------------------------------------------------------------------------------------


def test_large_values_in_half_precision():
    """What is true and fits the type comes out; accumulation has the room it needs."""
    q, k, _ = tensors(S, torch.float16)
    for value in (1e4, 6e4):
        v = torch.full_like(k, value)
        o = attend(q, k, v, blocks(S, order="frame"), backend="triton")
        assert (o.float() / value - 1).abs().max() <= 2**-10


def test_constant_values_come_out():
    for plan in (blocks(S, order="tile", density=0.3), blocks(S, order="frame", test=Window(2.6)), blocks(S, tail="row")):
        q, k, v = tensors(S)
        o = attend(q, k, torch.full_like(v, 2.5), plan, backend="triton")
        assert torch.allclose(o, torch.full_like(o, 2.5), rtol=1e-6, atol=0)


def test_parts_of_the_keys_merge_to_the_whole():
    order = by_frame(118, 32, GRID, START, DEVICE)
    q, k, v = tensors(S)
    whole, lse = attend(q, k, v, AttentionPlan(), backend="triton", return_lse=True)
    third = torch.randint(0, 3, (1, order.blocks, order.blocks), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    parts = []
    for i in range(3):
        plan = BlockPlan(order, order, block_list(third == i), torch.zeros(1, 1, dtype=torch.int32, device=DEVICE))
        parts.append(attend(q, k, v, AttentionPlan(blocks=plan), backend="triton", return_lse=True))
    o, merged = merge(*merge(*parts[0], *parts[1]), *parts[2])
    assert_close("o", o, whole, 1e-6)
    assert_lse_close(merged, lse, 2e-6)


# --- rows cut along the keys ----------------------------------------------------------------------------------------------


def cut_cases(s, dtype):
    thin = dict(density=0.0, free=True)
    yield "blocks", blocks(s, order="frame", **thin)
    yield "partial", blocks(s, order="frame", test=Window(2.6), share=0.5, **thin)
    yield "tail", blocks(s, order="frame", groups=2, tail="row", **thin)
    table = AttentionPlan(modulation=Modulation(frames=frame_table(s), positive_only=True, center_keys=True), key_bias=key_bias(s))
    more = dataclasses.replace(table, extra_kv=(segment(s, dtype), segment(s, dtype, length=40, rows=True)), head_mix=(mixes(s, "identity"),))
    yield "more", blocks(s, more, order="frame", test=Band(5), **thin)


@pytest.mark.parametrize("i", range(4), ids=["blocks", "partial", "tail", "more"])
def test_cut_rows_equal_whole_ones(i, monkeypatch):
    s = Shape(heads=2, key_heads=1, n_q=150, width=32)  # 41 free tokens behind the grid: two rows of blocks
    _, plan = list(cut_cases(s, torch.float32))[i]
    _, (whole, whole_lse) = both(plan, s)
    monkeypatch.setattr(lists_module, "SPLIT_ABOVE", 2)
    _, plan = list(cut_cases(s, torch.float32))[i]
    _, (o, lse) = both(plan, s)
    found = lists_module.work_lists(plan, s.n_q, s.n_q, 64, 64)
    assert found.splits >= 3
    assert_close("o", o, whole, 1e-6)
    assert_lse_close(lse, whole_lse, 3e-6)
    assert not torch.equal(o, whole), "nothing was cut"
    agrees(plan, s)


# --- independence of the batch --------------------------------------------------------------------------------------------


def test_an_element_alone_equals_itself_in_a_batch(monkeypatch):
    monkeypatch.setattr(lists_module, "SPLIT_ABOVE", 2)
    s = Shape(batch=3, heads=4, key_heads=2, n_q=130, width=32)
    order = by_frame(130, 32, GRID, START, DEVICE)
    mask = chosen(12, order, order, 0.5)
    partial = chosen(12, order, order, 0.5, seed=1) & mask
    head_map = torch.arange(12, dtype=torch.int32, device=DEVICE).view(3, 4)
    plan = from_bool(mask & ~partial, order, order, partial=partial, test=Window(2.6), head_map=head_map)
    words = labels(s, batch=3)
    q, k, v = tensors(s, torch.float16)
    whole, lse = attend(q, k, v, AttentionPlan(blocks=plan, labels=words), backend="triton", return_lse=True)
    for b, h in ((0, 0), (1, 2), (2, 3)):
        own = dataclasses.replace(plan, head_map=head_map[b : b + 1, h : h + 1])
        mine = dataclasses.replace(words, label_k=words.label_k[b : b + 1], allow_q=words.allow_q[b : b + 1])
        one = (x[b : b + 1, i : i + 1] for x, i in ((q, h), (k, h // 2), (v, h // 2)))
        alone, alone_lse = attend(*one, AttentionPlan(blocks=own, labels=mine), backend="triton", return_lse=True)
        assert torch.equal(whole[b : b + 1, h : h + 1], alone)
        assert torch.equal(lse[b : b + 1, h : h + 1], alone_lse)


def test_memory_layouts_give_the_same_bits():
    plan = blocks(S, order="tile", test=Window(2.6))
    q, k, v = tensors(S, layout="wide")
    a = attend(q, k, v, plan, backend="triton")
    b = attend(*(x.contiguous() for x in (q, k, v)), plan, backend="triton")
    assert torch.equal(a, b)


# --- one pass -------------------------------------------------------------------------------------------------------------


def launches(monkeypatch) -> list[int]:
    seen: list[int] = []
    inner = op.launch_forward
    monkeypatch.setattr(op, "launch_forward", lambda *a: (seen.append(1), inner(*a))[1])
    return seen


def several(s, count=2):
    extra = tuple(segment(s, torch.float32, length=5 + 30 * i) for i in range(count))
    return blocks(s, AttentionPlan(extra_kv=extra, head_mix=(mixes(s, "mean"),)), order="frame", tail="row")


def test_segments_tail_and_mix_take_one_pass(monkeypatch):
    seen = launches(monkeypatch)
    q, k, v = tensors(S)
    fused = attend(q, k, v, several(S), backend="triton")
    assert len(seen) == 1
    limits = dataclasses.replace(next(b for b in registry.backends() if b.name == "triton").limits, fused=frozenset())
    monkeypatch.setitem(registry._registry, "triton", dataclasses.replace(registry._registry["triton"], limits=limits))
    apart = attend(q, k, v, several(S), backend="triton")
    assert len(seen) == 1 + 3
    assert_close("o", fused, apart, 1e-6)


def test_a_third_segment_and_what_follows_it_run_around_the_pass(monkeypatch):
    seen = launches(monkeypatch)
    agrees(several(S, 3))
    assert len(seen) == 2


def test_segments_of_a_few_keys_are_read_in_narrow_tiles():
    from attention_loom.kernels.triton.arguments import Numbers, Tensors
    from attention_loom.kernels.triton.launch import constants

    numbers = Numbers(128, 64, 8, 2, 128, 128, 1, 1)
    for length, step in ((1, 16), (16, 16), (17, 32), (33, 64), (500, 64)):
        assert constants(Tensors(seg0_k=torch.empty(1, 1, length, 32)), numbers, 32, "ieee")["SEG0"] == step


def test_with_a_gradient_the_stages_stay_apart(monkeypatch):
    given_ = []
    limits = registry._registry["triton"].limits
    run = registry._registry["triton"].run
    watched = dataclasses.replace(registry._registry["triton"], run=lambda *a: (given_.append(a[4]), run(*a))[1])
    monkeypatch.setitem(registry._registry, "triton", watched)
    q, k, v = tensors(S)
    plan = blocks(S, AttentionPlan(extra_kv=(segment(S, torch.float32),)), tail="row")
    attend(q, k, v, plan, backend="triton")
    assert given_[0].extra_kv
    assert given_[0].blocks.tail == "row"
    assert limits.fused
    given_.clear()
    attend(q.requires_grad_(), k, v, plan, backend="triton")
    assert not given_[0].extra_kv
    assert given_[0].blocks.tail == "off"


# --- nothing waits for the device -----------------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Notes operations whose result a GPU would have to hand to the host."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default")

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        boolean = func is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        if boolean or any(name in str(func) for name in self.names):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_gathering_a_call_of_blocks_does_not_wait(monkeypatch):
    monkeypatch.setattr(lists_module, "SPLIT_ABOVE", 2)
    q, k, v = tensors(S)
    more = AttentionPlan(key_bias=key_bias(S), extra_kv=(segment(S, q.dtype, rows=True),), head_mix=(mixes(S, "mean"),))
    for how in (dict(tail="row"), dict(test=Window(2.6)), {}):
        plan = blocks(S, AttentionPlan() if "tail" in how else more, order="frame", groups=2, **how)
        with Waits() as waits:
            gather(q, k, v, plan, 0.2, op.choose(q, op.flags_of(plan), False, (32, 32)), False)
        assert not waits.seen
    with Waits() as waits:
        torch.arange(3)[torch.tensor([True, False, True])].sum().item()
    assert len(waits.seen) == 2


# --- traced ---------------------------------------------------------------------------------------------------------------


def test_a_block_plan_traces_in_one_graph():
    q, k, v = tensors(S)
    plan = blocks(S, AttentionPlan(extra_kv=(segment(S, q.dtype),)), order="tile", test=Window(2.6))
    packed_ = [x.pack() for x in gather(q, k, v, plan, S.width**-0.5, op.choose(q, op.flags_of(plan), False, (32, 32)), False)]

    def call(q, k, v):
        return op.forward(q * 1.5, k, v, *packed_)[0] * 2

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(q, k, v), attend(q * 1.5, k, v, plan, backend="triton") * 2)


def test_a_compiled_caller_gets_the_same_result():
    """Choosing a backend breaks the caller's graph; what comes out must not change."""
    q, k, v = tensors(S)
    plan = blocks(S, order="frame", test=Window(2.6))

    def call(q, k, v):
        return attend(q * 1.5, k, v, plan, backend="triton") * 2

    assert torch.equal(torch.compile(call, backend="eager")(q, k, v), call(q, k, v))


# --- limits ---------------------------------------------------------------------------------------------------------------


def test_blocks_of_other_sizes_are_refused_with_a_reason():
    q, k, v = tensors(S)
    order = raster(118, 16, DEVICE)
    plan = AttentionPlan(blocks=from_bool(torch.ones(1, 8, 8, dtype=torch.bool, device=DEVICE), order, order))
    with pytest.raises(BackendUnavailable, match="it reads blocks of 32, 64, 128 tokens, not of 16"):
        attend(q, k, v, plan, backend="triton")
    attend(q, k, v, plan, trace=(t := Trace()))
    assert t.backend in ("sdpa", "chunked", "flex")


def test_the_smallest_settings_agree():
    q, k, v = tensors(S)
    a, b = (op.run(q, k, v, AttentionPlan(blocks=packed(S, DEVICE)), 0.15, tokens_first=False, careful=c)[0] for c in (False, True))
    assert_close("o", b, a, 2e-6)
