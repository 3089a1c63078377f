"""The opt-in int8 path: its arithmetic, its kernel against the emulation and the truth, its gates."""

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from attention_loom.kernels import (
    AttentionPlan,
    BackendUnavailable,
    Band,
    Bits,
    BlockPlan,
    ExtraKV,
    Frames,
    Trace,
    Window,
    attend,
    by_frame,
    from_bool,
    raster,
    reference_attend,
)
from attention_loom.kernels.quant import MOST_LOGIT, QUERY_ROWS, largest_logit, quantise, refusal
from attention_loom.kernels.triton import int8_op
from kernel_cases import DEVICE, Shape, assert_close, assert_lse_close, key_bias, rel_rms, segment, tensors

HALF = torch.float16


def inputs(s: Shape, dtype=HALF, *, peak: float = 1.0, offset: float = 0.5, layout="bhnd"):
    """Keys have a mean, as real keys do: without smoothing it would eat the int8 range."""
    q, k, v = tensors(s, torch.float32, layout)
    return (q * peak).to(dtype), (k * peak + offset).to(dtype), v.to(dtype)


def random_plan(s: Shape, block: int, share: float, groups: int = 1, **more) -> BlockPlan:
    q, k = raster(s.n_q, block, DEVICE), raster(s.keys, block, DEVICE)
    mask = torch.rand(groups, q.blocks, k.blocks, generator=torch.Generator().manual_seed(5)) < share
    return from_bool(mask.to(DEVICE), q, k, **more)


def emulated(q, k, v, plan: AttentionPlan, scale: float):
    """The literal arithmetic in fp64: dequantised q and k through the oracle, the mean key's share put back."""
    blocks = plan.blocks
    sides = (blocks.q, blocks.k) if blocks is not None else (raster(q.shape[2], 128, DEVICE), raster(k.shape[2], 128, DEVICE))
    mean = k.mean(2, dtype=torch.float32)
    q8 = quantise(q, sides[0], min(sides[0].block, 128))
    k8 = quantise(k, sides[1], min(sides[1].block, 64), mean)
    back = [x.dequantised().index_select(2, order.inverse.long()) for x, order in zip((q8, k8), sides, strict=True)]
    o, lse = reference_attend(*back, v, plan, scale=scale, return_lse=True)
    taken = torch.einsum("bhnd,bhd->bhn", q.double(), mean.double().repeat_interleave(q.shape[1] // k.shape[1], 1))
    return o, lse + scale * taken


CASES = {
    "dense": (Shape(heads=2, n_q=200, width=64), lambda s: AttentionPlan()),
    "dense-gqa-128": (Shape(batch=2, heads=4, key_heads=2, n_q=65, n_k=130, width=128), lambda s: AttentionPlan()),
    "blocks": (Shape(heads=2, n_q=200, width=64), lambda s: AttentionPlan(blocks=random_plan(s, 64, 0.4))),
    "blocks-per-head": (Shape(heads=3, n_q=160, width=64), lambda s: AttentionPlan(blocks=random_plan(s, 32, 0.3, groups=3))),
    "blocks-128-bias": (
        Shape(heads=2, n_q=300, width=128),
        lambda s: AttentionPlan(blocks=random_plan(s, 128, 0.5), key_bias=key_bias(s, heads=2)),
    ),
    "frames-ragged": (
        Shape(heads=1, n_q=190, width=64),
        lambda s: AttentionPlan(
            blocks=from_bool(torch.eye(9, dtype=torch.bool, device=DEVICE), *[by_frame(190, 32, (4, 5, 9), 3, DEVICE)] * 2),
        ),
    ),
}


TESTS = {
    "window": Window(4.0, 1.5),
    "window-complement": Window(4.0, 1.5, inverted=True),
    "band": Band(12),
    "frames": Frames(-1, 0),
}


def partly(test, block: int) -> BlockPlan:
    """A third of the blocks whole, all others tested; 40 free tokens of 200."""
    # frames fill 40 places of a block; as they stand, tokens fill the second half of a block of 128 as well
    order = by_frame(200, block, (4, 5, 8), 10, DEVICE) if test is not None else raster(200, block, DEVICE)
    whole = (torch.arange(order.blocks)[:, None] + torch.arange(order.blocks)) % 3 == 0
    return from_bool(whole.to(DEVICE), order, order, partial=~whole.to(DEVICE), test=test or Band(1))


@pytest.mark.parametrize(("name", "block"), [*((name, 64) for name in TESTS), ("bits", 64), ("bits", 128), ("window", 128)])
def test_pairs_of_partial_blocks_are_tested(name, block):
    s = Shape(heads=2, n_q=200)
    q, k, v = inputs(s)
    plan = partly(TESTS.get(name), block)
    if name == "bits":
        words = torch.randint(-(2**31), 2**31 - 1, (3, block, block // 32), dtype=torch.int32, generator=torch.Generator().manual_seed(3))
        ids = torch.arange(plan.partial.col.shape[0], dtype=torch.int32) % 3
        plan = dataclasses.replace(plan, mask=Bits(words.to(DEVICE), ids.to(DEVICE)))
    plan = AttentionPlan(blocks=plan)
    o, lse, _ = int8_op.run(q, k, v, plan, 0.125, tokens_first=False)
    want, want_lse = emulated(q, k, v, plan, 0.125)
    assert_close("o", o, want, 8e-4)
    assert_lse_close(lse, want_lse, 1e-3)
    q[:, 1] *= 60
    o, _, hot = int8_op.run(q, k, v, plan, 0.125, tokens_first=False)
    assert hot.tolist() == [[False, True]]
    assert_close("hot head", o[:, 1], reference_attend(q, k, v, plan)[:, 1], 8e-4)


@pytest.mark.parametrize("name", CASES)
def test_kernel_computes_what_the_arithmetic_says(name):
    s, build = CASES[name]
    q, k, v = inputs(s)
    plan, scale = build(s), s.width**-0.5
    o, lse, hot = int8_op.run(q, k, v, plan, scale, tokens_first=False)
    want, want_lse = emulated(q, k, v, plan, scale)
    assert not hot.any()
    assert_close("o", o, want, 8e-4)
    assert_lse_close(lse, want_lse, 1e-3)


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_numerics_target(width, dtype):
    q, k, v = inputs(Shape(heads=1, n_q=384, width=width), dtype)
    o, lse, _ = int8_op.run(q, k, v, AttentionPlan(), width**-0.5, tokens_first=False)
    want, want_lse = reference_attend(q, k, v, AttentionPlan(), return_lse=True)
    assert rel_rms(o, want) <= 2e-2
    assert torch.cosine_similarity(o.double().flatten(), want.flatten(), 0) >= 0.9997
    assert_lse_close(lse, want_lse, 2e-2)


def test_peaked_logits_stay_within_their_target():
    q, k, v = inputs(Shape(heads=2, n_q=384), peak=3.0)
    o, _, hot = int8_op.run(q, k, v, AttentionPlan(), 0.125, tokens_first=False)
    assert not hot.any(), "the target is about the quantised path"
    assert rel_rms(o, reference_attend(q, k, v, AttentionPlan())) <= 6e-2


def test_a_head_with_huge_logits_is_computed_from_the_values_the_others_are_not():
    q, k, v = inputs(Shape(heads=3, n_q=130))
    q[:, 1] *= 40
    k[:, 1] *= 2
    o, lse, hot = int8_op.run(q, k, v, AttentionPlan(), 0.125, tokens_first=False)
    assert hot.tolist() == [[False, True, False]]
    want, want_lse = reference_attend(q, k, v, AttentionPlan(), return_lse=True)
    assert_close("hot head", o[:, 1], want[:, 1], 8e-4)
    assert_lse_close(lse[:, 1], want_lse[:, 1], 1e-2)
    assert rel_rms(o[:, 0], want[:, 0]) > 2e-3, "head 0 was not quantised"


@pytest.mark.parametrize("peak", [1.0, 3.0, 6.0])
def test_the_estimate_comes_near_the_largest_logit_and_never_exceeds_it(peak):
    q, k, _ = inputs(Shape(heads=4, key_heads=2, n_q=500), peak=peak)
    mean = k.mean(2, dtype=torch.float32)
    orders = raster(500, 128, DEVICE)
    found = largest_logit(quantise(q, orders, 128), quantise(k, orders, 64, mean), 0.125)
    centred = (k.float() - mean[:, :, None]).repeat_interleave(2, 1)
    truth = (q.float() @ centred.transpose(-1, -2) * 0.125).abs().amax((-1, -2))
    assert (found <= truth * 1.02).all()
    assert (found >= truth * 0.5).all()


def test_quantised_values_use_the_whole_range_and_dead_places_are_zero():
    order = by_frame(190, 64, (4, 5, 9), 3, DEVICE)
    x = torch.randn(1, 2, 190, 64, device=DEVICE)
    found = quantise(x, order, 32)
    tiles = found.values.unflatten(2, (-1, 32))
    live = (order.perm >= 0).view(-1, 32).any(1)
    assert (tiles.abs().amax((-1, -2))[:, :, live] >= 126).all()
    assert (found.values[:, :, order.perm < 0] == 0).all()
    error = (found.dequantised().index_select(2, order.inverse.long()) - x).abs()
    assert error.max() <= found.scale.max() * 0.51
    with pytest.raises(ValueError, match="96 rows per scale do not divide blocks of 64"):
        quantise(x, order, 96)


def test_first_pass_is_bit_equal_to_the_arithmetic():
    order = by_frame(190, 64, (4, 5, 9), 3, DEVICE)
    q, k, _ = inputs(Shape(heads=2, key_heads=1, n_q=190))
    mean = k.mean(2, dtype=torch.float32)
    for x, keys in ((q, False), (k, True)):
        found, shift = int8_op._quantise(x, order.perm, 32, mean, 0.125, keys=keys)
        want = quantise(x, order, 32, mean if keys else None)
        assert torch.equal(found.values, want.values)
        assert torch.equal(found.scale, want.scale)
        if not keys:
            taken = 0.125 * torch.einsum("bhnd,bhd->bhn", q.float(), mean.expand(1, 2, -1))
            assert_close("shift", shift.index_select(2, order.inverse.long()), taken, 1e-6)


def test_mean_key_is_given_back_where_results_are_merged():
    s = Shape(heads=2, n_q=130)
    q, k, v = inputs(s, offset=3.0)
    plan = AttentionPlan(blocks=random_plan(s, 64, 0.5, tail="row"), extra_kv=(segment(s, HALF),))
    o = attend(q, k, v, plan, backend="triton", quant="int8_qk", trace=(t := Trace()))
    assert t.backend == "int8_qk"
    assert rel_rms(o, reference_attend(q, k, v, plan)) <= 2e-2


def test_an_empty_row_is_zero_and_a_dead_key_is_never_seen():
    s = Shape(heads=1, n_q=130)
    q, k, v = inputs(s)
    plan = random_plan(s, 64, 0.5)
    empty = torch.zeros_like(plan.full.ptr)
    none = BlockPlan(plan.q, plan.k, type(plan.full)(empty, plan.full.col), plan.head_map)
    o, lse, _ = int8_op.run(q, k, v, AttentionPlan(blocks=none), 0.125, tokens_first=False)
    assert (o == 0).all()
    assert (lse == -math.inf).all()


def test_batch_layout_does_not_change_a_bit():
    s = Shape(batch=2, heads=2, n_q=130)
    q, k, v = inputs(s, layout="bnhd")
    plan = AttentionPlan(blocks=random_plan(s, 64, 0.5))
    whole = int8_op.run(q, k, v, plan, 0.125, tokens_first=True)
    for b in range(2):
        for h in range(2):
            alone = int8_op.run(*(x[b : b + 1, h : h + 1] for x in (q, k, v)), plan, 0.125, tokens_first=False)
            assert torch.equal(alone[0][0, 0], whole[0][b, h])
            assert torch.equal(alone[1][0, 0], whole[1][b, h])
    again = int8_op.run(q, k, v, plan, 0.125, tokens_first=True)
    assert torch.equal(again[0], whole[0])


def test_gates_refuse_with_the_reason():
    assert refusal(96, HALF, False) == "int8_qk takes head width 64 or 128, this is 96"
    assert refusal(64, torch.float32, False) == "int8_qk takes fp16 and bf16 values, these are torch.float32"
    assert refusal(64, HALF, True) == "int8_qk has no gradient and one is needed"
    assert refusal(128, HALF, False) is None
    q, k, v = inputs(Shape(n_q=65, width=32))
    with pytest.raises(BackendUnavailable, match="int8_qk takes head width 64 or 128, this is 32"):
        attend(q, k, v, AttentionPlan(), backend="triton", quant="int8_qk")
    attend(q, k, v, AttentionPlan(), quant="int8_qk", trace=(t := Trace()))
    assert t.backend != "int8_qk"
    assert ("int8_qk", "int8_qk takes head width 64 or 128, this is 32") in t.declined
    with pytest.raises(BackendUnavailable, match="'sdpa' does not quantise"):
        attend(q, k, v, AttentionPlan(), backend="sdpa", quant="int8_qk")
    with pytest.raises(ValueError, match="quant is 'int4'"):
        attend(q, k, v, AttentionPlan(), quant="int4")


def test_it_is_never_chosen_unasked():
    q, k, v = inputs(Shape(n_q=65))
    for backend in ("auto", "triton"):
        attend(q, k, v, AttentionPlan(), backend=backend, trace=(t := Trace()))
        assert "int8_qk" not in [t.backend, *dict(t.declined)]


def test_no_backward():
    q, k, v = inputs(Shape(n_q=65))
    q.requires_grad_()
    with pytest.raises(BackendUnavailable, match="no gradient and one is needed"):
        attend(q, k, v, AttentionPlan(), backend="triton", quant="int8_qk")
    o, _, _ = int8_op.run(q, k, v, AttentionPlan(), 0.125, tokens_first=False)
    with pytest.raises(NotImplementedError, match="eight-bit attention has no backward"):
        o.sum().backward()


@pytest.mark.parametrize("values8", [False, True])
def test_operator_is_well_formed(values8):
    q, k, v = inputs(Shape(batch=2, heads=2, n_q=65))
    plan = random_plan(Shape(n_q=65), 64, 0.5)
    sides = [[plan.q.perm, plan.q.valid], [plan.k.perm, plan.k.valid]]
    lists = [plan.full.ptr, plan.full.col, plan.head_map]
    torch.library.opcheck(
        int8_op.int8_forward,
        (q, k, v, 0.125, None, *sides, lists, [], [], True, [64, 64, 4, 1], values8),
        test_utils=["test_schema", "test_faketensor"],
    )


def test_every_architecture_has_settings_for_both_widths():
    for arch in ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx1100", "sm_999", "interpreted"):
        for width in (64, 128):
            for block in (64, 128):
                s = int8_op.int8_settings(arch, width, block, block)
                assert (s.block_m, s.block_n) == (block, 64)
    assert QUERY_ROWS == 128
    assert MOST_LOGIT == 60


def test_segments_alone_run_quantised_too():
    s = Shape(heads=2, n_q=65)
    q, k, v = inputs(s)
    part = segment(s, HALF, length=40, bias=True)
    plan = AttentionPlan(extra_kv=(ExtraKV(part.k, part.v, part.bias),))
    o = attend(q, k, v, plan, backend="triton", quant="int8_qk")
    assert rel_rms(o, reference_attend(q, k, v, plan)) <= 2e-2


@pytest.mark.timeout(240)
def test_the_kernel_compiles_for_real_gpus():
    """A short selection; ``python tools/aot_int8.py --all`` does every configuration."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    tool = Path(__file__).resolve().parents[2] / "tools" / "aot_int8.py"
    done = subprocess.run([sys.executable, str(tool)], capture_output=True, text=True, env=env, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" ok\n") == 4
