"""Builders as they work on a device: lists with room to spare, no waiting, the same plans as where values are at hand."""

import dataclasses

import pytest
import torch
from attention_loom.kernels import Bits, BlockList, Window, builders, by_frame, from_bool, raster
from attention_loom.kernels.algebra import complement, force, intersect, union
from attention_loom.kernels.bits import pack, pack_bits, unpack
from attention_loom.kernels.blocks import EMPTY
from attention_loom.kernels.builders import from_global, from_sigma, from_topk, from_topp
from attention_loom.kernels.check_blocks import check_blocks
from plan_truth import token_mask
from torch.utils._python_dispatch import TorchDispatchMode

ORDER = by_frame(45, 8, (2, 4, 5), 2)
N = ORDER.blocks
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "equal", "is_nonzero", "item")


class NoWaiting(TorchDispatchMode):
    """Fails on operations that would wait for a device: those whose result's value or size the host must know."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in WAITING), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_device(monkeypatch):
    monkeypatch.setattr(builders, "nothing_to_wait_for", lambda x: False)


def scores() -> torch.Tensor:
    return torch.rand(2, 2, N, N, generator=torch.Generator().manual_seed(0)).softmax(-1)


def masks() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.rand(2, N, N, generator=g) < 0.3, torch.rand(2, N, N, generator=g) < 0.3


BUILD = {
    "bool": lambda: from_bool(masks()[0], ORDER, ORDER),
    "partial": lambda: from_bool(masks()[0], ORDER, ORDER, partial=masks()[1], test=Window(2.5)),
    "bounded": lambda: from_bool(masks()[0], ORDER, ORDER, capacity=2 * N * N - 5),
    "topk": lambda: from_topk(scores(), [3, 1], ORDER, ORDER),
    "topk-tensor": lambda: from_topk(scores(), torch.tensor([3, 1]), ORDER, ORDER),
    "topk-forced": lambda: from_topk(scores(), 2, ORDER, ORDER, forced=torch.eye(N, dtype=torch.bool)),
    "topp": lambda: from_topp(scores(), 0.5, ORDER, ORDER),
    "global": lambda: from_global(scores(), 0.7, ORDER, ORDER),
    "sigma": lambda: from_sigma(scores(), 1.0, ORDER, ORDER),
    "union": lambda: union(BUILD["partial"](), BUILD["bool"]()),
    "intersect": lambda: intersect(BUILD["partial"](), BUILD["topk"]()),
    "complement": lambda: complement(BUILD["partial"]()),
    "force": lambda: force(BUILD["partial"](), rows=torch.arange(N) == 2, columns=torch.arange(N) == 0, diagonal=True),
}


@pytest.mark.parametrize("name", BUILD)
def test_the_same_plan_with_room_to_spare_and_without_waiting(on_device, monkeypatch, name):
    with NoWaiting():
        plan = BUILD[name]()
        plan.density()
    check_blocks(plan)
    roomy = token_mask(plan)
    monkeypatch.undo()
    exact = BUILD[name]()
    assert torch.equal(roomy, token_mask(exact))
    assert exact.full.col.shape[0] == int(exact.full.ptr[-1, -1]) <= plan.full.col.shape[0]


def test_top_k_allocates_for_what_it_keeps(on_device):
    assert from_topk(scores(), [3, 1], ORDER, ORDER).full.col.shape[0] == 2 * N * (3 + 1)


def test_the_bit_store_does_not_wait():
    mask = masks()[0]
    with NoWaiting():
        again = unpack(pack(mask), N)
    assert torch.equal(again, mask)


def test_the_guard_sees_waiting():
    with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
        pack_bits(torch.ones(3, 32, 32, dtype=torch.bool))


def test_rows_without_a_block_get_their_diagonal_or_the_first_column():
    nothing = torch.zeros(1, N, N, dtype=torch.bool)
    assert torch.equal(from_bool(nothing, ORDER, ORDER).kinds()[0] != EMPTY, torch.eye(N, dtype=torch.bool))
    plan = from_bool(nothing[:, :, :3], ORDER, raster(20, 8))
    assert (plan.kinds()[0] != EMPTY).tolist() == [[True, False, False]] * N


def test_what_does_not_fit_is_named():
    mask = masks()[0]
    with pytest.raises(ValueError, match=rf"block mask has shape \[2, {N}, 3\]; expected \[G, {N}, {N}\]"):
        from_bool(mask[..., :3], ORDER, ORDER)
    with pytest.raises(ValueError, match="partial blocks and their element test go together"):
        from_bool(mask, ORDER, ORDER, partial=mask)
    with pytest.raises(ValueError, match="blocks of 8 keys cannot be written as 32-bit words"):
        pack_bits(torch.ones(2, 8, 8, dtype=torch.bool))


def test_heads_share_a_group_or_have_their_own():
    mask = masks()[0]
    assert from_bool(mask[0], ORDER, ORDER).head_map.tolist() == [[0]]
    assert from_bool(mask, ORDER, ORDER).head_map.tolist() == [[0, 1]]
    assert from_bool(mask[:, None], ORDER, ORDER).head_map.tolist() == [[0], [1]]
    chosen = torch.tensor([[1, 1, 0]], dtype=torch.int32)
    assert from_bool(mask, ORDER, ORDER, head_map=chosen).head_map is chosen


def test_bits_given_for_all_partial_blocks_follow_those_that_stay():
    order = raster(64, 32)
    pairs = torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(0)) < 0.5
    every = torch.ones(1, 2, 2, dtype=torch.bool)
    plan = from_bool(torch.eye(2, dtype=torch.bool)[None], order, order, partial=every, test=Bits(*pack_bits(pairs)))
    assert torch.equal(token_mask(plan)[0, :32, 32:], pairs[1])
    assert torch.equal(token_mask(plan)[0, 32:, :32], pairs[2])


def test_the_density_kept_by_the_builder_is_the_one_counted_from_the_lists():
    order = by_frame(150, 32, (3, 5, 7), 20)
    mask, partial = (torch.rand(2, 3, order.blocks, order.blocks, generator=torch.Generator().manual_seed(s)) > 0.6 for s in (1, 2))
    for more in ({}, {"partial": partial, "test": Window(3.0)}):
        plan = from_bool(mask, order, order, **more)
        counted = plan._area()[plan.head_map.long()].mean() / 150**2
        assert plan.density().item() == pytest.approx(counted.item(), rel=1e-6)
        kept = dataclasses.replace(plan, full=BlockList(plan.full.ptr.clone(), plan.full.col.clone()))
        assert kept.density().item() == pytest.approx(counted.item(), rel=1e-6), "lists made elsewhere are counted"
