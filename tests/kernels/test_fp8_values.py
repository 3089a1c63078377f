"""The opt-in path with eight-bit weights and values: its arithmetic, its kernels against it, its targets and gates."""

from __future__ import annotations

import pytest
import torch
from attention_loom.kernels import AttentionPlan, BackendUnavailable, BlockPlan, Trace, Window, attend, by_frame, from_bool, raster, reference_attend
from attention_loom.kernels.quant import MOST_E4M3, QUANTISED, has_e4m3, quantise, quantise_values, quantise_weights, value_scale
from attention_loom.kernels.triton import int8_op, launch
from kernel_cases import DEVICE, Shape, assert_close, assert_lse_close, key_bias, rel_rms, tensors

HALF = torch.float16
FP8 = "int8_qk_fp8_pv"


def run(q, k, v, plan=AttentionPlan(), **more):  # noqa: B008
    o, lse, hot = int8_op.run(q, k, v, plan, q.shape[-1] ** -0.5, tokens_first=False, values8=True, **more)
    return o, lse, hot


def by_tiles(q, k, v, plan: AttentionPlan, rows: int = 128, keys: int = 64):
    """The literal arithmetic, tile by tile: the weights of a tile are rounded relative to the largest logit so far."""
    blocks = plan.blocks
    mean = k.mean(2, dtype=torch.float32)
    sides = (raster(q.shape[2], 128, DEVICE), raster(k.shape[2], 128, DEVICE)) if blocks is None else (blocks.q, blocks.k)
    rows, keys = min(rows, sides[0].block), min(keys, sides[1].block)
    back = [x.dequantised().index_select(2, o.inverse.long()) for x, o in ((quantise(q, sides[0], rows), sides[0]), (quantise(k, sides[1], keys, mean), sides[1]))]
    group = q.shape[1] // k.shape[1]
    q8, k8, v8 = back[0].double(), *(x.double().repeat_interleave(group, 1) for x in (back[1], quantise_values(v)))
    s = q8 @ k8.transpose(-1, -2) * q.shape[-1] ** -0.5
    if plan.key_bias is not None:
        s = s + plan.key_bias[..., None, :]
    if blocks is not None:
        read = (blocks.kinds() == 2).repeat_interleave(sides[0].block, 1)[:, : q.shape[2]].repeat_interleave(sides[1].block, 2)[..., : k.shape[2]]
        s = s.masked_fill(~read[blocks.head_map.long().expand(q.shape[:2])], -torch.inf)
    m = torch.full(s.shape[:3], -torch.inf, dtype=torch.float64, device=s.device)
    total, acc = torch.zeros_like(m), torch.zeros_like(q8)
    for first in range(0, k.shape[2], keys):
        tile = s[..., first : first + keys]
        above = torch.maximum(m, tile.amax(-1))
        safe = torch.where(above.isinf(), 0.0, above)
        p, shrink = (tile - safe[..., None]).exp(), (m - safe).exp()
        acc = acc * shrink[..., None] + quantise_weights(p).double() @ v8[:, :, first : first + keys]
        m, total = above, total * shrink + p.sum(-1)
    return acc / total[..., None].clamp(min=1e-300)


CASES = {
    "dense": (Shape(n_q=200), lambda s: AttentionPlan()),
    "shared heads, wide": (Shape(batch=2, heads=4, key_heads=2, n_q=65, n_k=130, width=128), lambda s: AttentionPlan()),
    "blocks per head": (Shape(heads=3, n_q=190), lambda s: AttentionPlan(blocks=some(s, 32, groups=3))),
    "blocks and bias": (Shape(n_q=300, width=128), lambda s: AttentionPlan(blocks=some(s, 128), key_bias=key_bias(s, heads=2))),
}


def some(s: Shape, block: int, groups: int = 1) -> BlockPlan:
    q, k = raster(s.n_q, block, DEVICE), raster(s.keys, block, DEVICE)
    mask = torch.rand(groups, q.blocks, k.blocks, generator=torch.Generator().manual_seed(5)) < 0.5
    return from_bool(mask.to(DEVICE), q, k)


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_computes_what_the_arithmetic_says(name):
    s, build = CASES[name]
    q, k, v = tensors(s, HALF, "wide")
    plan = build(s)
    o, lse, hot = run(q, k, v, plan)
    assert not hot.any()
    # A weight on the edge between two numbers may fall to either side: logits are fp32 in one and fp64 in the other.
    assert_close("o", o, by_tiles(q, k, v, plan), 4e-3)
    int8, int8_lse, _ = int8_op.run(q, k, v, plan, s.width**-0.5, tokens_first=False)
    assert_lse_close(lse, int8_lse.double(), 1e-6)
    assert rel_rms(o, int8) > 1e-2, "values were not quantised"


def test_values_become_the_nearest_numbers_in_place_order():
    _, _, v = tensors(Shape(heads=2, n_q=119, width=64), HALF)
    v[:, :, :, 3] *= 1e-3  # a channel of its own size
    v[:, :, :, 5] = 0
    order = by_frame(119, 32, (4, 3, 9), 5, DEVICE)
    values, scale = int8_op._quantise_values(v, order.perm, 32)
    assert torch.equal(scale, value_scale(v))
    back = (values.float() * scale[..., None]).transpose(-1, -2)
    other = back.index_select(2, order.inverse.long()) != quantise_values(v)
    assert float(other.float().mean()) <= (0 if DEVICE == "cpu" else 1e-3), "a GPU's quotient may fall on the other side of an edge"
    assert not back[:, :, order.perm < 0].any()
    assert float((values.float().abs().amax(-1)[..., :3]).min()) > MOST_E4M3 * 0.999, "each channel uses the whole range"


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_numerics_target(width, dtype):
    q, k, v = tensors(Shape(heads=1, n_q=512, width=width), dtype)
    o, lse, _ = run(q, k + 0.5, v)
    want, want_lse = reference_attend(q, k + 0.5, v, AttentionPlan(), return_lse=True)
    assert rel_rms(o, want) <= 4e-2
    assert torch.cosine_similarity(o.double().flatten(), want.flatten(), 0) >= 0.999
    assert_lse_close(lse, want_lse, 2e-2)


def test_a_head_with_huge_logits_keeps_its_16_bit_values():
    q, k, v = tensors(Shape(heads=3, n_q=130), HALF)
    q[:, 1] *= 80
    o, _, hot = run(q, k, v)
    assert hot.tolist() == [[False, True, False]]
    want = reference_attend(q, k, v, AttentionPlan())
    assert_close("hot head", o[:, 1], want[:, 1], 8e-4)
    assert rel_rms(o[:, 0], want[:, 0]) > 1e-2


def test_partial_blocks_and_a_batch():
    s = Shape(batch=2, n_q=118)
    q, k, v = tensors(s, HALF)
    order = by_frame(118, 32, (3, 5, 7), 4, DEVICE)
    whole = torch.eye(order.blocks, dtype=torch.bool, device=DEVICE)
    plan = AttentionPlan(blocks=from_bool(whole, order, order, partial=~whole, test=Window(2.5)))
    o, _, _ = run(q, k, v, plan)
    assert rel_rms(o, reference_attend(q, k, v, plan)) < 4e-2
    alone, _, _ = run(q[1:], k[1:], v[1:], plan)
    assert torch.equal(alone, o[1:])


def test_gates_refuse_with_the_reason(monkeypatch):
    assert [a for a in ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120", "gfx942", "interpreted") if has_e4m3(a)] == ["sm_89", "sm_90", "sm_120", "interpreted"]
    q, k, v = tensors(Shape(n_q=65), HALF)
    attend(q, k, v, AttentionPlan(), backend="triton", quant=FP8, trace=(t := Trace()))
    assert t.backend == FP8
    with monkeypatch.context() as old:
        old.setattr(launch, "architecture", lambda device: "sm_86")
        with pytest.raises(BackendUnavailable, match="needs matrix units for e4m3, compute capability 8.9 or later; this is sm_86: int8_qk runs there"):
            attend(q, k, v, AttentionPlan(), backend="triton", quant=FP8)
    attend(q, k, v, AttentionPlan(), quant=FP8, trace=(t := Trace()))
    assert FP8 in dict(t.declined), "in the open, where it does not run"
    with pytest.raises(BackendUnavailable, match="int8_qk_fp8_pv takes head width 64 or 128, this is 32"):
        attend(*tensors(Shape(n_q=65, width=32), HALF), AttentionPlan(), backend="triton", quant=FP8)
    with pytest.raises(BackendUnavailable, match="int8_qk_fp8_pv has no gradient"):
        attend(q.requires_grad_(), k, v, AttentionPlan(), backend="triton", quant=FP8)
    with pytest.raises(ValueError, match="quant is 'fp4'; expected 'none', 'int8_qk', 'int8_qk_fp8_pv'"):
        attend(q, k, v, AttentionPlan(), quant="fp4")
    assert set(QUANTISED) == {"int8_qk", FP8}
