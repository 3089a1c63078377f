"""Merging partial results: order does not matter, empty sides vanish, any split of the keys gives the whole."""

import math

import torch
from attention_loom.kernels import AttentionPlan, attend, merge
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Shape, assert_close, key_bias, tensors


def side(seed: int, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    o, lse = torch.randn(2, 3, 17, 8, generator=g).to(dtype), torch.randn(2, 3, 17, generator=g) * 30
    gone = torch.rand(2, 3, 17, generator=g) < 0.2
    return o.masked_fill(gone[..., None], 0), lse.masked_fill(gone, -math.inf)


@given(st.integers(0, 2**20), st.integers(0, 2**20), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(deadline=None, max_examples=40)
def test_commutative_bit_for_bit(a, b, dtype):
    left, right = side(a, dtype), side(b, dtype)
    for x, y in zip(merge(*left, *right), merge(*right, *left), strict=True):
        assert torch.equal(x, y)


@given(st.integers(0, 2**20))
@settings(deadline=None, max_examples=20)
def test_an_empty_side_leaves_the_other_exactly(seed):
    o, lse = side(seed)
    nothing = (torch.zeros_like(o), torch.full_like(lse, -math.inf))
    merged, total = merge(o, lse, *nothing)
    assert torch.equal(merged, o)
    assert torch.equal(total, lse)
    empty, none = merge(*nothing, *nothing)
    assert (empty == 0).all()
    assert (none == -math.inf).all()


@given(st.integers(0, 2**20))
@settings(deadline=None, max_examples=20)
def test_associative(seed):
    a, b, c = side(seed), side(seed + 1), side(seed + 2)
    left, right = merge(*merge(*a, *b), *c), merge(*a, *merge(*b, *c))
    assert torch.allclose(left[0], right[0], atol=2e-6)
    assert torch.allclose(left[1], right[1], atol=1e-5)


@given(st.lists(st.integers(1, 69), min_size=2, max_size=2, unique=True), st.sampled_from(["chunked", "triton"]))
@settings(deadline=None, max_examples=8)
def test_a_split_of_the_keys_gives_the_whole(cuts, backend):
    s = Shape(n_q=33, n_k=70, width=32)
    q, k, v = tensors(s)
    bias = key_bias(s)
    whole, whole_lse = attend(q, k, v, AttentionPlan(key_bias=bias), backend=backend, return_lse=True)
    edges = [0, *sorted(cuts), 70]
    o = lse = None
    for a, b in zip(edges, edges[1:], strict=False):
        part = attend(q, k[:, :, a:b], v[:, :, a:b], AttentionPlan(key_bias=bias[:, :, a:b]), backend=backend, return_lse=True)
        o, lse = part if o is None else merge(o, lse, *part)
    assert_close("o", o, whole, 2e-6)
    assert torch.allclose(lse, whole_lse, atol=1e-5)


def test_large_values_do_not_overflow():
    o = torch.full((1, 1, 2, 4), 1e4)
    merged, lse = merge(o, torch.tensor([[[900.0, -900.0]]]), o, torch.tensor([[[901.0, -900.0]]]))
    assert torch.allclose(merged, o)
    assert lse.isfinite().all()


def test_gradient_passes_through_both_sides():
    a, b = [x.double().requires_grad_() for x in side(1)], [x.double().requires_grad_() for x in side(2)]
    o, lse = merge(*a, *b)
    (o.sum() + lse.masked_fill(lse == -math.inf, 0).sum()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (*a, *b))
