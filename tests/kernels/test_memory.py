"""No tensor that grows with Nq x Nk, on any path that may see video lengths."""

import dataclasses

import pytest
import torch
from attention_loom.kernels import AttentionPlan, Probe, Trace, Window, additive, attend, block_list, by_frame, caching, from_bool, reference_attend
from attention_loom.kernels import chunked as chunked_module
from attention_loom.kernels import stages as stages_module
from attention_loom.kernels.algebra import complement, intersect, union
from attention_loom.kernels.bits import pack, to_bits
from attention_loom.kernels.check_blocks import check_blocks
from attention_loom.kernels.patterns.base import Tokens
from attention_loom.kernels.patterns.radial import Radial
from attention_loom.kernels.selection import global_mask, sigma_mask, topk_mask, topp_mask
from kernel_cases import Shape, everything, labels, tensors, ultravico
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Largest(TorchDispatchMode):
    """Records the largest tensor, in elements, that any operation returns (storage counted, so views do not hide it)."""

    def __init__(self):
        super().__init__()
        self.elements, self.by = 0, ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                held = x.untyped_storage().nbytes() // x.element_size()
                if held > self.elements:
                    self.elements, self.by = held, str(func)
        return out


N = 600
S = Shape(heads=1, n_q=N, width=32)


@pytest.fixture
def small_budget(monkeypatch):
    budget = 32 * 20_000  # twenty thousand pairs at a time, of 360,000
    monkeypatch.setattr(chunked_module, "BUDGET", budget)
    monkeypatch.setattr(stages_module, "BUDGET", budget)
    monkeypatch.setattr(chunked_module.chunk_sizes, "__defaults__", (budget,))
    monkeypatch.setattr(chunked_module.chunked_attend, "__kwdefaults__", {"budget": budget, "tokens_first": False})


def largest(plan, backend, grad=False):
    q, k, v = tensors(S)
    if grad:
        q.requires_grad_()
    with Largest() as seen:
        out = attend(q, k, v, plan, backend=backend, trace=Trace())
        if grad:
            out.sum().backward()
    return seen


@pytest.mark.parametrize("grad", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("build", [ultravico, everything], ids=["ultravico", "everything"])
def test_chunked_stays_in_its_budget(small_budget, build, grad):
    seen = largest(build(S, torch.float32), "chunked", grad)
    assert seen.elements <= 3 * N * S.width, seen.by


def test_probes_stay_in_the_budget(small_budget):
    plan = AttentionPlan(probes=(Probe("e", "entropy"), Probe("p", "popularity"), Probe("c", "columns", torch.arange(3))))
    seen = largest(plan, "chunked")
    assert seen.elements <= 3 * N * S.width, seen.by


def test_popularity_keeps_one_sum_and_not_one_per_block_of_rows(monkeypatch):
    monkeypatch.setattr(stages_module, "BUDGET", 32 * N * 2)  # two rows at a time: 300 blocks
    q, k, _ = tensors(S)
    with Largest() as seen:
        stages_module.read_probes(q, k, torch.zeros(1, 1, N), AttentionPlan(probes=(Probe("p", "popularity"),)), 0.2)
    assert seen.elements <= 3 * N * S.width, seen.by


def test_triton_allocates_nothing_between_queries_and_keys():
    big = Shape(heads=1, n_q=450, width=32)
    q, k, v = tensors(big)
    plan = AttentionPlan(modulation=ultravico(big).modulation, labels=labels(big))
    with Largest() as seen:
        attend(q, k, v, plan, backend="triton")
    assert seen.elements <= 450 * 64, seen.by


def test_the_recorder_sees_the_matrix_of_the_reference():
    q, k, v = tensors(S)
    with Largest() as seen:
        reference_attend(q, k, v, AttentionPlan())
    assert seen.elements >= N * N


def test_saved_for_backward_is_linear_in_the_tokens(small_budget):
    q, k, v = tensors(S)
    q.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.untyped_storage().data_ptr()), sizes.append(x.numel()), x)[2], lambda x: x):
        sizes: list[int] = []
        attend(q, k, v, ultravico(S), backend="chunked")
    distinct = dict(zip(kept, sizes, strict=True))
    assert sum(distinct.values()) <= 8 * N * S.width


# --- block plans ---------------------------------------------------------------------------------------------------------


def sparse_plan(tail="off", test=None, groups=1):
    """Six hundred tokens, free ones among them, 64 to a block; each row reads its own and one other block."""
    order = by_frame(N, 64, (2, 14, 20), 30)
    own = torch.eye(order.blocks, dtype=torch.bool)
    return from_bool(own.roll(1, 1).expand(groups, -1, -1), order, order, partial=own.expand(groups, -1, -1), test=test or Window(6.0), tail=tail)


@pytest.mark.parametrize("tail", ["off", "row", "centroid"])
@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_block_plans_allocate_nothing_between_queries_and_keys(small_budget, backend, tail):
    blocks = sparse_plan(tail)
    seen = largest(AttentionPlan(blocks=blocks), backend)
    assert seen.elements <= 3 * blocks.q.padded * S.width, seen.by


def test_building_and_combining_plans_stays_with_blocks():
    with Largest() as seen:
        plan = sparse_plan(groups=2)
        rest = union(intersect(plan, complement(complement(plan))), plan)
        rest.density(), rest.kinds(), check_blocks(rest), to_bits(plan), complement(rest)
    pairs = 4 * plan.q.blocks * plan.q.block**2  # the partial blocks, on which to_bits looks at pairs
    assert seen.elements <= pairs < N * N, seen.by


def test_selectors_stay_with_their_map():
    scores = torch.rand(4, 90, 90)
    for select in (topk_mask, global_mask, topp_mask, sigma_mask):
        with Largest() as seen:
            select(scores, 0.5 if select is not topk_mask else 9)
        assert seen.elements <= max(scores.numel(), 4 * (2**16 + 1)), (select, seen.by)


# Tokens, heads, tokens per block; then, in MB (10^6): dense int32 indices, packed bits, lists of 16-bit columns at density 0.1.
# Source: specs, sparse backend §2.
SIZES = {
    "wan-14b-720p-128": (75_600, 40, 128, 56.0, 1.8, 2.8),
    "hunyuan-720p-128": (119_056, 24, 128, 83.0, 2.6, 4.2),
    "hunyuan-720p-64": (119_056, 24, 64, 332.0, 10.4, 16.6),
}


def size(x: torch.Tensor) -> int:
    return x.numel() * x.element_size()


@pytest.mark.parametrize("name", SIZES)
def test_bits_and_lists_have_the_sizes_they_were_planned_for(name):
    tokens, heads, block, dense, bits, lists = SIZES[name]
    n = -(-tokens // block)
    assert heads * n * n * 4 / 1e6 == pytest.approx(dense, rel=0.01)
    packed = pack(torch.empty(heads, n, n, dtype=torch.bool, device="meta"))
    assert size(packed) / 1e6 == pytest.approx(bits, abs=0.06)
    row = torch.zeros(1, n, n, dtype=torch.bool)
    row[..., : round(n * 0.1)] = True
    one = block_list(row)  # of one head; heads make lists of the same kind one behind the other
    assert heads * size(one.col) / 1e6 == pytest.approx(lists, abs=0.06)
    assert heads * size(one.ptr) < 0.1 * heads * size(one.col)


def test_keeping_masks_of_every_layer_as_bits_is_affordable():
    packed = pack(torch.empty(24, 931, 931, dtype=torch.bool, device="meta"))
    assert 60 * size(packed) / 1e6 == pytest.approx(156, rel=0.02)


def tensors_of(part) -> list[torch.Tensor]:
    if isinstance(part, torch.Tensor):
        return [part]
    if dataclasses.is_dataclass(part):
        return [x for f in dataclasses.fields(part) for x in tensors_of(getattr(part, f.name))]
    return []


def test_a_plan_for_hunyuan_video_720p_shared_by_its_heads_takes_a_few_megabytes():
    grid = (33, 45, 80)
    with Largest() as seen:
        plan = Radial(decay=0.21).plan(Tokens(119_056, grid))  # a decay no other test has cached
        density = float(plan.density())
    n = plan.q.blocks
    assert plan.groups == 1
    assert 0.05 < density < 0.5
    distinct = {x.data_ptr(): size(x) for x in tensors_of(plan)}
    lists = plan.full.col.numel() * 2 + 4 * (n + 1)
    orders = 119_056 * 4 + 2 * plan.q.padded * 4 + n * (4 + 2)
    assert sum(distinct.values()) <= lists + orders + 16
    assert sum(distinct.values()) < 4e6
    assert seen.elements <= max(2 * n * n, plan.q.padded), seen.by


@pytest.mark.parametrize(("limit", "kept"), [(N * N, True), (N * N - 1, False)])
def test_a_plan_that_outlives_the_run_keeps_no_large_map_of_pairs(monkeypatch, limit, kept):
    """Plans of geometry are cached beyond the run; what hangs on them could not be freed by the host."""
    monkeypatch.setattr(additive, "KEPT_BYTES", limit)
    q, k, v = tensors(S)
    order = by_frame(N, 64, (3, 10, 20), 0)
    plan = AttentionPlan(blocks=from_bool(torch.eye(order.blocks, dtype=torch.bool), order, order))
    out = attend(q, k, v, plan, backend="sdpa")
    assert ("pairs" in caching._store[plan.blocks]) is kept
    assert torch.allclose(out.double(), reference_attend(q, k, v, plan), atol=1e-5)
