"""Gradients of the Triton path against autograd through the fp64 reference, for every part of a plan it executes."""

import math
import os
import subprocess
import sys
from pathlib import Path

import attention_loom.kernels as kernels
import pytest
import torch
from attention_loom.kernels import (
    AttentionPlan,
    Band,
    BlockList,
    BlockPlan,
    ExtraKV,
    Frames,
    Modulation,
    TokenOrder,
    Window,
    attend,
    by_frame,
    by_tile,
    from_bool,
    raster,
    reference_attend,
)
from attention_loom.kernels.bits import to_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import DEVICE, Case, Shape, assert_close, distance_table, edits, frame_table, key_bias, labels, mixes, rotation, segment, tensors, ultravico
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Relative RMS of each gradient; the stages around the kernel round what they pass on to the inputs' own type once more.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 1.2e-2}
half, bf16 = torch.float16, torch.bfloat16
S = Shape(1, 2, 1, 70, 70, 32)


def chance(order_q: TokenOrder, order_k: TokenOrder, *groups: int, seed: int = 0) -> Tensor:
    return torch.rand(*groups, order_q.blocks, order_k.blocks, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def plan_of(order_q: TokenOrder, order_k: TokenOrder, *groups: int, test=None, density=0.4, **changes) -> BlockPlan:
    draw = chance(order_q, order_k, *groups)
    if test is None:
        return from_bool(draw < density, order_q, order_k, **changes)
    return from_bool(draw < density / 2, order_q, order_k, partial=(draw >= density / 2) & (draw < density + 0.3), test=test, **changes)


def flat(n: int, block: int) -> TokenOrder:
    return raster(n, block, DEVICE)


def framed(block: int = 32) -> TokenOrder:
    return by_frame(70, block, (2, 5, 4), 3, DEVICE)


def tiled(block: int = 32) -> TokenOrder:
    return by_tile(70, block, (1, 7, 9), 5, (1, 4, 4), DEVICE)


def listed(plan: BlockPlan, **parts) -> AttentionPlan:
    return AttentionPlan(blocks=plan, **parts)


def emptied(order: TokenOrder) -> BlockPlan:
    """The second row of query blocks lists nothing."""
    n = order.blocks
    ptr = torch.tensor([[0, n, n, *(n + 1 + i for i in range(n - 2))]], dtype=torch.int32, device=DEVICE)
    col = torch.tensor([*range(n), *[1] * (n - 2)], dtype=torch.int16, device=DEVICE)
    return BlockPlan(order, order, BlockList(ptr, col), torch.zeros(1, 1, dtype=torch.int32, device=DEVICE))


def mod(**parts) -> AttentionPlan:
    return AttentionPlan(modulation=Modulation(**parts))


per_head = torch.tensor([1.1, 0.8]).to(DEVICE)
CASES = [
    # whole rows
    Case("stock", lambda s, t: AttentionPlan(), Shape(2, 2, 2, 65, 65, 40), layout="bnhd"),
    Case("stock-gqa-cross", lambda s, t: AttentionPlan(), Shape(1, 4, 1, 33, 70, 64)),
    Case("stock-fp16", lambda s, t: AttentionPlan(), Shape(1, 1, 1, 130, 130, 64), half),
    Case("stock-bf16", lambda s, t: AttentionPlan(), Shape(1, 1, 1, 130, 130, 64), bf16),
    # bias, labels, tables
    Case("bias", lambda s, t: AttentionPlan(key_bias=key_bias(s)), Shape(2, 2, 1, 65, 70, 32)),
    Case("bias-per-head", lambda s, t: AttentionPlan(key_bias=key_bias(s, batch=2, heads=2)), Shape(2, 2, 1, 65, 70, 32)),
    Case("bias-large", lambda s, t: AttentionPlan(key_bias=key_bias(s) + 100), S),
    Case("bias-nothing-left", lambda s, t: AttentionPlan(key_bias=key_bias(s, gone=2.0)), S),
    Case("labels", lambda s, t: AttentionPlan(labels=labels(s, batch=2, empty_rows=True)), Shape(2, 1, 1, 130, 70, 32)),
    Case("frames", lambda s, t: mod(frames=frame_table(s, text=5, masked=True, factors=[1.0, -0.5, 1.7])), S),
    Case("frames-positive", lambda s, t: mod(frames=frame_table(s), positive_only=True), S),
    Case("frames-ultravico", ultravico, Shape(1, 2, 1, 130, 130, 32)),
    Case("distance", lambda s, t: mod(distance=distance_table(s, outside=9), frames=frame_table(s), scale=per_head), S),
    Case("scale-centred", lambda s, t: mod(distance=distance_table(s), scale=per_head, center_keys=True), S),
    # blocks
    Case("blocks-all", lambda s, t: listed(plan_of(flat(70, 32), flat(70, 32), density=1.1)), S),
    Case("blocks-diagonal", lambda s, t: listed(plan_of(flat(70, 32), flat(70, 32), density=0.0)), S),
    Case("blocks-per-head", lambda s, t: listed(plan_of(flat(70, 32), flat(70, 64), 4)), Shape(2, 4, 2, 70, 70, 32)),
    Case("blocks-each-its-own", lambda s, t: listed(plan_of(flat(70, 32), flat(50, 32), 2, 2)), Shape(2, 2, 1, 70, 50, 32)),
    Case("blocks-fp16", lambda s, t: listed(plan_of(flat(200, 64), flat(200, 64))), Shape(1, 1, 1, 200, 200, 64), half),
    Case("blocks-bf16", lambda s, t: listed(plan_of(framed(64), framed(64), 2)), Shape(1, 2, 1, 70, 70, 40), bf16, "bnhd"),
    Case("blocks-tall", lambda s, t: listed(plan_of(flat(200, 128), flat(200, 64))), Shape(1, 1, 1, 200, 200, 32)),
    Case("blocks-frames", lambda s, t: listed(plan_of(framed(), framed(64))), S, layout="bnhd"),
    Case("blocks-tiles", lambda s, t: listed(plan_of(tiled(), tiled(), 2)), S),
    Case("blocks-empty-row", lambda s, t: listed(emptied(tiled())), S),
    Case("window", lambda s, t: listed(plan_of(tiled(), tiled(), test=Window(2.5))), S),
    Case("window-3d", lambda s, t: listed(plan_of(framed(), framed(), test=Window(2.5, 1.5, inverted=True))), S),
    Case("band", lambda s, t: listed(plan_of(framed(), framed(), 2, test=Band(6))), S),
    Case("frame-range", lambda s, t: listed(plan_of(framed(), framed(), test=Frames(0, 1))), S),
    Case("bits", lambda s, t: listed(to_bits(plan_of(tiled(), tiled(), 2, test=Window(2.5)))), S),
    Case("bits-wide", lambda s, t: listed(to_bits(plan_of(framed(), framed(64), test=Band(6)))), Shape(1, 4, 2, 70, 70, 32)),
    # together
    Case("blocks-bias-labels", lambda s, t: listed(plan_of(framed(), framed(), 2, test=Band(6)), key_bias=key_bias(s), labels=labels(s, batch=2)), Shape(2, 2, 1, 70, 70, 32)),
    Case("blocks-ultravico", lambda s, t: listed(plan_of(framed(), framed(), test=Band(6)), modulation=ultravico(s, per_frame=20).modulation), S),
    # stages around the kernel
    Case("segments", lambda s, t: listed(plan_of(framed(), framed()), extra_kv=(segment(s, t, rows=True), segment(s, t, length=33))), S),
    Case("tail-row", lambda s, t: listed(plan_of(framed(), framed(), 2, tail="row")), S),
    Case("tail-centroid", lambda s, t: listed(plan_of(tiled(), tiled(), tail="centroid")), S),
    Case("tail-segment", lambda s, t: listed(plan_of(framed(), framed(), tail="row"), extra_kv=(segment(s, t),)), S, half),
    Case("rotation-mix-edits", lambda s, t: listed(plan_of(framed(), framed()), rotation=rotation(s), head_mix=(mixes(s, "mean"),), row_edits=edits(s, t)), S),
]  # fmt: skip


def sources(plan: AttentionPlan) -> list[Tensor]:
    """The tensors of a plan that have gradients."""
    parts = [plan.key_bias, *(x for e in plan.extra_kv for x in (e.k, e.v, e.bias))]
    return [x.requires_grad_() for x in parts if x is not None]


def weights(s: Shape, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Upstream gradients of the output and of the log-sum-exp."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(s.batch, s.heads, s.n_q, s.width, generator=g).double().to(DEVICE), torch.randn(s.batch, s.heads, s.n_q, generator=g).double().to(DEVICE)


def grads(function, plan: AttentionPlan, s: Shape, dtype=torch.float32, layout="bhnd", **options) -> tuple[Tensor, ...]:
    q, k, v = (x.detach().requires_grad_() for x in tensors(s, dtype, layout))
    inputs = (q, k, v, *sources(plan))
    outs = function(q, k, v, plan, return_lse=True, **options)
    loss = sum((x.masked_fill(x == -math.inf, 0).double() * w).sum() for x, w in zip(outs, weights(s), strict=True))
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_gradients_are_those_of_the_reference(case):
    plan = case.build(case.shape, case.dtype)
    got = grads(attend, plan, case.shape, case.dtype, case.layout, backend="triton")
    want = grads(reference_attend, plan, case.shape, case.dtype, case.layout)
    names = ["q", "k", "v", *(f"source {i}" for i in range(len(got) - 3))]
    for name, a, b in zip(names, got, want, strict=True):
        assert a.dtype == b.dtype
        if case.id == "bias-nothing-left":
            assert (a == 0).all(), name
        else:
            assert_close(f"grad {name}", a, b.nan_to_num(), TOLERANCE[case.dtype])


def test_finite_differences_of_the_reference():
    order = by_frame(10, 4, (2, 2, 2), 1)
    plan = from_bool(torch.eye(order.blocks).bool(), order, order, partial=~torch.eye(order.blocks).bool().roll(1, 0), test=Band(1), tail="row")
    bias = torch.randn(1, 2, 3, dtype=torch.float64)
    q, k, v = (x.double().requires_grad_() for x in tensors(Shape(1, 2, 1, 10, 10, 4)))
    sk, sv, bias = (x.double().requires_grad_() for x in (*tensors(Shape(1, 1, 1, 3, 3, 4), seed=1)[:2], bias))

    def through(q, k, v, sk, sv, bias):
        return reference_attend(q, k, v, listed(plan, extra_kv=(ExtraKV(sk, sv, bias),)), return_lse=True)

    assert torch.autograd.gradcheck(through, (q, k, v, sk, sv, bias))


def test_two_runs_give_the_same_bits():
    plan = listed(plan_of(framed(), framed(), 2, test=Band(6)), key_bias=key_bias(S))
    for a, b in zip(*(grads(attend, plan, S, backend="triton") for _ in range(2)), strict=True):
        assert torch.equal(a, b)


def test_a_gradient_does_not_depend_on_the_rest_of_the_batch():
    s = Shape(3, 2, 1, 70, 70, 32)
    plan = listed(plan_of(framed(), framed(), 2), modulation=ultravico(s).modulation)
    together = grads(attend, plan, s, backend="triton")
    for b in range(3):
        q, k, v = (x[b : b + 1].detach().requires_grad_() for x in tensors(s))
        outs = attend(q, k, v, plan, return_lse=True, backend="triton")
        alone = torch.autograd.grad(sum((x.double() * w[b : b + 1]).sum() for x, w in zip(outs, weights(s), strict=True)), (q, k, v))
        for name, x, y in zip("qkv", alone, together, strict=True):
            assert torch.equal(x[0], y[b]), name


@pytest.mark.parametrize("wanted", ["q", "k", "v"])
def test_only_what_is_asked_for_is_computed(wanted):
    plan, whole = listed(plan_of(framed(), framed())), {}
    for name in (wanted, "all"):
        q, k, v = tensors(S)
        inputs = [x.requires_grad_() for n, x in zip("qkv", (q, k, v), strict=True) if name in (n, "all")]
        whole[name] = torch.autograd.grad(attend(q, k, v, plan, backend="triton").square().sum(), inputs)
    assert torch.equal(whole[wanted][0], whole["all"]["qkv".index(wanted)])


def test_the_log_sum_exp_alone_has_a_gradient():
    def through(function, **options):
        q, k, v = (x.requires_grad_() for x in tensors(S))
        _, lse = function(q, k, v, AttentionPlan(), return_lse=True, **options)
        return torch.autograd.grad(lse.double().square().sum(), (q, k))

    for name, a, b in zip("qk", through(attend, backend="triton"), through(reference_attend), strict=True):
        assert_close(f"grad {name}", a, b, 1e-5)


def test_what_arrives_for_the_log_sum_exp_of_an_empty_row_is_ignored():
    q, k, v = (x.requires_grad_() for x in tensors(S))
    _, lse = attend(q, k, v, AttentionPlan(labels=labels(S, empty_rows=True)), return_lse=True, backend="triton")
    empty = lse.detach() == -math.inf
    assert empty.any()
    dq, dk = torch.autograd.grad(lse, (q, k), torch.where(empty, math.nan, 1.0))
    assert dk.isfinite().all()
    assert dq.isfinite().all()
    assert (dq[empty] == 0).all()


def test_unlisted_keys_have_no_gradient_and_may_hold_anything():
    order = flat(70, 32)
    mask = torch.ones(order.blocks, order.blocks, dtype=torch.bool, device=DEVICE)
    mask[:, 1] = False
    q, k, v = tensors(S)
    with torch.no_grad():
        k[:, :, 32:64], v[:, :, 40] = math.nan, math.inf
    inputs = [x.requires_grad_() for x in (q, k, v)]
    dq, dk, dv = torch.autograd.grad(attend(q, k, v, listed(from_bool(mask, order, order)), backend="triton").sum(), inputs)
    assert dq.isfinite().all()
    for grad in (dk, dv):
        assert grad.isfinite().all()
        assert (grad[:, :, 32:64] == 0).all()


def test_a_second_derivative_is_refused_with_a_sentence():
    q, k, v = (x.requires_grad_() for x in tensors(S))
    (first,) = torch.autograd.grad(attend(q, k, v, AttentionPlan(), backend="triton").sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative; use the backend 'chunked' or 'sdpa'"):
        first.sum().backward()


def test_what_is_kept_for_the_backward_is_linear_in_the_tokens():
    plan = listed(plan_of(framed(), framed()))
    q, k, v = (x.requires_grad_() for x in tensors(S))
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.update({x.data_ptr(): x.numel()}) or x, lambda x: x):
        attend(q, k, v, plan, backend="triton")
    assert sum(kept.values()) == q.numel() * 2 + k.numel() * 2 + q.shape[1] * q.shape[2]


class Largest(TorchDispatchMode):
    """Records the largest storage, in elements, behind any tensor an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return out


def test_nothing_is_allocated_between_queries_and_keys():
    s = Shape(1, 1, 1, 450, 450, 32)
    q, k, v = (x.requires_grad_() for x in tensors(s))
    plan = listed(plan_of(flat(450, 64), flat(450, 64)), modulation=ultravico(s).modulation)
    with Largest() as seen:
        attend(q, k, v, plan, backend="triton").sum().backward()
    assert seen.elements <= 450 * 64


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([32, 64]), st.sampled_from([32, 64]), st.floats(0, 1), st.integers(0, 99))
def test_gradients_of_random_plans(n_q, n_k, block_q, block_k, density, seed):
    s = Shape(1, 2, 1, n_q, n_k, 16)
    order_q, order_k = flat(n_q, block_q), flat(n_k, block_k)
    plan = listed(from_bool(chance(order_q, order_k, 2, seed=seed) < density, order_q, order_k))
    for name, a, b in zip("qkv", grads(attend, plan, s, backend="triton"), grads(reference_attend, plan, s), strict=True):
        assert (a - b).abs().max() <= 2e-6 * max(1.0, float(b.abs().max())), name


def test_a_compiled_call_has_the_same_gradients():
    plan = listed(plan_of(framed(), framed()))
    compiled = torch.compile(lambda q, k, v: attend(q, k, v, plan, backend="triton"), backend="aot_eager")

    def through(function):
        q, k, v = (x.requires_grad_() for x in tensors(S))
        return torch.autograd.grad(function(q, k, v).square().sum(), (q, k, v))

    for a, b in zip(through(compiled), through(lambda *x: attend(*x, plan, backend="triton")), strict=True):
        assert torch.equal(a, b)


def test_rules_made_under_inference_mode_do_not_stand_in_the_way():
    with torch.inference_mode():
        plan = listed(plan_of(framed(), framed(), test=Band(6)), key_bias=key_bias(S), labels=labels(S))
        attend(*tensors(S), plan, backend="triton")  # the lists are made and kept under inference mode, too
    q, k, v = (x.requires_grad_() for x in tensors(S))
    got = torch.autograd.grad(attend(q, k, v, plan, backend="triton").square().sum(), (q, k, v))
    want = torch.autograd.grad(reference_attend(q, k, v, plan).square().sum(), (q, k, v))
    for name, a, b in zip("qkv", got, want, strict=True):
        assert_close(f"grad {name}", a, b, 1e-5)


def test_a_launch_that_fails_is_tried_once_more_with_the_smallest_settings(monkeypatch):
    from attention_loom.kernels.triton import gradients

    careful, inner = [], gradients.backward_settings

    def first_fails(arch, width, size, pairs, small):
        careful.append(small)
        if not small:
            raise RuntimeError("out of resources: shared memory")
        return inner(arch, width, size, pairs, small)

    want = grads(attend, AttentionPlan(), S, backend="triton")
    monkeypatch.setattr(gradients, "backward_settings", first_fails)
    got = grads(attend, AttentionPlan(), S, backend="triton")
    assert careful == [False, True]
    assert torch.equal(got[0], want[0])


def test_operators_are_well_formed():
    from attention_loom.kernels.triton import backward, gradients

    q, k, v = tensors(Shape(1, 2, 1, 40, 40, 32))
    order = by_frame(40, 32, (2, 4, 5), 0)
    plan = AttentionPlan(blocks=from_bool(torch.eye(2).bool(), order, order), key_bias=torch.zeros(1, 1, 40), modulation=Modulation(scale=per_head, center_keys=True))
    o, lse = torch.ones_like(q), torch.ones(1, 2, 40)
    queries, keys, sizes, scalars = gradients.arguments(q, k, plan, 0.2, k.mean(2), False)
    checks = ["test_schema", "test_faketensor", "test_aot_dispatch_dynamic"]
    torch.library.opcheck(backward.dq_op, (q, k, v, o, o, lse, None, queries.pack(), sizes.pack(), scalars), test_utils=checks)
    torch.library.opcheck(backward.dkdv_op, (q, k, v, o, lse, lse, keys.pack(), sizes.pack(), scalars), test_utils=checks)


@pytest.mark.timeout(240)
def test_the_passes_compile_for_real_gpus():
    """A short selection; ``python tools/aot_backward.py --all`` does every configuration."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    tool = Path(kernels.__file__).parent.parent / "tools" / "aot_backward.py"
    done = subprocess.run([sys.executable, str(tool), "--no-resources"], capture_output=True, text=True, env=env, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wgmma" in done.stdout
    assert "v_mfma" in done.stdout
