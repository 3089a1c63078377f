"""Compile the forward kernel with roles for its warp groups for Hopper, on a machine that has none.

    python tools/aot_specialised.py --all       every head width, tile, depth and feature set; default: a short selection

The companion of ``tools/aot.py``, with the same limit on shared memory. What the machine code must be like: matrix instructions of
sm_90 that are not run one by one, at least half of the exponentials beside them, nothing spilt within the loop.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import aot
from aot import SHARED_LIMIT, import_pack, resources
from sass import Loop, disassemble, instructions, loops

ARCH = "sm_90"
WARPS = 12
"""Of a program: two groups of four that multiply, and one of which a single warp brings tiles."""
MULTIPLYING = 8
PLAIN = ("plain", "whole", "blocks", "affine")
PAIRED = ("paired",)
PAIRS = ("frames", "distance", "labels", "window", "bits")
"""Feature sets of ``aot.py``: without and with rules that look at single pairs, which want tiles of 64 keys."""


def compile_one(width: int, keys: int, stages: int, feature: str, dtype: str = "bf16"):
    """Compile one configuration; ``feature`` as in :data:`aot.FEATURES`, "whole": blocks without dead keys, or "paired": rows of 64."""
    import triton
    from attention_loom.kernels.triton import settings as table
    from attention_loom.kernels.triton.launch import constants as known
    from attention_loom.kernels.triton.specialised import SIZES, specialised_kernel
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon._runtime import GluonASTSource
    from triton.experimental.gluon.language import NVMMASharedLayout, bfloat16, float16

    paired = feature == "paired"
    known_as = "blocks" if paired or feature == "whole" else feature
    arguments = aot.arguments(ARCH, width, 2, known_as, smallest=False)
    numbers = replace(arguments[2], block_m=128, block_n=keys, block_k=keys if paired else arguments[2].block_k, even=feature == "whole")
    if arguments[1].perm_q is None:  # the kernel's own tile is the block
        numbers = replace(numbers, block_q=128, block_k=keys)
    constants: dict[str, Any] = known(arguments[1], numbers, width, table.precision(ARCH)) | {"STAGES": stages, "PAIRED": paired}
    box = [1, 1, keys, width]
    layout = NVMMASharedLayout.get_default_for(box, bfloat16 if dtype == "bf16" else float16)
    kinds = {name: kind for kind, names in aot.TYPES.items() for name in names} | dict.fromkeys(aot.OF_INPUT, f"*{dtype}")
    kinds["takers"] = "*u8"
    kinds |= dict.fromkeys(("k_engine", "v_engine"), f"tensordesc<{dtype}[{', '.join(map(str, box))}],{layout!r}>")
    there = {"q", "k_engine", "v_engine", "o", "lse", "mix_v", *aot.FEATURES[known_as][0], *(["takers"] if paired else [])}
    there |= {"part_o", "part_lse", "chunk"} if numbers.splits > 1 else set()
    names = specialised_kernel.arg_names
    given = {name: x for name, x in constants.items() if name in names}
    sizes = [name for name in names if kinds.get(name) == "fp32" or re.search(r"_s[bhn]$", name) or name in SIZES]
    signature, attributes = aot.signature_of(names, given, kinds, sizes, there)
    source = GluonASTSource(specialised_kernel, signature, given, attributes)
    return triton.compile(source, target=GPUTarget("cuda", int(ARCH.removeprefix("sm_")), 32), options={"num_warps": 4})


def main_loop(compiled, width: int, keys: int) -> Loop:
    """The loop over the tiles of one multiplying group; both groups have the same."""
    products = (width + keys) // 16
    return next(x for x in loops(instructions(disassemble(compiled.asm["cubin"]))) if x.kinds["matrix"] == products and x.kinds["exp2"])


def problems(compiled, loop: Loop, paired: bool = False) -> list[str]:
    """Broken limits of one build, as sentences. paired: each group waits for its products, and the other one's run meanwhile."""
    found = []
    if compiled.metadata.shared > SHARED_LIMIT[ARCH]:
        found.append(f"{compiled.metadata.shared} bytes of shared memory, the limit is {SHARED_LIMIT[ARCH]}")
    if compiled.metadata.num_warps != WARPS:
        found.append(f"{compiled.metadata.num_warps} warps, not {WARPS}")
    if loop.count("WARPGROUP.DEPBAR") > 1 + paired:
        found.append("matrix instructions are waited for one by one")
    if 2 * loop.beside < loop.kinds["exp2"] and not paired:
        found.append(f"only {loop.beside} of {loop.kinds['exp2']} exponentials are taken beside products")
    if loop.kinds["local"]:
        found.append(f"{loop.kinds['local']} instructions spill within the loop")
    return found


def cases(everything: bool) -> list[tuple[int, int, int, str, str]]:
    """(width, keys, stages, feature set, dtype) to build."""
    if not everything:
        return [(128, 128, 2, "blocks", "bf16"), (64, 128, 2, "plain", "fp16"), (128, 64, 4, "paired", "bf16"), (128, 64, 4, "frames", "bf16")]
    found = [(128, 128, stages, feature, dtype) for stages in (2, 3) for feature in PLAIN for dtype in ("bf16", "fp16")]
    found += [(64, keys, stages, feature, "bf16") for keys in (64, 128) for stages in (2, 4) for feature in PLAIN]
    return found + [(width, 64, 4, feature, "bf16") for width in (128, 64) for feature in (*PLAIN, *PAIRED, *PAIRS)]


def main() -> int:
    """Build the chosen cases, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description="Compile the specialised kernel without a GPU.")
    parser.add_argument("--all", action="store_true", help="every configuration")
    args = parser.parse_args()
    import_pack()
    broken = 0
    print(f"{'D':>4} {'keys':>4} {'stages':>6} {'features':8} {'type':4} {'shared':>8} {'stack':>5} {'instructions':>12} {'beside':>7} {'s':>5}  verdict", flush=True)
    for width, keys, stages, feature, dtype in cases(args.all):
        began, label = time.perf_counter(), f"{width:4} {keys:4} {stages:6} {feature:8} {dtype:4}"
        try:
            compiled = compile_one(width, keys, stages, feature, dtype)
        except Exception as error:  # a compiler may throw anything; the row says what
            broken += 1
            print(f"{label} did not compile: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}", flush=True)
            continue
        loop = main_loop(compiled, width, keys)
        found, took = problems(compiled, loop, feature in PAIRED), time.perf_counter() - began
        broken += bool(found)
        row = f"{label} {compiled.metadata.shared:8} {resources(compiled, ARCH)[1]:>5} {loop.total:12} {loop.beside:3}/{loop.kinds['exp2']:3} {took:5.1f}"
        print(f"{row}  {'; '.join(found) or 'ok'}", flush=True)
    print(f"{broken} broken" if broken else "all within limits")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
