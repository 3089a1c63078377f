"""No tensor that grows with Nq x Nk, on any path that may see video lengths."""

import pytest
import torch
from attention_loom.kernels import AttentionPlan, Probe, Trace, attend, reference_attend
from attention_loom.kernels import chunked as chunked_module
from attention_loom.kernels import stages as stages_module
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
