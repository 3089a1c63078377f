"""Probabilities of chosen keys against the whole softmax, and their gradients against autograd through it."""

import math

import pytest
import torch
from attention_loom.kernels import AttentionPlan, attend, probs
from kernel_cases import Shape, assert_close, tensors

CHOSEN = torch.tensor([3, 0, 41])


def softmax(q, k, bias=None):
    s = q.double() @ k.double().repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2) * q.shape[-1] ** -0.5
    return (s if bias is None else s + bias.double()[:, :, None]).softmax(-1)[..., CHOSEN]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_they_are_columns_of_the_softmax(dtype):
    q, k, v = tensors(Shape(2, 4, 2, 37, 50, 32), dtype, layout="bnhd")
    bias = torch.randn(1, 4, 50)
    _, lse = attend(q, k, v, AttentionPlan(key_bias=bias), return_lse=True)
    got = probs(q, k[:, :, CHOSEN], lse, key_bias=bias[:, :, CHOSEN])
    assert got.dtype == torch.float32
    assert_close("p", got, softmax(q, k, bias), 2e-6 if dtype == torch.float32 else 1e-3)


def test_gradients_are_those_of_the_softmax():
    weight = torch.randn(1, 4, 37, 3, generator=torch.Generator().manual_seed(1)).double()

    def through(make):
        q, k, v = (x.requires_grad_() for x in tensors(Shape(1, 4, 2, 37, 50, 32)))
        return torch.autograd.grad((make(q, k, v).double() * weight).sum(), (q, k))

    got = through(lambda q, k, v: probs(q, k[:, :, CHOSEN], attend(q, k, v, AttentionPlan(), return_lse=True)[1]))
    want = through(lambda q, k, v: softmax(q, k))
    for name, a, b in zip("qk", got, want, strict=True):
        assert_close(f"grad {name}", a, b, 1e-5)


def test_finite_differences():
    q, k, _ = (x.double().requires_grad_() for x in tensors(Shape(1, 2, 1, 3, 4, 4)))
    lse = torch.randn(1, 2, 3, dtype=torch.float64).requires_grad_()
    bias = torch.randn(1, 2, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k, lse, b: probs(q, k, lse, scale=0.7, key_bias=b), (q, k, lse, bias))


def test_rows_that_read_nothing_have_no_probability_and_no_gradient():
    q, k, _ = tensors(Shape(1, 1, 1, 2, 4, 16))
    q.requires_grad_()
    lse = torch.tensor([[[-math.inf, 1.0]]]).requires_grad_()
    p = probs(q, k, lse)
    assert (p[:, :, 0] == 0).all()
    for grad in torch.autograd.grad(p.sum(), (q, lse)):
        assert grad.isfinite().all()
        assert (grad[:, :, 0] == 0).all()


def test_what_does_not_fit_is_said():
    q, k, _ = tensors(Shape(1, 2, 1, 5, 300, 16))
    with pytest.raises(ValueError, match="at most 256 keys, 300 were chosen"):
        probs(q, k, torch.zeros(1, 2, 5))
    with pytest.raises(ValueError, match="lse has shape"):
        probs(q, k[:, :, :3], torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="k_subset has shape"):
        probs(q, k[..., :8], torch.zeros(1, 2, 5))
