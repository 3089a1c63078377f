"""The gradients of later hosts' fused norm and rotation, against the operations' own forward passes."""

import host_inprocess
import pytest
import torch
from attention_loom.core import fused_backward
from attention_loom.core.fused_backward import OPERATIONS, rotated

pytestmark = pytest.mark.host


@pytest.fixture(scope="module", autouse=True)
def kitchen():
    host_inprocess.import_host()
    found = pytest.importorskip("comfy_kitchen")
    if not all(hasattr(torch.ops.comfy_kitchen, name) for name in OPERATIONS):
        pytest.skip("this comfy-kitchen has no fused norm and rotation")
    fused_backward.learn()
    return found


def given(width, dtype=torch.float32):
    g = torch.Generator().manual_seed(3)
    q, k = (torch.randn(2, 5, 3, 8, generator=g, dtype=dtype) for _ in range(2))
    angle = torch.randn(1, 5, 1, (width or 8) // 2, generator=g, dtype=dtype)
    table = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))
    weights = (1 + 0.2 * torch.randn(8, generator=g, dtype=dtype) for _ in range(2))
    return q, k, table, *weights


@pytest.mark.parametrize(("name", "width"), [("rms_rope_split_half", 0), ("rms_rope_split_half", 6), ("rms_rope", 0)])
def test_gradients_are_those_of_small_steps(name, width):
    """A central difference of the host's own forward pass along drawn directions."""
    operation, halves = getattr(torch.ops.comfy_kitchen, name), OPERATIONS[name]
    q, k, table, q_weight, k_weight = given(width)
    rest = (1e-6, *((width,) if halves else ()))
    ours = [rotated(x, table, w, 1e-6, width, halves) for x, w in ((q, q_weight), (k, k_weight))]
    theirs = operation(q, k, table, q_weight, k_weight, *rest)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))

    towards = [torch.randn_like(q), torch.randn_like(k)]
    leaves = [q.clone().requires_grad_(), k.clone().requires_grad_()]
    out = operation(*leaves, table, q_weight, k_weight, *rest)
    torch.autograd.backward(out, towards)
    for i, leaf in enumerate(leaves):
        step = 1e-2 * torch.randn_like(leaf)
        moved = [operation(*[x + sign * step if j == i else x for j, x in enumerate((q, k))], table, q_weight, k_weight, *rest)[i] for sign in (1, -1)]
        numeric = float((towards[i] * (moved[0] - moved[1]) / 2).sum())
        assert float((leaf.grad * step).sum()) == pytest.approx(numeric, rel=5e-3, abs=2e-4)
