"""Every case of the table on every backend that claims it, against the fp64 reference."""

import pytest
import torch
from attention_loom.kernels import Trace, attend, reference_attend
from attention_loom.kernels.backends import Call, backends
from attention_loom.kernels.chunked import chunked_attend
from kernel_cases import CASES, ROTATED, TOLERANCE, assert_close, assert_lse_close, tensors


def plain_dense(q, k, v, mask=None):
    """What a host's attention looks like to us."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def call_of(case) -> Call:
    q, k, v = tensors(case.shape, case.dtype, case.layout)
    return Call(q, k, v, case.build(case.shape, case.dtype), q.shape[-1] ** -0.5, dense=plain_dense, explicit=True)


def supported() -> list:
    return list(_supported())


# flex is slow without a compiler and kitchen takes few plans: test_flex.py, test_kitchen.py; dense is another result on purpose
OTHERS = {"flex", "kitchen", "dense"}


def _supported():
    for case in CASES:
        call = call_of(case)
        for backend in backends():
            if backend.name not in OTHERS and backend.refuse(call) is None:
                yield pytest.param(case, backend.name, id=f"{case.id}-{backend.name}")


@pytest.mark.parametrize(("case", "name"), supported())
def test_agrees_with_reference(case, name):
    call = call_of(case)
    q, k, v, plan = call.q, call.k, call.v, call.plan
    before = [x.clone() for x in (q, k, v)]
    want, want_lse = reference_attend(q, k, v, plan, return_lse=True)
    tolerance, lse_tolerance = (ROTATED if plan.rotation else TOLERANCE)[case.dtype]
    trace = Trace()
    lse_too = next(b for b in backends() if b.name == name).limits.lse
    got = attend(q, k, v, plan, backend=name, dense=plain_dense, return_lse=lse_too, trace=trace)
    if lse_too:
        got, lse = got
        assert lse.dtype == torch.float32
        assert_lse_close(lse, want_lse, lse_tolerance)
    assert got.dtype == q.dtype
    assert trace.backend == name
    assert_close("o", got, want, tolerance)
    assert all(torch.equal(a, b) for a, b in zip(before, (q, k, v), strict=True)), "the caller's tensors were written to"


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in CASES if c.dtype == torch.float32 and "-tail-" not in c.id])
def test_chunked_in_small_chunks(case):
    call = call_of(case)
    plan = call.plan.without("rotation", "extra_kv", "row_affine", "head_mix", "asides", "row_edits")
    want, want_lse = reference_attend(call.q, call.k, call.v, plan, return_lse=True)
    o, lse = chunked_attend(call.q, call.k, call.v, plan, call.scale, budget=32 * 700, tokens_first=True)
    assert_close("o", o, want, TOLERANCE[torch.float32][0])
    assert_lse_close(lse, want_lse, TOLERANCE[torch.float32][1])


def test_every_backend_is_exercised_and_everything_runs_on_two():
    names = {p.values[1] for p in supported()}
    assert names >= {"host", "triton", "sdpa", "chunked"}
    for case in CASES:
        call = call_of(case)
        assert sum(b.refuse(call) is None for b in backends()) >= 2, case.id


def test_scale_is_honoured_by_every_backend():
    case = next(c for c in CASES if c.id == "stock-n65")
    call = call_of(case)
    want = reference_attend(call.q, call.k, call.v, call.plan, scale=0.3)
    for b in backends():
        if b.refuse(call) is not None:
            continue
        got = attend(call.q, call.k, call.v, call.plan, scale=0.3, backend=b.name, dense=plain_dense)
        assert_close(b.name, got, want, 5e-6)
