"""Row affine, ``scale * out + residual``: what the case table cannot show. In one pass, on split rows, after patterns, with gradients."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from attention_loom.kernels import AttentionPlan, RowAffine, attend, reference_attend
from attention_loom.kernels import backends as registry
from attention_loom.kernels import lists as lists_module
from attention_loom.kernels.patterns.band import FrameBand
from attention_loom.kernels.patterns.base import Moment, Pattern, Tokens
from attention_loom.kernels.patterns.rettention import Rettention
from attention_loom.kernels.sparse import Sparse
from attention_loom.kernels.triton import op
from block_cases import sparse
from history_cases import NoWaiting
from kernel_cases import DEVICE, Shape, affine, assert_close, assert_lse_close, blocks, mixes, segment, tensors

S = Shape(n_q=118, width=32)


@pytest.fixture
def cores(monkeypatch) -> list[AttentionPlan]:
    """The plan of every launch of the forward kernel, as they happen."""
    seen: list[AttentionPlan] = []
    triton = registry._registry["triton"]
    watched = replace(triton, run=lambda call, q, k, v, plan, *more: (seen.append(plan), triton.run(call, q, k, v, plan, *more))[1])
    monkeypatch.setitem(registry._registry, "triton", watched)
    return seen


def agrees(q, k, v, plan, backend="triton"):
    o, lse = attend(q, k, v, plan, backend=backend, return_lse=True)
    want, want_lse = reference_attend(q, k, v, plan, return_lse=True)
    assert_close("o", o, want, 3e-6)
    assert_lse_close(lse, want_lse, 2e-5)
    return o


def test_it_rides_with_the_kernel_and_before_the_head_mix(cores):
    plan = blocks(S, AttentionPlan(row_affine=affine(S), head_mix=(mixes(S, "mean"),)), order="tile", tail="row")
    agrees(*tensors(S), plan)
    (inner,) = cores
    assert inner.features == {"blocks", "row_affine", "head_mix"}


@pytest.mark.parametrize("more", ["segments", "centroid"])
def test_a_softmax_that_is_not_whole_keeps_it_and_the_head_mix_outside(cores, more):
    extra = tuple(segment(S, torch.float32, length=5 + i) for i in range(3)) if more == "segments" else ()
    parts = AttentionPlan(extra_kv=extra, row_affine=affine(S), head_mix=(mixes(S, "identity"),))
    agrees(*tensors(S), blocks(S, parts, order="tile", tail="off" if extra else "centroid"))
    assert cores
    assert not any(inner.features & {"row_affine", "head_mix"} for inner in cores)


def test_split_rows_take_it_once_and_in_source_order(monkeypatch, cores):
    monkeypatch.setattr(lists_module, "SPLIT_ABOVE", 2)
    s = Shape(heads=2, key_heads=1, n_q=150, width=32)
    plan = AttentionPlan(blocks=sparse(s, DEVICE, order="frame", density=0.3, groups=2, free=True), row_affine=affine(s))
    agrees(*tensors(s), plan)
    assert len(cores) == 1
    assert lists_module.work_lists(plan, s.n_q, s.n_q, 64, 64).splits > 1
    assert not plan.blocks.q.identity


@pytest.mark.parametrize("backend", ["triton", "chunked"])
def test_a_head_range_takes_its_rows(backend):
    s = Shape(batch=2, heads=4, key_heads=2, n_q=63, width=32)
    q, k, v = tensors(s)
    for part in (affine(s), affine(s, heads=1)):
        plan = AttentionPlan(row_affine=part)
        whole = attend(q, k, v, plan, backend=backend)
        assert torch.equal(attend(q[:, 2:], k[:, 1:], v[:, 1:], plan.head_range(2, 4, 4), backend=backend), whole[:, 2:])


def test_it_gathers_a_shared_or_strided_residual_without_waiting_or_copying():
    q, k, v = tensors(S)
    part = affine(S, layout="bnhd")
    with NoWaiting():
        t, _, _ = op.gather(q, k, v, AttentionPlan(row_affine=part), 0.2, op.choose(q, [], False), False)
    assert t.residual.data_ptr() == part.residual.data_ptr()
    assert t.row_scale.data_ptr() == part.scale.data_ptr()


@pytest.mark.parametrize("backend", ["triton", "chunked"])
def test_gradients_reach_inputs_factors_and_residual(backend):
    q, k, v = (x.requires_grad_() for x in tensors(S))
    part = affine(S)
    part = RowAffine(part.scale.requires_grad_(), part.residual.requires_grad_())
    plan = blocks(S, AttentionPlan(row_affine=part), order="frame")
    inputs = (q, k, v, part.scale, part.residual)
    got, want = (torch.autograd.grad(f(q, k, v, plan).square().sum(), inputs) for f in (lambda *a: attend(*a, backend=backend), reference_attend))
    for name, a, b in zip(("q", "k", "v", "scale", "residual"), got, want, strict=True):
        assert_close(f"grad {name}", a, b, 1e-5)


def test_a_gradient_of_the_residual_alone_is_not_lost():
    part = affine(S)
    part.residual.requires_grad_()
    attend(*tensors(S), AttentionPlan(row_affine=part), backend="triton").sum().backward()
    assert (part.residual.grad == 1).all()


BAD = {
    r"row_affine.scale has shape \[1, 2, 7\]": lambda a: RowAffine(a.scale[..., :7], a.residual),
    r"row_affine.scale has dtype torch.float16": lambda a: RowAffine(a.scale.half(), a.residual),
    r"row_affine.residual has shape \[1, 2, 118, 9\]": lambda a: RowAffine(a.scale, a.residual[..., :9]),
    r"row_affine.residual has dtype torch.int8; expected a floating point type": lambda a: RowAffine(a.scale, a.residual.char()),
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_named(message):
    with pytest.raises(ValueError, match="^" + message):
        attend(*tensors(S), AttentionPlan(row_affine=BAD[message](affine(S))))


# --- patterns -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repaired(Pattern):
    """Listed blocks with a tail of any kind, and an affine on what they give."""

    name: ClassVar[str] = "repaired"
    reads: ClassVar = "geometry"
    needs_lse: ClassVar[bool] = True

    plan: object = None
    label: ClassVar[str] = "repaired"

    def blocks(self, s):
        return self.plan.blocks

    def run(self, s, core):
        return self.sparse(s, core, self.blocks(s), affine=self.plan.row_affine)


@pytest.mark.parametrize("tail", ["off", "row", "centroid"])
@pytest.mark.parametrize("backend", ["triton", "chunked"])
def test_a_pattern_may_ask_for_it_and_a_call_for_another(backend, tail):
    """The pattern's own comes first; that of the call acts on what segments have been merged into."""
    s = replace(S, n_q=100)
    inner = blocks(s, AttentionPlan(row_affine=affine(s)), tail=tail)
    outer, (q, k, v) = affine(replace(s, heads=1), heads=1), tensors(s)
    bound = Sparse(Repaired(plan=inner, block=32), Tokens(100), Moment(), ((1, {}),))
    got = attend(q, k, v, AttentionPlan(blocks=bound, row_affine=outer), backend=backend)
    want = outer.scale.double()[..., None] * reference_attend(q, k, v, inner) + outer.residual.double()
    assert_close("o", got, want, 3e-6)


@pytest.mark.parametrize(("cache", "fused"), [("fp32", True), ("bf16", True), ("int8", False)])
def test_rettention_repairs_in_the_same_pass_where_the_residual_is_not_packed(cores, cache, fused):
    pattern = Rettention(base=FrameBand(block=32, density=0.2), start=0.25, every=5, block=32, cache=cache)
    (q, k, v), state, outs = tensors(S), {}, {}
    for step in (5, 6):
        cores.clear()
        bound = Sparse(pattern, Tokens(S.n_q), Moment(step / 20, 20), ((1, state),))
        outs[step] = attend(q, k, v, AttentionPlan(blocks=bound), backend="triton")
        assert [core.row_affine is not None for core in cores] == ([False, False] if step == 5 else [fused])
    assert_close("o", outs[6], outs[5].double(), {"fp32": 1e-6, "bf16": 4e-3, "int8": 1e-2}[cache])
