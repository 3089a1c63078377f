"""What runs in place of a sparse plan when its kernels cannot, and debug mode. GPUs are pretended."""

import dataclasses
import math

import pytest
import torch
from attention_loom.kernels import AttentionPlan, BackendUnavailable, Trace, attend, raster
from attention_loom.kernels import backends as registry
from attention_loom.kernels.builders import from_bool
from attention_loom.kernels.debug import FoundInDebugMode
from attention_loom.kernels.patterns.base import Moment, Tokens
from attention_loom.kernels.patterns.sla_topk import SlaTopk
from attention_loom.kernels.sparse import Sparse

MEANING = "the mask of this plan is its meaning, and dense attention would be another result"


def sdpa(q, k, v, mask=None):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def tensors():
    return torch.randn(3, 1, 2, 200, 16, generator=torch.Generator().manual_seed(0))


def some_blocks(**more):
    order = raster(200, 64)
    return from_bool(torch.eye(4, dtype=torch.bool), order, order, **more)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of generation 9.0 that has neither triton nor a compiler, and masks of no size."""
    monkeypatch.setattr(registry, "on_gpu", lambda x: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    small = registry._registry["sdpa"]
    monkeypatch.setitem(registry._registry, "sdpa", dataclasses.replace(small, limits=dataclasses.replace(small.limits, mask_bytes=1)))


@pytest.fixture
def old_gpu(monkeypatch):
    monkeypatch.setattr(registry, "on_gpu", lambda x: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))


def ran(plan, dense=sdpa, **more) -> tuple[str, dict[str, str], torch.Tensor]:
    q, k, v = tensors()
    o = attend(q, k, v, plan, dense=dense, trace=(t := Trace()), **more)
    return t.backend, dict(t.declined), o


def test_a_pattern_that_no_sparse_backend_runs_becomes_the_hosts_dense_attention(gpu):
    backend, declined, o = ran(AttentionPlan(blocks=some_blocks()))
    assert backend == "dense"
    assert torch.equal(o, sdpa(*tensors()))
    assert declined["host"] == "it cannot execute blocks"
    assert "its mask would take" in declined["sdpa"]
    assert {"triton", "kitchen", "flex"} <= declined.keys()


def test_what_else_the_plan_asks_is_still_done(gpu):
    bias = torch.zeros(1, 1, 200)
    bias[..., 150:] = -math.inf
    backend, _, o = ran(AttentionPlan(blocks=some_blocks(), key_bias=bias))
    assert backend == "dense"
    assert torch.equal(o, sdpa(*tensors(), mask=bias[:, :, None]))


def test_a_tail_goes_with_the_blocks(gpu):
    assert ran(AttentionPlan(blocks=some_blocks(tail="row")))[0] == "dense"


def test_a_plan_whose_mask_is_its_meaning_is_never_run_dense(gpu):
    backend, declined, _ = ran(AttentionPlan(blocks=some_blocks(approximate=False)))
    assert backend == "chunked"
    assert declined["dense"] == MEANING
    with pytest.raises(BackendUnavailable, match=MEANING):
        ran(AttentionPlan(blocks=some_blocks(approximate=False)), backend="dense")


def test_without_the_hosts_attention_or_where_a_log_sum_exp_is_wanted_the_plan_is_run_in_chunks(gpu):
    backend, declined, _ = ran(AttentionPlan(blocks=some_blocks()), dense=None)
    assert (backend, declined["dense"]) == ("chunked", "the caller passed no dense attention")
    q, k, v = tensors()
    attend(q, k, v, AttentionPlan(blocks=some_blocks()), dense=sdpa, return_lse=True, trace=(t := Trace()))
    assert (t.backend, dict(t.declined)["dense"]) == ("chunked", "it does not give the log-sum-exp")


def test_a_pattern_is_not_asked_to_choose_blocks_that_nobody_reads(gpu):
    heard = []
    sparse = Sparse(SlaTopk(0.5, block=64), Tokens(200), Moment(), ((1, {}),), heard.append)
    backend, _, o = ran(AttentionPlan(blocks=sparse))
    assert (backend, heard) == ("dense", [])
    assert torch.equal(o, sdpa(*tensors()))


def test_old_gpus_run_dense_even_where_a_mask_would_fit(old_gpu):
    backend, declined, o = ran(AttentionPlan(blocks=some_blocks()))
    assert backend == "dense"
    assert torch.equal(o, sdpa(*tensors()))
    assert declined["flex"] == "GPUs below compute capability 8.0 have no matrix units it can use"
    assert declined["sdpa"] == "on GPUs below compute capability 8.0 a mask costs more than it saves"


def test_old_gpus_mask_what_dense_attention_cannot_stand_in_for(old_gpu):
    assert ran(AttentionPlan(blocks=some_blocks(approximate=False)))[0] == "sdpa"
    assert ran(AttentionPlan(blocks=some_blocks()), dense=None)[0] == "sdpa"


def test_on_a_cpu_patterns_run_as_they_are():
    backend, declined, o = ran(AttentionPlan(blocks=some_blocks()))
    assert backend == "sdpa"
    assert not torch.allclose(o, sdpa(*tensors()))
    assert "dense" not in declined


def test_not_even_where_masks_are_too_large(gpu, monkeypatch):
    monkeypatch.setattr(registry, "on_gpu", lambda x: False)
    backend, declined, _ = ran(AttentionPlan(blocks=some_blocks()))
    assert (backend, declined["dense"]) == ("chunked", "on a CPU the pattern is run as it is")


def test_dense_can_be_asked_for_by_name():
    assert torch.equal(ran(AttentionPlan(blocks=some_blocks()), backend="dense")[2], sdpa(*tensors()))
    with pytest.raises(BackendUnavailable, match="in place of sparse patterns only"):
        ran(AttentionPlan(key_bias=torch.zeros(1, 1, 200)), backend="dense")


# --- debug mode ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def debug(monkeypatch):
    monkeypatch.setenv("LOOM_DEBUG", "1")


def test_wrong_values_are_found_in_debug_mode(debug):
    q, k, v = tensors()
    k[0, 0, 3] = math.nan
    with pytest.raises(ValueError, match=r"^k holds 16 NaN of 6400 values \(found in debug mode\)"):
        attend(q, k, v, AttentionPlan())
    k[0, 0, 3] = 0.0
    v[0, 1, 0, :2] = math.inf
    with pytest.raises(ValueError, match=r"^v holds 2 infinite of 6400 values"):
        attend(q, k, v, AttentionPlan(), dense=sdpa)


@pytest.mark.parametrize("backend", ["auto", "chunked", "triton"])
def test_broken_lists_are_found_in_debug_mode(debug, backend):
    plan = some_blocks()
    wrong = dataclasses.replace(plan, full=dataclasses.replace(plan.full, col=plan.full.col + 1))
    with pytest.raises(ValueError, match=r"I1: a column of the full list is outside 0 to 3, group 0, row 3 \(found in debug mode\)"):
        attend(*tensors(), AttentionPlan(blocks=wrong), backend=backend)


def test_broken_lists_of_a_pattern_are_found_too(debug, monkeypatch):
    plan = some_blocks()
    wrong = dataclasses.replace(plan, full=dataclasses.replace(plan.full, ptr=plan.full.ptr + 1))
    monkeypatch.setattr(SlaTopk, "blocks", lambda self, s: wrong)
    sparse = Sparse(SlaTopk(0.5, block=64), Tokens(200), Moment(), ((1, {}),))
    monkeypatch.setitem(registry._registry, "sdpa", dataclasses.replace(registry._registry["sdpa"], may_fail=True))
    with pytest.raises(FoundInDebugMode, match="I2: ptr of group 0 of the full list"):
        attend(*tensors(), AttentionPlan(blocks=sparse), trace=(t := Trace()))
    assert not any("failed" in reason for _, reason in t.declined)


@pytest.mark.parametrize("value", [None, "", "0"])
def test_debug_mode_is_off_unless_asked_for(monkeypatch, value):
    if value is None:
        monkeypatch.delenv("LOOM_DEBUG", raising=False)
    else:
        monkeypatch.setenv("LOOM_DEBUG", value)
    q, k, v = tensors()
    q[0, 0, 0] = math.nan
    assert attend(q, k, v, AttentionPlan()).isnan().any()
