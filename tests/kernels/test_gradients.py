"""Gradients of the differentiable path against autograd through the reference."""

import math

import pytest
import torch
from attention_loom.kernels import AttentionPlan, ExtraKV, Probe, Trace, attend, reference_attend
from attention_loom.kernels.chunked import chunked_attend
from kernel_cases import Shape, assert_close, everything, key_bias, labels, segment, tensors, ultravico

S = Shape(batch=1, heads=2, key_heads=1, n_q=33, n_k=33, width=16)


def leaves():
    return [x.requires_grad_() for x in tensors(S)]


def grads(function, plan, weights):
    q, k, v = leaves()
    out = function(q, k, v, plan, return_lse=True)
    loss = sum((x.masked_fill(x == -math.inf, 0).double() * w).sum() for x, w in zip(out, weights, strict=True))
    return torch.autograd.grad(loss, (q, k, v))


@pytest.mark.parametrize(
    "plan",
    [
        AttentionPlan(),
        ultravico(S, masked=True),
        AttentionPlan(key_bias=key_bias(S), labels=labels(S, empty_rows=True)),
        AttentionPlan(extra_kv=(segment(S, torch.float32, rows=True),)),
        everything(S, torch.float32),
    ],
    ids=["stock", "ultravico", "bias-labels", "segment", "everything"],
)
def test_gradients_agree_with_reference(plan):
    g = torch.Generator().manual_seed(5)
    weights = torch.randn(1, 2, 33, 16, generator=g).double(), torch.randn(1, 2, 33, generator=g).double()
    got, want = grads(attend, plan, weights), grads(reference_attend, plan, weights)
    for name, a, b in zip("qkv", got, want, strict=True):
        assert_close(f"grad {name}", a, b, 1e-5)


def test_gradients_through_small_chunks():
    plan = ultravico(S, masked=True)
    q, k, v = leaves()
    o, lse = chunked_attend(q, k, v, plan, 0.25, budget=32 * 50)
    got = torch.autograd.grad(o.sum() + lse.sum(), (q, k, v))
    q, k, v = leaves()
    o, lse = reference_attend(q, k, v, plan, return_lse=True)
    want = torch.autograd.grad(o.sum() + lse.sum(), (q, k, v))
    for name, a, b in zip("qkv", got, want, strict=True):
        assert_close(f"grad {name}", a, b, 2e-5)


def test_key_bias_and_segments_get_gradients():
    q, k, v = tensors(S)
    bias = torch.randn(1, 1, 33).requires_grad_()
    e = ExtraKV(*(torch.randn(1, 1, 5, 16).requires_grad_() for _ in range(2)), torch.randn(1, 2, 5).requires_grad_())
    plan = AttentionPlan(key_bias=bias, extra_kv=(e,))
    inputs = (bias, e.k, e.v, e.bias)
    got = torch.autograd.grad(attend(q, k, v, plan).square().sum(), inputs)
    want = torch.autograd.grad(reference_attend(q, k, v, plan).square().sum(), inputs)
    for name, a, b in zip(("bias", "k", "v", "segment bias"), got, want, strict=True):
        assert_close(f"grad {name}", a, b, 1e-5)


def test_probes_are_differentiable():
    plan = AttentionPlan(labels=labels(S, empty_rows=True), probes=(Probe("c", "columns", torch.tensor([1, 4])), Probe("e", "entropy"), Probe("p", "popularity")))

    def through(function):
        q, k, v = leaves()
        function(q, k, v, plan, trace=(t := Trace()))
        loss = sum(x.double().square().sum() for x in t.probes.values())
        return torch.autograd.grad(loss, (q, k))

    for name, a, b in zip("qk", through(attend), through(reference_attend), strict=True):
        assert_close(f"grad {name}", a, b, 1e-5)


@pytest.mark.parametrize("backend", ["host", "sdpa"])
def test_rows_without_a_key_have_zero_gradient_not_nan(backend):
    def naive(q, k, v, mask=None):
        return torch.softmax(q @ k.transpose(-1, -2) * S.width**-0.5 + mask, -1) @ v

    q, k, v = (x.detach() for x in tensors(Shape(n_q=9, width=16)))
    q.requires_grad_()
    gone = torch.full((1, 2, 9), -math.inf)
    gone[:, 1] = 0
    out = attend(q, k, v, AttentionPlan(key_bias=gone), backend=backend, dense=naive)
    assert (out[:, 0] == 0).all()
    (grad,) = torch.autograd.grad(out.sum(), q)
    assert grad.isfinite().all()
    assert (grad[:, 0] == 0).all()
