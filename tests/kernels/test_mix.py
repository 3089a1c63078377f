"""Head mix against maps written out pair by pair, and what it promises beyond the case table."""

import dataclasses
import math

import pytest
import torch
from attention_loom.kernels import AttentionPlan, HeadMix, Modulation, attend
from attention_loom.kernels.mix import mix_target
from kernel_cases import DEVICE, Shape, assert_close, key_bias, mixes, tensors

S = Shape(heads=3, n_q=21, width=16)
TEXT = 6
TARGETS = ["identity", "mean", "query", "max", "own"]


def plain_dense(q, k, v, mask=None):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def mix_of(target, amount=None):
    made = mixes(S, target, listed=TEXT if target == "own" else 0)
    return made if amount is None else dataclasses.replace(made, amount=torch.full((S.heads,), amount, device=DEVICE))


def simpler_map(target, q, k):
    """A* of one head, by loops over rows: [N, N] fp64."""
    n, d = q.shape
    s = (q.double() @ k.double().T) / d**0.5
    rows = []
    for i in range(n):
        row = torch.zeros(n, dtype=torch.float64)
        if target == "identity":
            row[i] = 1
        elif target == "mean":
            row[:] = 1 / n
        elif target == "query":
            row = ((q.double().mean(0) @ k.double().T) / d**0.5).softmax(0)
        elif target == "max":
            row[int(s[i].argmax())] = 1
        else:
            seen = [*range(TEXT), i]
            row[seen] = s[i, seen].softmax(0)
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_its_map_times_the_values(target):
    q, k, v = tensors(S)
    mix = mix_of(target)
    out = attend(q, k, v, AttentionPlan(head_mix=(mix,)), backend="chunked")
    for h, u in enumerate(mix.amount.tolist()):
        stock = ((q[0, h].double() @ k[0, h].double().T) / S.width**0.5).softmax(-1).cpu()
        whole = (1 - u) * stock + u * simpler_map(target, q[0, h].cpu(), k[0, h].cpu())
        if mix.rows is not None:
            whole = torch.where(mix.rows.cpu()[:, None], whole, stock)
        assert (out[0, h].cpu() - whole @ v[0, h].cpu().double()).abs().max() < 1e-5


@pytest.mark.parametrize("target", TARGETS)
def test_amount_one_and_zero_are_exact(target):
    q, k, v = tensors(S)
    whole, none = (attend(q, k, v, AttentionPlan(head_mix=(mix_of(target, u),)), backend="host", dense=plain_dense) for u in (1.0, 0.0))
    rows = slice(TEXT if target == "own" else 0, None)
    mix = mix_of(target, 1.0)
    wanted = mix_target(q, k, v, mix, AttentionPlan(), S.width**-0.5)[:, :, 0].expand(q.shape)
    assert torch.equal(whole[:, :, rows], wanted[:, :, rows].to(q.dtype))
    assert torch.equal(none, plain_dense(q, k, v))


def test_a_bias_that_drops_all_listed_keys_leaves_the_own_one():
    q, k, v = tensors(S)
    bias = torch.zeros(1, 1, S.keys, device=DEVICE)
    bias[..., :TEXT] = -math.inf
    out = attend(q, k, v, AttentionPlan(key_bias=bias, head_mix=(mix_of("own", 1.0),)), backend="chunked")
    assert torch.equal(out[:, :, TEXT:], v[:, :, TEXT:])


def test_a_plain_factor_on_the_logits_holds_in_the_simpler_attention():
    q, k, v = tensors(S)
    factor = torch.linspace(0.5, 2, S.heads, device=DEVICE)
    for target in ("query", "max", "own"):
        ours = attend(q, k, v, AttentionPlan(modulation=Modulation(scale=factor), head_mix=(mix_of(target),)), backend="chunked")
        same = attend(q * factor[:, None, None], k, v, AttentionPlan(head_mix=(mix_of(target),)), backend="chunked")
        assert_close(target, ours, same.double(), 3e-6)


def test_max_of_a_row_without_keys_is_zero():
    q, k, v = tensors(S)
    bias = torch.full((1, 1, S.keys), -math.inf, device=DEVICE)
    out = attend(q, k, v, AttentionPlan(key_bias=bias, head_mix=(mix_of("max", 1.0),)), backend="chunked")
    assert torch.equal(out, torch.zeros_like(out))


def test_what_does_not_fit_is_said():
    q, k, v = tensors(S)
    one = torch.ones(S.heads, device=DEVICE)
    for mix, words in (
        (HeadMix(one, "blur"), "expected 'identity', 'mean', 'query', 'max' or 'own'"),
        (HeadMix(one, "own"), "keys goes with target 'own'"),
        (HeadMix(one, "mean", keys=torch.arange(3)), "keys goes with target 'own'"),
        (HeadMix(one, "own", keys=torch.arange(0)), "keys is empty"),
    ):
        with pytest.raises(ValueError, match=words):
            attend(q, k, v, AttentionPlan(key_bias=key_bias(S), head_mix=(mix,)))
