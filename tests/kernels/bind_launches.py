"""Run by test_specialised.py in a process without the interpreter: what a launch hands to the Gluon kernel goes through Triton's own binding of
arguments and is compiled for sm_90. Only the last step is missing, the launch itself. Prints one line per call."""

from __future__ import annotations

import os

os.environ.pop("TRITON_INTERPRET", None)

from dataclasses import replace

import torch
import triton
from attention_loom.kernels import AttentionPlan, FrameTable, Modulation, Window, by_frame, from_bool, pairs
from attention_loom.kernels.triton import launch, settings, specialised, specialised_launch
from attention_loom.kernels.triton.arguments import gather
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.jit import create_function_from_signature

TARGET = GPUTarget("cuda", 90, 32)
KERNEL = specialised.specialised_kernel
WIDE, NARROW = settings.Settings(128, 128, 8, 2, "specialised persistent"), settings.Settings(128, 64, 8, 4, "specialised")


class Bound:
    """Stands where the kernel is launched from."""

    arg_names = KERNEL.arg_names
    calls = 0
    name = ""

    def __getitem__(self, grid):
        def call(*args, **kwargs):
            backend = make_backend(TARGET)
            kwargs |= {"debug": False, "instrumentation_mode": ""}
            bound, specialisation, options = create_function_from_signature(KERNEL.signature, KERNEL.params, backend)(*args, **kwargs)
            options, signature, constants, attributes = KERNEL._pack_args(backend, kwargs, bound, specialisation, options)
            compiled = triton.compile(GluonASTSource(KERNEL, signature, constants, attributes), target=TARGET, options=options.__dict__)
            self.calls += 1
            print(f"{self.name}: grid {grid[0]}, {compiled.metadata.num_warps} warps, {compiled.metadata.shared} bytes")

        return call


def placed(k, v, perm, blocks, block, *, pool):
    """Keys in place order: the pass before, which would be a launch of its own."""
    if perm is None:
        return k, v, None, None
    return *(x[:, :, perm.clamp(min=0).long()].contiguous() for x in (k, v)), None, None


def calls():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 520, 4, 128).to(torch.bfloat16).transpose(1, 2) for _ in range(3))
    one = [x[:1, :1] for x in (q, k, v)]  # sizes and strides of 1 are bound in a way of their own
    order, small = by_frame(520, 128, (3, 10, 16), 40), by_frame(520, 64, (3, 10, 16), 40)
    some = torch.rand(4, order.blocks, order.blocks) < 0.5
    ids = (torch.arange(520) // 65).to(torch.int16)
    decay = Modulation(frames=FrameTable(ids, ids, torch.eye(8).to(torch.uint8), torch.tensor([0.9, 1.0])), positive_only=True, center_keys=True)
    paired = pairs.pair_rows(from_bool(torch.rand(4, small.blocks, small.blocks) < 0.5, small, small))
    yield "dense", (q, k, v), AttentionPlan(), WIDE, None
    yield "one of each", one, AttentionPlan(), WIDE, None
    yield "blocks", (q, k, v), AttentionPlan(blocks=from_bool(some, order, order)), WIDE, None
    yield "one list", one, AttentionPlan(blocks=from_bool(some[0], order, order)), WIDE, None
    yield "window", (q, k, v), AttentionPlan(blocks=from_bool(some, order, order, partial=~some, test=Window(2.5))), NARROW, None
    yield "decay", (q, k, v), AttentionPlan(modulation=decay), NARROW, None
    yield "pairs", (q, k, v), AttentionPlan(blocks=paired.plan), NARROW, paired.takers
    yield "fp16, width 64", [x[..., :64].half().contiguous() for x in (q, k, v)], AttentionPlan(), WIDE, None


if __name__ == "__main__":
    settings.has_wgmma = specialised_launch.has_wgmma = lambda arch: True
    specialised_launch.processors = lambda device: 132
    launch.place_keys = placed
    specialised.specialised_kernel = bound = Bound()
    for bound.name, (q, k, v), plan, s, takers in calls():
        tensors, numbers, scalars = gather(q, k, v, plan, 0.1, s, True)
        launch.launch_forward(q, k, v, replace(tensors, takers=takers), numbers, scalars)
    assert bound.calls == 8, bound.calls
