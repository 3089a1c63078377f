"""What only the Triton path has: operator registration, layouts without copies, launch settings."""

import pytest
import torch
from attention_loom.kernels import AttentionPlan, Modulation, Window, attend, by_frame, from_bool
from attention_loom.kernels.triton import arguments, launch, op, settings, tuning
from kernel_cases import CASES, DEVICE, Shape, assert_close, frame_table, key_bias, labels, segment, tensors


def packed(q, k, v, plan, scale=0.2):
    """The arguments of one operator call."""
    blocks = plan.blocks
    s = launch.choose(q, op.flags_of(plan), False, (128, 128) if blocks is None else (blocks.q.block, blocks.k.block))
    return q, k, v, *(part.pack() for part in arguments.gather(q, k, v, plan, scale, s, True))


def test_operator_is_well_formed():
    s = Shape(batch=2, n_q=70, width=32)
    q, k, v = tensors(s, layout="bnhd")
    rules = AttentionPlan(modulation=Modulation(frames=frame_table(s), center_keys=True), labels=labels(s), key_bias=key_bias(s))
    order = by_frame(70, 32, (2, 3, 5), 7, DEVICE)
    some = torch.rand(2, order.blocks, order.blocks, generator=torch.Generator().manual_seed(0)).to(DEVICE) < 0.5
    sparse = AttentionPlan(blocks=from_bool(some, order, order, partial=~some, test=Window(2.5)), extra_kv=(segment(s, q.dtype),))
    checks = ["test_schema", "test_faketensor", "test_aot_dispatch_dynamic"]
    for plan in (AttentionPlan(), rules, sparse):
        torch.library.opcheck(op.forward, packed(q, k, v, plan), test_utils=checks)


def test_operator_traces_in_one_graph():
    q, k, v = tensors(Shape(n_q=17, width=32))
    args = packed(q, k, v, AttentionPlan())[3:]

    def call(q, k, v):
        return op.forward(q, k, v, *args)[0] * 2

    compiled = torch.compile(call, backend="eager", fullgraph=True)
    assert torch.equal(compiled(q, k, v), call(q, k, v))


@pytest.mark.parametrize("layout", ["bnhd", "wide"])
def test_projections_are_read_in_place(layout, monkeypatch):
    q, k, v = tensors(Shape(n_q=65, width=40), layout=layout)
    seen = []
    inner = op.launch_forward
    monkeypatch.setattr(op, "launch_forward", lambda *a: (seen.extend(x.data_ptr() for x in a[:3]), inner(*a))[1])
    attend(q, k, v, AttentionPlan(), backend="triton")
    assert seen == [x.data_ptr() for x in (q, k, v)]


def test_a_width_that_is_not_contiguous_is_copied_not_misread():
    q, k, v = (x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in tensors(Shape(n_q=33, width=32)))
    assert q.stride(-1) != 1
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert_close("o", attend(q, k, v, AttentionPlan(), backend="triton"), want, 3e-6)


def test_smallest_settings_give_the_same_answer():
    case = next(c for c in CASES if c.id == "frames-text")
    q, k, v = tensors(Shape(n_q=65, width=40))
    plan = case.build(Shape(n_q=65, width=40), torch.float32)
    a, b = (op.run(q, k, v, plan, 0.15, tokens_first=False, careful=c)[0] for c in (False, True))
    assert_close("o", b, a, 2e-6)


@pytest.mark.parametrize("variant", settings.VARIANTS[1:])
@pytest.mark.parametrize("name", ["plain", "ragged", "frames-text", "labels-and-bias"])
def test_every_way_to_run_the_loops_gives_the_same(name, variant):
    s = Shape(n_q=79, width=40)
    q, k, v = tensors(s)
    order = by_frame(79, 32, (2, 5, 7), 9, DEVICE)
    some = torch.rand(2, order.blocks, order.blocks, generator=torch.Generator().manual_seed(3)) < 0.5
    some[0, 1] = False  # a row that reads nothing
    some = some.to(DEVICE)
    plan = {
        "plain": AttentionPlan(),
        "ragged": AttentionPlan(blocks=from_bool(some, order, order, partial=~some & some.roll(1, -1), test=Window(2.5)), extra_kv=(segment(s, q.dtype),)),
        "frames-text": AttentionPlan(modulation=Modulation(frames=frame_table(s, text=9), positive_only=True, center_keys=True)),
        "labels-and-bias": AttentionPlan(labels=labels(s), key_bias=key_bias(s)),
    }[name]
    outs = []
    for way in ("plain", variant):
        with tuning.trial(settings.Settings(32, 32, 4, 1, way)):
            outs.append(attend(q, k, v, plan, backend="triton", return_lse=True))
    for a, b in zip(*outs, strict=True):
        # The interpreter multiplies what the copy engine brings in another memory layout, and numpy then adds in another order.
        assert torch.equal(a, b) if variant == "ahead" else torch.allclose(a, b, rtol=1e-5, atol=2e-6)


def test_the_copy_engine_is_left_out_where_it_cannot_read(monkeypatch):
    used = []
    inner = launch.constants
    monkeypatch.setattr(launch, "constants", lambda t, n, *a, **more: used.append(settings.VARIANTS[n.variant]) or inner(t, n, *a, **more))
    q, k, v = tensors(Shape(n_q=65, width=32))
    off = torch.empty(k.numel() + 1, dtype=k.dtype)[1:].view(k.shape).copy_(k)  # rows begin beside the multiples of 16 bytes
    for keys in (k, off):
        with tuning.trial(settings.Settings(32, 32, 4, 1, "engine ahead")):
            attend(q, keys, v, AttentionPlan(), backend="triton")
    assert used == ["engine ahead", "ahead"]
    assert settings.Settings(64, 64, 4, 2, "engine").on("sm_89") == settings.Settings(64, 64, 4, 2)
    assert settings.Settings(64, 64, 4, 2, "engine ahead").on("gfx942").variant == "ahead"
    assert settings.Settings(64, 64, 4, 2, "engine").on("sm_120").variant == "engine"


@pytest.mark.parametrize("arch", [*settings.ARCHITECTURES, "interpreted", "sm_999", "gfx90a", "gfx1250"])
def test_settings_exist_for_every_width_type_and_block(arch):
    for width in (16, 40, 64, 72, 80, 96, 128, 160, 192, 256):
        for item_size in (2, 4):
            for flags in ((), ("bias",), ("partial", "tail")):
                for block_q in (32, 64, 128):
                    for block_k in (32, 64, 128):
                        s = settings.settings(arch, width, item_size, flags, block_q, block_k)
                        assert s.block_n >= 16, "tl.dot needs 16 columns on a GPU"
                        assert block_q % s.block_m == 0
                        assert block_k % s.block_n == 0
                        assert s.block_m < 128 or s.warps >= 4
    assert settings.is_shipped(arch) == (arch not in ("sm_999", "gfx90a", "gfx1250"))


def test_measured_settings_count_where_the_table_has_none(monkeypatch):
    q = torch.zeros(1, 1, 8, 40, dtype=torch.float16)
    asked = []
    monkeypatch.setattr(launch, "tuned", lambda key, device: (asked.append(key), settings.Settings(128, 128, 8, 3))[1])
    assert launch.choose(q, [], False) == settings.INTERPRETED
    monkeypatch.setattr(launch, "architecture", lambda device: "sm_130")
    assert launch.choose(q, ["tail"], False, (64, 128)) == settings.Settings(64, 128, 4, 3)
    assert asked == ["forward sm_130 d64 b2 64x128 tail r1"]
    monkeypatch.setattr(launch, "tuned", lambda key, device: None)
    assert launch.choose(q, [], False) == settings.settings("sm_86", 40, 2)


def test_a_key_tile_far_into_a_strided_buffer_is_read_from_the_right_place():
    n, width = 200, 32
    buffer = torch.randn(1, n, 4096, device=DEVICE)
    k = buffer[:, :, 4000 : 4000 + width].view(1, n, 1, width).transpose(1, 2)
    q, v = torch.randn(1, 1, 20, width, device=DEVICE), torch.randn(1, 1, n, width, device=DEVICE)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert_close("o", attend(q, k, v, AttentionPlan(), backend="triton"), want, 3e-6)
