"""Choosing a backend: order, reasons, explicit choice, failing launches, and the checks before any of it."""

import dataclasses

import pytest
import torch
from attention_loom.kernels import (
    Aside,
    AttentionPlan,
    BackendUnavailable,
    ExtraKV,
    HeadMix,
    Labels,
    Modulation,
    Probe,
    RowEdit,
    Trace,
    attend,
)
from attention_loom.kernels import backends as registry
from attention_loom.kernels.backends import Backend, Call, Limits, mask_size, register
from kernel_cases import Shape, edits, frame_table, key_bias, labels, mixes, rotation, segment, tensors, ultravico

S = Shape(n_q=63, width=32)


def sdpa(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def masking(q, k, v, mask=None):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def chosen(plan, *, dense=None, **more) -> tuple[str, dict[str, str]]:
    q, k, v = tensors(S)
    attend(q, k, v, plan, dense=dense, trace=(t := Trace()), **more)
    return t.backend, dict(t.declined)


def test_an_empty_plan_is_the_dense_call_itself():
    q, k, v = tensors(S)
    sentinel, seen = object(), []
    assert attend(q, k, v, AttentionPlan(), dense=lambda *a: (seen.append(a), sentinel)[1]) is sentinel
    assert all(a is b for a, b in zip(seen[0], (q, k, v), strict=True))


def test_auto_prefers_the_host_where_the_plan_fits_around_it():
    q = tensors(S)[0]
    for plan in (
        AttentionPlan(rotation=rotation(S)),
        AttentionPlan(head_mix=(mixes(S, "identity"),), row_edits=edits(S, q.dtype)),
        AttentionPlan(modulation=Modulation(scale=torch.tensor([1.1]))),
    ):
        assert chosen(plan, dense=sdpa) == ("host", {})
    assert chosen(AttentionPlan(key_bias=key_bias(S)), dense=masking)[0] == "host"


def test_auto_says_who_declined_and_why():
    backend, declined = chosen(AttentionPlan(key_bias=key_bias(S)), dense=sdpa)
    assert backend == "sdpa"
    assert declined == {
        "host": "the dense attention of the caller takes no mask",
        "triton": "its interpreter is slow and runs only when asked for by name",
        "kitchen": "it cannot execute key_bias",
        "flex": "on a CPU it is slow and runs only when asked for by name",
    }
    backend, declined = chosen(ultravico(S), dense=sdpa)
    assert backend == "chunked"
    assert declined["sdpa"] == "it cannot execute modulation with frames"
    assert chosen(AttentionPlan(extra_kv=(segment(S, torch.float32),)))[1]["sdpa"] == "it cannot execute extra_kv"
    assert chosen(AttentionPlan(), return_lse=True)[1]["sdpa"] == "it does not give the log-sum-exp"


def test_a_mask_above_the_limit_is_never_written():
    q = torch.empty(1, 1, 40_000, 8, device="meta")
    plan = AttentionPlan(labels=Labels(torch.empty(1, 40_000, device="meta"), torch.empty(1, 40_000, device="meta"), 2))
    call = Call(q, q, q, plan, 1.0)
    assert mask_size(call) == 40_000**2 * 4
    sdpa_limits = next(b for b in registry.backends() if b.name == "sdpa").limits
    assert sdpa_limits.refuse(call) == "its mask would take 6104 MB, more than 512 MB"


def test_an_explicit_backend_that_cannot_run_is_an_error():
    q, k, v = tensors(S)
    with pytest.raises(BackendUnavailable, match="'sdpa' cannot run this call: it cannot execute modulation with"):
        attend(q, k, v, ultravico(S), backend="sdpa")
    with pytest.raises(BackendUnavailable, match="no attention backend 'fast'; choose auto, host, triton, kitchen, flex, sdpa, dense, chunked"):
        attend(q, k, v, AttentionPlan(), backend="fast")
    assert issubclass(BackendUnavailable, ValueError)


def test_a_backend_without_a_gradient_is_refused_where_one_is_needed():
    q, k, v = tensors(S)
    limits = registry.Limits(features=frozenset(), gradient=False)
    assert limits.refuse(Call(q, k, v, AttentionPlan(), 1.0)) is None
    assert limits.refuse(Call(q, k.requires_grad_(), v, AttentionPlan(), 1.0)) == "it has no gradient and one is needed"


def test_limits_are_data_that_names_plan_parts():
    parts = {f.name for f in dataclasses.fields(AttentionPlan)}
    details = {f.name for f in dataclasses.fields(Modulation)}
    for b in registry.backends():
        assert b.limits.features <= parts, b.name
        assert b.limits.modulation <= details, b.name
    everything = next(b for b in registry.backends() if b.name == "chunked").limits
    assert everything.features == parts
    assert everything.modulation == details


@pytest.fixture
def flaky(monkeypatch):
    """A backend tried first by "auto" whose launches fail as told; it counts them."""
    log = []

    def install(fails):
        def run(call, q, k, v, plan, lse, careful):
            log.append(careful)
            if fails(careful):
                raise RuntimeError("out of resource: shared memory\nsecond line")
            return sdpa(q, k, v), None

        monkeypatch.setattr(registry, "_registry", dict(registry._registry))
        register(Backend("flaky", -1, Limits(frozenset(), lse=False), run, may_fail=True))
        return log

    return install


def test_a_failing_launch_is_retried_small_then_the_next_backend_runs(flaky):
    log = flaky(lambda careful: True)
    backend, declined = chosen(AttentionPlan())
    assert backend == "sdpa"
    assert declined["flaky"] == "it failed: RuntimeError: out of resource: shared memory"
    assert log == [False, True]
    assert chosen(AttentionPlan())[1]["flaky"] == declined["flaky"]
    assert log == [False, True], "a launch that failed on this shape was tried again"


def test_a_launch_that_survives_the_retry_starts_small_the_next_time(flaky):
    log = flaky(lambda careful: not careful)
    assert chosen(AttentionPlan())[0] == "flaky"
    assert chosen(AttentionPlan())[0] == "flaky"
    assert log == [False, True, True]


def test_a_failing_launch_of_an_explicit_backend_is_raised(flaky):
    flaky(lambda careful: True)
    with pytest.raises(RuntimeError, match="shared memory"):
        chosen(AttentionPlan(), backend="flaky")


def test_running_out_of_memory_is_the_hosts_business(flaky, monkeypatch):
    def out_of_memory(careful):
        raise torch.OutOfMemoryError("no memory")

    flaky(out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        chosen(AttentionPlan())


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'sdpa' is registered already"):
        register(Backend("sdpa", 0, Limits(frozenset()), lambda *a: None))


def test_autocast_around_the_call_changes_nothing():
    q, k, v = tensors(S)
    alone = attend(q, k, v, ultravico(S))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attend(q, k, v, ultravico(S)), alone)


def test_output_takes_the_layout_of_the_queries():
    q, k, v = tensors(S, layout="bnhd")
    for backend in ("triton", "chunked"):
        assert attend(q, k, v, AttentionPlan(), backend=backend).transpose(1, 2).is_contiguous()
    q, k, v = tensors(S)
    for backend in ("triton", "chunked"):
        assert attend(q, k, v, AttentionPlan(), backend=backend).is_contiguous()


ONE = torch.ones(1)
BAD = {
    "q has shape [63, 32]; expected four non-empty axes": lambda q, k, v: (q[0, 0], k, v, AttentionPlan()),
    "k is torch.float16 on cpu, q is torch.float32": lambda q, k, v: (q, k.half(), v, AttentionPlan()),
    "k has shape [1, 2, 63, 16]; expected [1, any, any, 32]": lambda q, k, v: (q, k[..., :16], v, AttentionPlan()),
    "v has shape [1, 2, 5, 32]; expected [1, 2, 63, 32]": lambda q, k, v: (q, k, v[:, :, :5], AttentionPlan()),
    "k has 2 heads, which does not divide the 3 heads of q": lambda q, k, v: (torch.ones(1, 3, 63, 32), k, v, AttentionPlan()),
    "key_bias has shape [1, 1, 5]; expected [1, 1|2, 63]": lambda q, k, v: (q, k, v, AttentionPlan(key_bias=torch.ones(1, 1, 5))),
    "rotation.delta_q has shape": lambda q, k, v: (q, k, v, AttentionPlan(rotation=rotation(Shape(n_q=5, width=32)))),
    "modulation.frames.ids_q has shape [9]": lambda q, k, v: (q, k, v, ultravico(Shape(n_q=9))),
    "modulation.frames.factors has dtype torch.float64": lambda q, k, v: (
        q, k, v, AttentionPlan(modulation=Modulation(frames=dataclasses.replace(frame_table(S), factors=ONE.double()))),
    ),
    "modulation.scale acts on all pairs": lambda q, k, v: (
        q, k, v, AttentionPlan(modulation=Modulation(scale=ONE, positive_only=True)),
    ),
    "labels.count is 65; expected 1 to 64": lambda q, k, v: (
        q, k, v, AttentionPlan(labels=dataclasses.replace(labels(S), count=65)),
    ),
    "extra_kv[0].k has shape [1, 2, 4, 8]": lambda q, k, v: (
        q, k, v, AttentionPlan(extra_kv=(ExtraKV(torch.ones(1, 2, 4, 8), torch.ones(1, 2, 4, 8)),)),
    ),
    "head_mix[0].amount has shape [1]; expected [2]": lambda q, k, v: (q, k, v, AttentionPlan(head_mix=(HeadMix(ONE, "mean"),))),
    "head_mix[0].target 'identity' needs as many keys": lambda q, k, v: (
        q, k[:, :, :9], v[:, :, :9], AttentionPlan(head_mix=(mixes(S, "identity"),)),
    ),
    "probes[0].keys goes with kind 'columns'": lambda q, k, v: (q, k, v, AttentionPlan(probes=(Probe("a", "columns"),))),
    "probes[1].name 'a' is used twice": lambda q, k, v: (
        q, k, v, AttentionPlan(probes=(Probe("a", "entropy"), Probe("a", "popularity"))),
    ),
    "asides[0] has elements (0,) with bases (2,)": lambda q, k, v: (
        q, k, v, AttentionPlan(asides=(Aside(k, v, torch.tensor([1]), ONE, (0,), (2,)),)),
    ),
    "asides[0].weight has shape [1]; expected [2]": lambda q, k, v: (
        q, k, v, AttentionPlan(asides=(Aside(k, v, torch.tensor([1, 2]), ONE, (0,), (0,)),)),
    ),
    "row_edits[0] needs exactly one of values and copy_from": lambda q, k, v: (
        q, k, v, AttentionPlan(row_edits=(RowEdit(torch.tensor([1]), 0.5),)),
    ),
    "row_edits[0].weight is 1.5": lambda q, k, v: (
        q, k, v, AttentionPlan(row_edits=(RowEdit(torch.tensor([1]), 1.5, copy_from=torch.tensor([2])),)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_named(message):
    q, k, v, plan = BAD[message](*tensors(S))
    with pytest.raises(ValueError, match="^" + message.translate(str.maketrans({c: "\\" + c for c in "[]|.()"}))):
        attend(q, k, v, plan, trace=Trace())


def test_probes_need_someone_to_receive_them():
    with pytest.raises(ValueError, match="pass trace"):
        attend(*tensors(S), AttentionPlan(probes=(Probe("a", "entropy"),)))


def test_plan_moves_only_what_has_to_move():
    plan = AttentionPlan(modulation=ultravico(S).modulation, extra_kv=(segment(S, torch.float32),), row_edits=edits(S, torch.float32))
    assert plan.to("cpu") is plan
    moved = plan.to("meta")
    assert moved.modulation.frames.classes.device.type == "meta"
    assert moved.extra_kv[0].k.device.type == "meta"
    assert moved.row_edits[0].weight == 0.25
    assert moved.features == plan.features
    assert plan.without("modulation", "extra_kv", "row_edits").empty
