"""Block mass against the whole matrix of probabilities in fp64, on every way to compute it."""

import math

import pytest
import torch
from attention_loom.kernels import by_frame, by_tile, raster
from attention_loom.kernels import mass as mass_module
from attention_loom.kernels.mass import block_mass
from kernel_cases import Shape, tensors

BACKENDS = ["torch", "triton"]


def logits(q, k, key_bias, scale=None):
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    s = q.double() @ k.double().transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return s if key_bias is None else s + key_bias.double()[:, :, None]


def in_blocks(p, q_order, k_order):
    """Sums of p over pairs of blocks divided by live queries, token by token."""
    out = torch.zeros(*p.shape[:2], q_order.blocks, k_order.blocks, dtype=torch.float64)
    for a in range(q_order.blocks):
        rows = [t for t in q_order.perm[a * q_order.block : (a + 1) * q_order.block].tolist() if t >= 0]
        for b in range(k_order.blocks):
            keys = [t for t in k_order.perm[b * k_order.block : (b + 1) * k_order.block].tolist() if t >= 0]
            out[:, :, a, b] = p[:, :, rows][:, :, :, keys].sum((-1, -2)) / len(rows)
    return out


ORDERS = {
    "raster": lambda: (raster(70, 32), raster(70, 32)),
    "frames": lambda: (by_frame(70, 32, (2, 5, 4), 3), by_frame(70, 64, (2, 5, 4), 3)),
    "tiles": lambda: (by_tile(70, 32, (1, 7, 9), 5, (1, 4, 4)), by_tile(70, 32, (1, 7, 9), 5, (1, 4, 4))),
    "cross": lambda: (raster(70, 64), by_frame(50, 32, (3, 4, 4), 0)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ORDERS)
def test_mass_is_that_of_the_whole_matrix(order, backend):
    q_order, k_order = ORDERS[order]()
    q, k, _ = tensors(Shape(2, 4, 2, q_order.tokens, k_order.tokens, 40), layout="bnhd")
    s = logits(q, k, None)
    got = block_mass(q, k, s.logsumexp(-1).float(), q_order, k_order, backend=backend)
    torch.testing.assert_close(got.double(), in_blocks(s.softmax(-1), q_order, k_order), atol=2e-6, rtol=2e-5)
    torch.testing.assert_close(got.sum(-1), torch.ones_like(got[..., 0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lse_is_computed_where_none_is_given_and_dropped_keys_weigh_nothing(backend):
    q_order, k_order = ORDERS["frames"]()
    q, k, _ = tensors(Shape(1, 2, 1, 70))
    bias = torch.randn(1, 2, 70)
    bias[:, :, k_order.perm[:64][k_order.perm[:64] >= 0].long()] = -math.inf
    got = block_mass(q, k, None, q_order, k_order, key_bias=bias, scale=0.2, backend=backend)
    want = in_blocks(logits(q, k, bias, 0.2).softmax(-1), q_order, k_order)
    torch.testing.assert_close(got.double(), want, atol=2e-6, rtol=2e-5)
    assert (got[..., 0] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_range_is_renormalised_per_query_even_beside_keys_that_absorb_everything(backend):
    q_order, k_order = raster(70, 32), raster(70, 32)
    q, k, _ = tensors(Shape(1, 2, 2, 70, width=32))
    bias = torch.zeros(1, 1, 70)
    bias[..., :32] = 200.0  # exp(-200) of what is left: nothing can be recovered from the whole row's log-sum-exp
    got = block_mass(q, k, logits(q, k, bias).logsumexp(-1).float(), q_order, k_order, key_bias=bias, keys=(1, 3), backend=backend)
    alone = logits(q, k, None).masked_fill(torch.arange(70) < 32, -math.inf)
    torch.testing.assert_close(got.double(), in_blocks(alone.softmax(-1), q_order, k_order), atol=2e-6, rtol=2e-5)
    assert (got[..., 0] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_without_keys_have_no_mass(backend):
    q, k, _ = tensors(Shape(1, 1, 1, 40, width=32))
    bias = torch.full((1, 1, 40), -math.inf)
    for lse in (None, torch.full((1, 1, 40), -math.inf)):
        assert (block_mass(q, k, lse, raster(40, 32), raster(40, 32), key_bias=bias, backend=backend) == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_and_half_results(dtype, backend):
    q, k, _ = tensors(Shape(1, 1, 1, 70), dtype)
    order = raster(70, 32)
    got = block_mass(q, k, None, order, order, dtype=torch.float16, backend=backend)
    assert got.dtype == torch.float16
    torch.testing.assert_close(got.double(), in_blocks(logits(q, k, None).softmax(-1), order, order), atol=1e-4, rtol=2e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dead_places_do_not_let_nan_through(backend):
    order = by_frame(50, 32, (2, 5, 5), 0)
    q, k, _ = tensors(Shape(1, 1, 1, 50, width=32))
    clean = block_mass(q, k, None, order, order, backend=backend)
    k[:, :, 0] = math.nan  # the token that dead places repeat: itself dropped by the range
    got = block_mass(q, k, None, order, order, keys=(1, 2), backend=backend)
    assert got.isfinite().all()
    assert clean.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_element_alone_equals_itself_in_a_batch(backend):
    q, k, _ = tensors(Shape(2, 2, 1, 70, width=32))
    order = raster(70, 32)
    both = block_mass(q, k, None, order, order, backend=backend)
    assert torch.equal(both[1:], block_mass(q[1:], k[1:], None, order, order, backend=backend))
    assert torch.equal(both[:, 1:], block_mass(q[:, 1:], k, None, order, order, backend=backend))


def test_small_pieces_and_split_blocks_give_the_same(monkeypatch):
    q, k, _ = tensors(Shape(1, 2, 1, 70, width=32))
    order = raster(70, 64)
    want = block_mass(q, k, None, order, order, backend="torch")
    monkeypatch.setattr(mass_module, "BYTES", 1)
    torch.testing.assert_close(block_mass(q, k, None, order, order, backend="torch"), want, atol=1e-6, rtol=1e-5)
    from attention_loom.kernels.triton import mass as triton_mass

    monkeypatch.setattr(triton_mass, "mass_tile", lambda *a: (16, 16, 4, 1))
    torch.testing.assert_close(block_mass(q, k, None, order, order, backend="triton"), want, atol=1e-6, rtol=1e-5)


def test_operator_is_well_formed():
    from attention_loom.kernels.triton.mass import mass_op

    q, k, _ = tensors(Shape(1, 2, 1, 40, width=32))
    order = raster(40, 32)
    args = (q, k, None, None, order.perm, order.valid, order.valid, 32, 32, 0.2, 0, 2, torch.float32)
    torch.library.opcheck(mass_op, args, test_utils=["test_schema", "test_faketensor", "test_aot_dispatch_dynamic"])


def test_what_does_not_fit_is_said():
    q, k, _ = tensors(Shape(1, 2, 1, 40, width=32))
    order = raster(40, 32)
    with pytest.raises(ValueError, match="orders 70 tokens; q has 40"):
        block_mass(q, k, None, raster(70, 32), order)
    with pytest.raises(ValueError, match="not a range of the 2 key blocks"):
        block_mass(q, k, None, order, order, keys=(1, 3))
    with pytest.raises(ValueError, match="lse has shape"):
        block_mass(q, k, torch.zeros(1, 2, 39), order, order)
    with pytest.raises(ValueError, match="cannot run in triton: head width 8"):
        block_mass(q[..., :8], k[..., :8], None, order, order, backend="triton")
