"""The host's own sparse kernels: which plans fit them, and what is said where they do not. The package itself is played by SDPA."""

import sys
from types import SimpleNamespace

import pytest
import torch
from attention_loom.kernels import AttentionPlan, BackendUnavailable, Band, Frames, Trace, attend, by_frame, by_tile, kitchen, raster, reference_attend
from attention_loom.kernels.builders import from_bool
from attention_loom.kernels.kitchen import NOT_WINDOWS, frames_read
from kernel_cases import assert_close

GRID = (4, 3, 5)
TOKENS = 60


def window(order, back: int, **more):
    """Each frame reads itself and ``back`` - 1 frames before it."""
    apart = order.frame[:, None].int() - order.frame[None, :].int()
    return from_bool((apart >= 0) & (apart < back), order, order, **more)


def na3d(q, k, v, kernel_size, is_causal, scale):
    """The documented meaning of the package's function, as far as it is asked: windows of whole frames that end with one's own."""
    b, t, y, x, heads, width = q.shape
    assert kernel_size[1:] == [y, x]
    assert is_causal == [True, False, False]
    assert all(z.is_contiguous() for z in (q, k, v))
    frame = torch.arange(t).repeat_interleave(y * x)
    apart = frame[:, None] - frame[None, :]
    flat = [z.reshape(b, t * y * x, heads, width).transpose(1, 2) for z in (q, k, v)]
    o = torch.nn.functional.scaled_dot_product_attention(*flat, attn_mask=(apart >= 0) & (apart < kernel_size[0]), scale=scale)
    return o.transpose(1, 2).reshape(q.shape)


@pytest.fixture
def package(monkeypatch):
    monkeypatch.setattr(kitchen, "installed", lambda: True)
    monkeypatch.setitem(sys.modules, "comfy_kitchen", SimpleNamespace(na3d=na3d))


def tensors():
    return torch.randn(3, 2, 3, TOKENS, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("back", [1, 2, 4])
@pytest.mark.parametrize("order", [by_frame(TOKENS, 8, GRID, 0), by_tile(TOKENS, 8, GRID, 0, (1, 2, 3))], ids=["frames", "tiles"])
def test_windows_of_whole_frames_run_on_it_exactly(package, order, back):
    q, k, v = tensors()
    plan = AttentionPlan(blocks=window(order, back))
    assert frames_read(plan.blocks) == back
    o = attend(q, k, v, plan, backend="kitchen", scale=0.3, trace=(t := Trace()))
    assert t.backend == "kitchen"
    assert_close("o", o, reference_attend(q, k, v, plan, scale=0.3), 3e-6)


def test_a_test_on_frames_counts_as_what_it_admits(package):
    order = by_frame(TOKENS, 8, GRID, 0)
    every = torch.ones(1, order.blocks, order.blocks, dtype=torch.bool)
    plan = from_bool(~every, order, order, partial=every, test=Frames(-1, 0))
    assert frames_read(plan) == 2
    q, k, v = tensors()
    assert_close("o", attend(q, k, v, AttentionPlan(blocks=plan), backend="kitchen"), reference_attend(q, k, v, AttentionPlan(blocks=plan)), 3e-6)


def test_other_plans_do_not_fit():
    order = by_frame(TOKENS, 8, GRID, 0)
    every = torch.ones(order.blocks, order.blocks, dtype=torch.bool)
    ahead = order.frame[None, :] >= order.frame[:, None]
    hole = window(order, 2).kinds()[0] != 0
    hole[5, 4] = False
    longer = by_frame(TOKENS + 3, 8, GRID, 0)
    for plan in (
        from_bool(ahead, order, order),
        from_bool(hole, order, order),
        from_bool(every.tril() & ~every.tril(-1), order, order),
        from_bool(~every, order, order, partial=every, test=Band(2)),
        from_bool(~every, order, order, partial=every, test=Frames(-1, 1)),
        from_bool(~every, order, order, partial=every, test=Frames(-1, 0, inverted=True)),
        window(order, 2, tail="row"),
        window(longer, 2),
        from_bool(torch.ones(2, *every.shape, dtype=torch.bool), order, order),
        from_bool(torch.ones(8, 8, dtype=torch.bool), raster(TOKENS, 8), raster(TOKENS, 8)),
        window(by_tile(TOKENS, 8, GRID, 0, (2, 2, 2)), 1),
    ):
        assert frames_read(plan) == 0


def refusal(plan, q=None, **more) -> str:
    q = tensors()[0] if q is None else q
    with pytest.raises(BackendUnavailable) as found:
        attend(q, q, q, plan, backend="kitchen", **more)
    return str(found.value)


def test_refusals_say_why(package, monkeypatch):
    order = by_frame(TOKENS, 8, GRID, 0)
    fits = AttentionPlan(blocks=window(order, 2))
    every = torch.ones(order.blocks, order.blocks, dtype=torch.bool)
    assert NOT_WINDOWS in refusal(AttentionPlan(blocks=from_bool(every.triu(), order, order)))
    assert "it cannot execute key_bias" in refusal(AttentionPlan(blocks=fits.blocks, key_bias=torch.zeros(1, 1, TOKENS)))
    assert "it does not give the log-sum-exp" in refusal(fits, return_lse=True)
    assert "it has no gradient" in refusal(fits, tensors()[0].requires_grad_())
    assert "for plans of blocks only" in refusal(AttentionPlan())
    q, k, v = tensors()
    with pytest.raises(BackendUnavailable, match="as many key heads as query heads"):
        attend(q, k[:, :1], v[:, :1], fits, backend="kitchen")
    monkeypatch.setattr(kitchen, "installed", lambda: False)
    assert "comfy-kitchen is not installed" in refusal(fits)


def test_auto_names_it_and_runs_without_it(monkeypatch):
    monkeypatch.setattr(kitchen, "installed", lambda: False)
    q, k, v = tensors()
    plan = AttentionPlan(blocks=window(by_frame(TOKENS, 8, GRID, 0), 2))
    attend(q, k, v, plan, trace=(t := Trace()))
    assert (t.backend, dict(t.declined)["kitchen"]) == ("sdpa", "comfy-kitchen is not installed")


def test_with_the_real_package():
    pytest.importorskip("comfy_kitchen", reason="comfy-kitchen is not installed")
    q, k, v = tensors()
    for back in (1, 2, 3):
        plan = AttentionPlan(blocks=window(by_frame(TOKENS, 8, GRID, 0), back))
        assert_close("o", attend(q, k, v, plan, backend="kitchen"), reference_attend(q, k, v, plan), 3e-6)
