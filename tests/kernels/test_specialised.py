"""The forward kernel with roles for its warp groups, on a machine that does everything at the worst time."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gluon_machine
import pytest
import torch
from attention_loom.kernels import AttentionPlan, Band, Frames, Modulation, Window, lists, pairs
from attention_loom.kernels.attend import attend
from attention_loom.kernels.builders import from_bool
from attention_loom.kernels.order import by_frame, raster
from attention_loom.kernels.reference import reference_attend
from attention_loom.kernels.triton import candidates, launch, settings, specialised, specialised_launch, tuning
from block_cases import packed
from kernel_cases import CASES as ALL
from kernel_cases import (
    DEVICE,
    ROTATED,
    TOLERANCE,
    VIDEO,
    Shape,
    affine,
    assert_close,
    assert_lse_close,
    blocks,
    distance_table,
    frame_table,
    key_bias,
    labels,
    mixes,
    segment,
    tensors,
    ultravico,
)

if DEVICE != "cpu":
    pytest.skip("on a GPU the kernel itself is held against the shipped one (bench/checks.py)", allow_module_level=True)

SOURCES = [Path(specialised.__file__).parent / f"{name}.py" for name in ("items", "logit_math", "element_masks", "pair_rules", "rounds", "epilogue", "specialised")]
WAYS = ("specialised", "specialised persistent")


@pytest.fixture
def machine(monkeypatch):
    """Makes the kernel run on a machine with this seed, or a changed kernel; returns what was launched."""
    monkeypatch.setattr(settings, "has_wgmma", lambda arch: True)
    monkeypatch.setattr(specialised_launch, "has_wgmma", lambda arch: True)
    monkeypatch.setattr(specialised_launch, "processors", lambda device: 3)

    def use(seed: int = 0, change=lambda text: text) -> gluon_machine.Kernel:
        kernel = gluon_machine.Kernel("specialised_kernel", SOURCES, seed, change)
        monkeypatch.setattr(specialised, "specialised_kernel", kernel)
        return kernel

    return use


def ours(q, k, v, plan, way="specialised", keys=64, stages=2, **more):
    with tuning.trial(settings.Settings(128, keys, 8, stages, way)):
        return attend(q, k, v, plan, backend="triton", return_lse=True, **more)


def assert_right(got, q, k, v, plan):
    (o, lse), (want, want_lse) = got, reference_attend(q.double(), k.double(), v.double(), plan, return_lse=True)
    assert float((o.double() - want).norm() / want.norm()) < (8e-4 if o.dtype == torch.float16 else 4e-3)
    assert torch.allclose(lse.double(), want_lse, atol=1e-3)


def some(shape: Shape, q, k=None, density: float = 0.5):
    """A block plan with blocks at random; the second row of the first head reads nothing."""
    k = q if k is None else k
    chosen = torch.rand(shape.heads, q.blocks, k.blocks, generator=torch.Generator().manual_seed(3)) < density
    chosen[0, 1] = False
    return from_bool(chosen, q, k)


def framed():
    """520 tokens: frames that do not fill their blocks, and tokens that belong to none."""
    s = Shape(n_q=520)
    order = by_frame(520, 128, (3, 10, 16), 40)
    return s, AttentionPlan(blocks=some(s, order))


CASES = {
    "dense": lambda: (Shape(n_q=300), AttentionPlan()),
    "dense, whole blocks": lambda: (Shape(n_q=256), AttentionPlan()),
    "fewer keys, shared by heads": lambda: (Shape(n_q=200, n_k=70, heads=4, key_heads=2), AttentionPlan()),
    "frames": framed,
    "raster": lambda: (Shape(n_q=500, batch=2), AttentionPlan(blocks=some(Shape(), raster(500, 128)))),
    "small key blocks": lambda: (Shape(n_q=300, n_k=200), AttentionPlan(blocks=some(Shape(), raster(300, 128), raster(200, 64)))),
    "affine": lambda: (framed()[0], AttentionPlan(blocks=framed()[1].blocks, row_affine=affine(framed()[0], torch.float16))),
    "own values mixed in": lambda: (Shape(n_q=300), AttentionPlan(head_mix=(mixes(Shape(n_q=300), "identity", rows=True),))),
    "mean value mixed in": lambda: (Shape(n_q=300), AttentionPlan(head_mix=(mixes(Shape(n_q=300), "mean"),))),
    "wide head": lambda: (Shape(n_q=260, width=128, heads=1), AttentionPlan(blocks=some(Shape(heads=1), raster(260, 128)))),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(machine, name, way):
    s, plan = CASES[name]()
    for seed in range(3):
        kernel = machine(seed)
        q, k, v = tensors(s, torch.float16, ("bhnd", "bnhd", "wide")[seed])
        got = ours(q, k, v, plan, way, stages=1 + seed)
        assert len(kernel.grids) == 1
        assert kernel.grids[0] == 3 if way == WAYS[1] else kernel.grids[0] > 3 or name in ("dense, whole blocks", "wide head", "fewer keys, shared by heads")
        assert_right(got, q, k, v, plan)


# Cases of the common table that have what the kernel does not know.
ELSEWHERE = {"segment", "segments-rows", "segment-alone", "everything", "everything-bf16"}


@pytest.mark.parametrize("case", [c for c in ALL if not c.id.startswith(("blocks", "stock-d"))], ids=lambda c: c.id)
def test_the_table_of_cases(machine, case):
    """Frame tables, distances, labels, biases, factors of heads, and what lies around: all in half precision, heads 64 wide."""
    s, kernel = replace(case.shape, width=64), machine(len(case.id))
    q, k, v = tensors(s, torch.float16, case.layout)
    plan = case.build(s, torch.float16)
    o, lse = ours(q, k, v, plan, WAYS[len(case.id) % 2])
    want, want_lse = reference_attend(q.double(), k.double(), v.double(), plan, return_lse=True)
    allowed, allowed_lse = ROTATED[torch.float16] if plan.rotation is not None else TOLERANCE[torch.float16]
    assert_close("o", o, want, allowed)
    assert_lse_close(lse, want_lse, allowed_lse)
    assert bool(kernel.grids) == (case.id not in ELSEWHERE)


RULED = {
    "window": lambda s: blocks(s, block=128, order="tile", test=Window(2.6)),
    "window inverted, per head": lambda s: blocks(s, block=128, order="frame", groups=2, test=Window(2.6, inverted=True)),
    "band": lambda s: blocks(s, block=128, order="frame", test=Band(4), density=0.9),
    "frame range": lambda s: blocks(s, block=128, order="tile", groups=2, test=Frames(-1, 0)),
    "bits": lambda s: AttentionPlan(blocks=packed(s, DEVICE, block=128)),
    "decay": lambda s: blocks(s, ultravico(s, masked=True), block=128, order="tile"),
    "decay with signs": lambda s: blocks(s, AttentionPlan(modulation=Modulation(frames=frame_table(s, factors=[1.0, -0.5, 1.7]))), block=128, order="frame", test=Window(2.6)),
    "distance": lambda s: blocks(s, AttentionPlan(modulation=Modulation(distance=distance_table(s, outside=9, masked=True))), block=128, order="tile"),
    "labels and bias": lambda s: blocks(s, AttentionPlan(labels=labels(s), key_bias=key_bias(s, heads=2)), block=128, order="frame", test=Band(6)),
}


@pytest.mark.parametrize("name", RULED)
def test_rules_on_blocks(machine, monkeypatch, name):
    for keys, cut in ((128, False), (64, False), (64, True)):
        monkeypatch.setattr(lists, "SPLIT_ABOVE", 2 if cut else 256)
        plan = RULED[name](VIDEO)
        q, k, v = tensors(VIDEO, torch.float16)
        kernel = machine(keys + cut)
        o, lse = ours(q, k, v, plan, WAYS[cut], keys=keys)
        want, want_lse = reference_attend(q.double(), k.double(), v.double(), plan, return_lse=True)
        assert_close("o", o, want, TOLERANCE[torch.float16][0])
        assert_lse_close(lse, want_lse, TOLERANCE[torch.float16][1])
        assert kernel.grids


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_are_cut_along_the_keys(machine, monkeypatch, way):
    monkeypatch.setattr(lists, "SPLIT_ABOVE", 2)
    s, plan = framed()
    q, k, v = tensors(s, torch.bfloat16)
    kernel = machine()
    got = ours(q, k, v, plan, way, keys=128)
    assert kernel.machine.steps > 0
    assert lists.work_lists(plan, 520, 520, 128, 128).splits > 1
    assert_right(got, q, k, v, plan)


def test_the_two_kernels_give_the_same(machine):
    """Up to the order in which a matrix product adds."""
    s, plan = framed()
    q, k, v = tensors(s, torch.float16)
    machine()
    for a, b in zip(ours(q, k, v, plan), ours(q, k, v, plan, "plain"), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-3)


def test_a_result_does_not_depend_on_the_order_of_events(machine):
    s, plan = framed()
    q, k, v = tensors(s, torch.float16)
    outs = []
    for seed in range(4):
        machine(seed)
        outs.append(ours(q, k, v, plan, WAYS[seed % 2])[0])
    assert all(torch.equal(outs[0], o) for o in outs[1:])


# --- rows of 64 in pairs ------------------------------------------------------------------------------------------------------

PAIRED = {
    "frames": lambda s: blocks(s, block=64, order="frame"),
    "tiles, per head": lambda s: blocks(s, block=64, order="tile", groups=2, density=0.3),
    "an odd row": lambda s: AttentionPlan(blocks=some(s, raster(s.n_q, 64))),
    "hardly anything": lambda s: blocks(s, block=64, order="frame", density=0.1),
    "bias and affine": lambda s: blocks(s, AttentionPlan(key_bias=key_bias(s, heads=2), row_affine=affine(s, torch.float16)), block=64, order="tile"),
}


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("name", PAIRED)
def test_rows_of_64_are_paired(machine, monkeypatch, name, cut):
    monkeypatch.setattr(lists, "SPLIT_ABOVE", 2 if cut else 256)
    s = Shape(n_q=520) if name == "an odd row" else VIDEO
    plan = PAIRED[name](s)
    q, k, v = tensors(s, torch.float16, "bnhd")
    for seed in range(2):
        kernel = machine(seed)
        got = ours(q, k, v, plan, WAYS[cut], keys=(128, 64)[seed], stages=2 + seed)
        assert kernel.grids
        assert_right(got, q, k, v, plan)


def test_pairs_hold_what_either_row_reads():
    s = Shape(n_q=520, heads=3)
    q = raster(520, 64)
    plan = some(s, q)
    made = pairs.pair_rows(plan)
    assert made is pairs.pair_rows(plan), "kept with the plan"
    assert made.plan.q.block == 128
    assert made.plan.q.blocks == 5
    assert made.plan.q.valid.tolist() == [128, 128, 128, 128, 8]
    reads, both = plan.kinds() == 2, made.plan.kinds() == 2
    entries = made.takers.tolist()
    for g in range(3):
        for row in range(5):
            first = reads[g, 2 * row]
            second = reads[g, 2 * row + 1] if 2 * row + 1 < 9 else torch.zeros(9, dtype=torch.bool)
            assert torch.equal(both[g, row], first | second)
            found = [entries.pop(0) for _ in range(int(both[g, row].sum()))]
            assert found == [int(a) + 2 * int(b) for a, b in zip(first, second, strict=True) if a or b]
    assert not entries


def test_the_orders_of_pairs_hold_the_same_places():
    for order in (by_frame(520, 64, (3, 10, 16), 40), raster(300, 64), by_frame(180, 64, (2, 6, 13), 4)):
        plan = pairs.pair_rows(from_bool(torch.ones(order.blocks, order.blocks, dtype=torch.bool), order, order)).plan
        assert plan.q.blocks == -(-order.blocks // 2)
        assert torch.equal(plan.q.perm[: order.padded], order.perm)
        assert int(plan.q.valid.sum()) == int(order.valid.sum()) == order.tokens
        assert torch.equal(plan.q.perm[plan.q.inverse.long()], torch.arange(order.tokens, dtype=torch.int32))
        assert plan.k is order


# --- that the machine notices ------------------------------------------------------------------------------------------------

LINES = [line.strip() for line in SOURCES[-1].read_text(encoding="utf8").splitlines()]
SYNCHRONISING = [n for n, line in enumerate(LINES) if line.startswith(("mbarrier.wait", "mbarrier.arrive", "fence_async_shared()  #"))]


@pytest.mark.parametrize("number", SYNCHRONISING)
def test_every_barrier_is_needed(machine, number):
    """Without the line the kernel stands still or reads what is not there, for one of a few orders of events."""

    def without(text: str) -> str:
        lines = text.splitlines()
        if len(lines) != len(LINES):  # another source
            return text
        lines[number] = lines[number].replace(LINES[number], "pass")
        return "\n".join(lines)

    s = Shape(n_q=768, n_k=300, heads=1)
    q, k, v = tensors(s, torch.float16)
    for plan in (AttentionPlan(), AttentionPlan(blocks=some(s, raster(768, 64), raster(300, 64)))):
        want = reference_attend(q.double(), k.double(), v.double(), plan)
        for seed in range(12):
            machine(seed, without)
            try:
                o, _ = ours(q, k, v, plan, WAYS[1])
            except AssertionError:
                return
            if not torch.allclose(o.double(), want, atol=1e-2):
                return
    pytest.fail(f"nobody misses {LINES[number]!r}")


def test_wrong_arrivals_are_noticed(machine):
    q, k, v = tensors(Shape(n_q=128, heads=1), torch.float16)
    machine(0, lambda text: text.replace("count=GROUPS", "count=3"))
    with pytest.raises(gluon_machine.Deadlock, match="wait for what never comes"):
        ours(q, k, v, AttentionPlan(), stages=1)


# --- what is for the other kernel ---------------------------------------------------------------------------------------------


def other_calls():
    s = Shape(n_q=256, heads=1)
    q, k, v = tensors(s, torch.float16)
    flat = torch.empty(k.numel() + 1, dtype=k.dtype)[1:].view(k.shape).copy_(k)
    yield "fp32", [x.float() for x in (q, k, v)], AttentionPlan()
    yield "width 40", tensors(Shape(n_q=256, heads=1, width=40), torch.float16), AttentionPlan()
    yield "rows that begin anywhere", (q, flat, v), AttentionPlan()
    yield "one head for all", (q, k, v.expand(-1, -1, -1, -1)[:, :, :1].expand(-1, -1, 256, -1)), AttentionPlan()
    yield "blocks of 32", (q, k, v), AttentionPlan(blocks=some(Shape(heads=1), raster(256, 32)))
    yield "blocks of 64 with a test", (q, k, v), blocks(s, block=64, test=Window(2.6))
    yield "blocks of 64 with a table", (q, k, v), blocks(s, AttentionPlan(modulation=Modulation(frames=frame_table(s))), block=64)
    yield "blocks of 64 with a tail", (q, k, v), blocks(s, block=64, tail="row")
    yield "a tail", (q, k, v), blocks(s, block=128, tail="row")
    yield "a segment", (q, k, v), AttentionPlan(extra_kv=(segment(s, q.dtype),))
    yield "a negative scale", (q, k, v), AttentionPlan()


@pytest.mark.parametrize("name", [name for name, *_ in other_calls()])
def test_what_the_kernel_does_not_know_goes_to_the_other_one(machine, name):
    (q, k, v), plan = next((x, p) for n, x, p in other_calls() if n == name)
    kernel = machine()
    more = {"scale": -0.1} if "negative" in name else {}
    o, _ = ours(q, k, v, plan, keys=32 if q.dtype == torch.float32 else 64, **more)
    assert not kernel.grids
    want = reference_attend(q.double(), k.double(), v.double(), plan, **more)
    assert float((o.double() - want).norm() / want.norm()) < 8e-4


def test_without_the_dialect_the_other_kernel_runs(machine, monkeypatch):
    kernel = machine()
    monkeypatch.setattr(specialised_launch, "gluon_installed", lambda: False)
    q, k, v = tensors(Shape(n_q=128, heads=1), torch.float16)
    ours(q, k, v, AttentionPlan())
    assert not kernel.grids


def test_only_hopper_has_the_instruction():
    s = settings.Settings(128, 128, 8, 2, "specialised persistent")
    assert s.on("sm_90") == s
    assert all(s.on(arch).variant == "plain" for arch in ("sm_80", "sm_89", "sm_100", "sm_120", "gfx942", "interpreted"))
    assert {c.variant for c in candidates.candidates("sm_90", 128, 2)} >= set(WAYS)
    assert launch.VARIANTS is settings.VARIANTS


def test_it_compiles_for_hopper_with_exponentials_beside_products():
    """A short selection; ``python tools/aot_specialised.py --all`` does every configuration."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    tool = Path(__file__).resolve().parents[2] / "tools" / "aot_specialised.py"
    done = subprocess.run([sys.executable, str(tool)], capture_output=True, text=True, env=env, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" ok\n") == 4


def test_what_a_launch_hands_over_is_what_compiles():
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(Path(__file__).parent / "bind_launches.py")], capture_output=True, text=True, env=env, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" 12 warps, ") == 8
