"""Exact properties a plan must have on every backend that executes it (``specs``: UltraViCo (f))."""

import math

import pytest
import torch
from attention_loom.kernels import (
    AttentionPlan,
    DistanceTable,
    FrameTable,
    HeadMix,
    Modulation,
    Probe,
    RowEdit,
    Trace,
    attend,
    reference_attend,
)
from kernel_cases import (
    DEVICE,
    Shape,
    assert_close,
    everything,
    frame_table,
    key_bias,
    labels,
    mixes,
    rotation,
    segment,
    tensors,
    ultravico,
)

RULES = ["triton", "chunked"]
rules = pytest.mark.parametrize("backend", RULES)
S = Shape(n_q=127)


def decay(alpha: float, *, center: bool = True, text: int = 0) -> AttentionPlan:
    table = frame_table(S, text=text, factors=[1.0, alpha, alpha])
    return AttentionPlan(modulation=Modulation(frames=table, positive_only=True, center_keys=center))


def weights(backend: str, q, k, plan) -> torch.Tensor:
    """Probabilities [B,H,Nq,Nk], read off by attending to unit vectors (as wide as a head, a few keys at a time)."""
    columns = []
    for j in range(0, k.shape[2], k.shape[3]):
        v = torch.zeros_like(k)
        n = min(k.shape[3], k.shape[2] - j)
        v[:, :, torch.arange(j, j + n), torch.arange(n)] = 1
        columns.append(attend(q, k, v, plan, backend=backend)[..., :n])
    return torch.cat(columns, -1)


@rules
def test_constant_values_come_out(backend):
    q, k, v = tensors(S)
    for plan in (AttentionPlan(), ultravico(S), AttentionPlan(key_bias=key_bias(S)), AttentionPlan(extra_kv=(segment(S, q.dtype),))):
        if plan.extra_kv:
            plan.extra_kv[0].v.fill_(2.5)
        out = attend(q, k, torch.full_like(v, 2.5), plan, backend=backend)
        assert torch.allclose(out, torch.full_like(out, 2.5), rtol=1e-6, atol=0)


@rules
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_factor_one_is_stock_attention(backend, dtype, tolerance):
    q, k, v = tensors(S, dtype)
    out = attend(q, k, v, decay(1.0), backend=backend)
    stock = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert (out.float() - stock.float()).abs().max() <= tolerance


@rules
def test_text_rows_are_stock(backend):
    q, k, v = tensors(S)
    out = attend(q, k, v, decay(0.5, text=20), backend=backend)
    stock = attend(q, k, v, AttentionPlan(), backend=backend)
    assert torch.allclose(out[:, :, -20:], stock[:, :, -20:], atol=1e-6)
    assert (out[:, :, :-20] - stock[:, :, :-20]).abs().max() > 1e-3


@rules
def test_weight_outside_the_window_falls_with_alpha(backend):
    q, k, _ = tensors(S)
    outside = frame_table(S).classes.long()[frame_table(S).ids_q.long()][:, frame_table(S).ids_k.long()] > 0
    mass = [(weights(backend, q, k, decay(a)) * outside).sum(-1) for a in (1.0, 0.9, 0.6, 0.2)]
    for more, less in zip(mass, mass[1:], strict=False):
        assert (less <= more + 1e-6).all()
    assert mass[-1].mean() < mass[0].mean() - 1e-3


@rules
def test_rows_with_only_negative_logits_outside_do_not_change(backend):
    q, k, v = tensors(S)
    table = frame_table(S)
    outside = table.classes.long()[table.ids_q.long()][:, table.ids_k.long()] > 0
    s = q @ k.transpose(-1, -2)
    # Make every outside logit of frame 0's queries negative: those keys point away from one shared direction.
    direction = torch.zeros(S.width, device=DEVICE)
    direction[0] = 10.0
    q[:, :, :24] += direction
    k[:, :, 48:] -= direction
    s = q @ k.transpose(-1, -2)
    quiet = (s.masked_fill(~outside, -1.0) < 0).all(-1)
    assert quiet[:, :, :24].all()
    stock = attend(q, k, v, AttentionPlan(), backend=backend)
    out = attend(q, k, v, decay(0.5, center=False), backend=backend)
    assert torch.allclose(out[quiet], stock[quiet], atol=1e-6)
    assert not torch.allclose(out[~quiet], stock[~quiet], atol=1e-3)


@rules
def test_centring_makes_a_shift_of_all_keys_invisible(backend):
    q, k, v = tensors(S)
    shifted = k + torch.linspace(-2, 2, S.width, device=DEVICE)
    for center, same in ((True, True), (False, False)):
        a = attend(q, k, v, decay(0.7, center=center), backend=backend)
        b = attend(q, shifted, v, decay(0.7, center=center), backend=backend)
        assert torch.allclose(a, b, atol=2e-5) is same, f"center_keys={center}"
    on, off = (attend(q, shifted, v, decay(1.0, center=c), backend=backend) for c in (True, False))
    assert torch.allclose(on, off, atol=2e-5)


@rules
def test_centred_lse_is_that_of_the_uncentred_logits(backend):
    q, k, v = tensors(S)
    k = k + 0.5
    _, on = attend(q, k, v, decay(1.0, center=True), backend=backend, return_lse=True)
    want = torch.logsumexp(q.double() @ k.double().transpose(-1, -2) * S.width**-0.5, -1)
    assert (on - want).abs().max() < 1e-5


@rules
def test_token_distance_against_brute_force(backend):
    n = 330 if backend == "triton" else 1100
    s = Shape(heads=1, n_q=n, width=32)
    q, k, v = tensors(s)
    pos = torch.arange(n, dtype=torch.int32, device=DEVICE)
    classes = (torch.arange(n, device=DEVICE) > n // 4).to(torch.uint8)
    table = DistanceTable(pos, pos, classes, torch.tensor([1.0, 0.8], device=DEVICE))
    out = attend(q, k, v, AttentionPlan(modulation=Modulation(distance=table, positive_only=True, center_keys=True)), backend=backend)
    s_ij = q.double() @ (k.double() - k.double().mean(2, keepdim=True)).transpose(-1, -2) * 32**-0.5
    far = (pos[:, None] - pos[None, :]).abs() > n // 4
    want = torch.softmax(torch.where(far & (s_ij > 0), 0.8 * s_ij, s_ij), -1) @ v.double()
    assert_close("o", out, want, 3e-6)


@rules
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_element_alone_equals_itself_in_a_batch(backend, dtype):
    s = Shape(batch=3, heads=4, key_heads=2, n_q=65, n_k=70, width=40)
    q, k, v = tensors(s, dtype)
    table = frame_table(s)
    plan = AttentionPlan(modulation=Modulation(frames=table, positive_only=True, center_keys=True))
    whole, lse = attend(q, k, v, plan, backend=backend, return_lse=True)
    alone, lse_alone = attend(q[1:2, 2:3], k[1:2, 1:2], v[1:2, 1:2], plan, backend=backend, return_lse=True)
    assert torch.equal(whole[1:2, 2:3], alone)
    assert torch.equal(lse[1:2, 2:3], lse_alone)


@rules
def test_two_runs_are_equal_bit_for_bit(backend):
    q, k, v = tensors(S, torch.float16)
    plan = everything(S, torch.float16)
    assert torch.equal(attend(q, k, v, plan, backend=backend), attend(q, k, v, plan, backend=backend))


@rules
def test_head_range_is_a_slice_of_the_whole(backend):
    s = Shape(batch=2, heads=4, key_heads=2, n_q=63)
    q, k, v = tensors(s)
    plan = AttentionPlan(
        rotation=rotation(s, per_head=True),
        modulation=Modulation(frames=frame_table(s), scale=torch.tensor([1.0, 1.2, 0.7, 0.9], device=DEVICE)),
        key_bias=key_bias(s, heads=4),
        extra_kv=(segment(s, q.dtype),),
        head_mix=(mixes(s, "mean"),),
    )
    whole = attend(q, k, v, plan, backend=backend)
    part = attend(q[:, 2:4], k[:, 1:2], v[:, 1:2], plan.head_range(2, 4, 4), backend=backend)
    assert torch.equal(whole[:, 2:4], part)


def test_head_range_refuses_to_tear_a_group():
    s = Shape(heads=4, key_heads=2)
    plan = AttentionPlan(extra_kv=(segment(s, torch.float32, bias=False),))
    with pytest.raises(ValueError, match="splits a group of 2"):
        plan.head_range(1, 3, 4)


@rules
def test_probes_read_the_probabilities(backend):
    s = Shape(batch=2, heads=4, key_heads=2, n_q=63, n_k=70)
    q, k, v = tensors(s)
    keys = torch.tensor([0, 69, 5], device=DEVICE)
    plan = AttentionPlan(
        rotation=rotation(s),
        modulation=ultravico(s, masked=True).modulation,
        key_bias=key_bias(s, batch=2, heads=4),
        labels=labels(s, batch=2, empty_rows=True),
        extra_kv=(segment(s, q.dtype, rows=True), segment(s, q.dtype, length=4, batch=2)),
        probes=(Probe("some", "columns", keys), Probe("spread", "entropy"), Probe("liked", "popularity")),
    )
    got, want = Trace(), Trace()
    attend(q, k, v, plan, backend=backend, trace=got)
    reference_attend(q, k, v, plan, trace=want)
    assert got.probes["some"].shape == (2, 4, 63, 3)
    for name in ("some", "spread", "liked"):
        assert got.probes[name].dtype == torch.float32
        assert_close(name, got.probes[name], want.probes[name], 1e-5)


def test_probe_of_an_empty_row_is_zero():
    q, k, v = tensors(S)
    plan = AttentionPlan(labels=labels(S, empty_rows=True), probes=(Probe("e", "entropy"), Probe("p", "popularity")))
    attend(q, k, v, plan, trace=(t := Trace()))
    assert (t.probes["e"][:, :, 5:70] == 0).all()
    assert not t.probes["p"].isnan().any()


@rules
def test_empty_rows_give_zero_and_minus_infinity(backend):
    q, k, v = tensors(S)
    o, lse = attend(q, k, v, AttentionPlan(labels=labels(S, empty_rows=True)), backend=backend, return_lse=True)
    assert (o[:, :, 5:70] == 0).all()
    assert (lse[:, :, 5:70] == -math.inf).all()
    assert lse[:, :, 70:].isfinite().all()


@rules
def test_zero_amounts_change_nothing(backend):
    q, k, v = tensors(S, torch.float16)
    stock = attend(q, k, v, AttentionPlan(), backend=backend)
    rows = torch.tensor([0, 4], device=DEVICE)
    still = AttentionPlan(
        rotation=rotation(S).__class__(torch.zeros(127, 1, device=DEVICE), torch.zeros(127, 1, device=DEVICE), torch.rand(1, 1, 32, device=DEVICE)),
        head_mix=(HeadMix(torch.zeros(2, device=DEVICE), "mean"),),
        row_edits=(RowEdit(rows, 0.0, copy_from=rows + 1),),
    )
    assert torch.equal(attend(q, k, v, still, backend=backend), stock)


def test_an_id_outside_the_table_is_read_from_its_edge_and_never_beyond_memory():
    """The kernel cannot report a bad id without waiting for the device, so it must at least stay inside the table."""
    q, k, v = tensors(S)
    table = frame_table(S)
    beyond = FrameTable(table.ids_q + 100, table.ids_k, table.classes, table.factors)
    edge = FrameTable(torch.full_like(table.ids_q, table.classes.shape[0] - 1), table.ids_k, table.classes, table.factors)
    a, b = (attend(q, k, v, AttentionPlan(modulation=Modulation(frames=t)), backend="triton") for t in (beyond, edge))
    assert torch.equal(a, b)
