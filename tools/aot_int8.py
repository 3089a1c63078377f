"""Compile the kernels of int8_qk and int8_qk_fp8_pv for every supported GPU, on a machine that has none.

    python tools/aot_int8.py --all              every architecture, head width, block size and kind of element test
    python tools/aot_int8.py --target sm_90     one architecture (may be repeated); default: a short selection

The companion of ``tools/aot.py``, with the same limits on shared memory; a build must hold an eight-bit matrix instruction, and with eight-bit values one for those as well.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from aot import SHARED_LIMIT, build, import_pack

EIGHT_BIT = r"mma\.sync\S*\.s8\.s8|wgmma\S*\.s8\.s8|tcgen05\S*::i8|v_mfma_i32\w*i8|v_wmma_i32\w*iu8"
E4M3 = r"mma\.sync\S*\.e4m3\.e4m3|wgmma\S*\.e4m3\.e4m3|tcgen05\S*::f8f6f4"
KINDS = {
    "*i8": ("q8", "k8"),
    "*fp8e4nv": ("v8",),
    "*fp32": ("lse", "q_scale", "k_scale", "shift", "key_bias", "v_scale"),
    "*i16": ("col", "partial_col"),
    "*i32": ("hot", "perm_q", "perm_k", "valid_k", "ptr", "partial_ptr", "head_map", "pos_q", "pos_k", "bit_words", "bit_ids"),
    "fp32": ("scale", "radius2", "frame_scale"),
}
TESTS = {"plain": 0, "window": 1, "band": 2, "frames": 3, "bits": 4}


def compile_one(arch: str, width: int, block: int, test: str, dtype: str, values8: bool = False):
    """Compile one configuration; returns (settings, compiled kernel)."""
    from attention_loom.kernels.triton.int8 import int8_forward_kernel
    from attention_loom.kernels.triton.int8_op import int8_settings

    s = int8_settings(arch, width, block, block)
    constants: dict[str, Any] = {"D": width, "BLOCK_M": s.block_m, "BLOCK_N": s.block_n, "SUB_M": block // s.block_m, "SUB_N": block // s.block_n}
    constants |= {"LISTED": True, "ELEMENT": TESTS[test], "INVERTED": False, "BIAS": True, "UPCAST": False, "FP8": values8, "EMULATED": False}
    if not values8:
        constants |= {"v8": None, "v_scale": None}
    kinds = {name: kind for kind, names in KINDS.items() for name in names} | dict.fromkeys("qkvo", f"*{dtype}")
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in int8_forward_kernel.arg_names}
    # What a launch would find: allocations aligned to 16 bytes, strides of whole rows divisible by 16.
    aligned = [i for i, (name, kind) in enumerate(signature.items()) if kind.startswith("*") or re.fullmatch(r"[qkvo]_s[bhn]", name)]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    return s, build(int8_forward_kernel, arch, signature, constants, attributes, s.warps, s.stages)


def problems(arch: str, compiled, values8: bool = False) -> list[str]:
    """Broken limits of one build, as sentences."""
    code = compiled.asm["amdgcn" if arch.startswith("gfx") else "ptx"]
    found = [] if re.search(EIGHT_BIT, code) else ["no eight-bit matrix instruction"]
    if values8 and not re.search(E4M3, code):
        found.append("no matrix instruction for e4m3")
    if compiled.metadata.shared > SHARED_LIMIT[arch]:
        found.append(f"{compiled.metadata.shared} bytes of shared memory, the limit is {SHARED_LIMIT[arch]}")
    return found


def cases(args: argparse.Namespace) -> list[tuple[str, int, int, str, str, bool]]:
    """(arch, width, block, element test, dtype, with eight-bit values) to build."""
    from attention_loom.kernels.quant import has_e4m3

    if not args.all and not args.target:
        return [
            ("sm_89", 128, 128, "window", "bf16", False),
            ("sm_90", 128, 128, "plain", "bf16", False),
            ("sm_90", 128, 128, "plain", "bf16", True),
            ("gfx942", 64, 64, "bits", "fp16", False),
        ]
    return [
        (arch, width, block, test, dtype, values8)
        for arch in args.target or SHARED_LIMIT
        for width in (64, 128)
        for block in (64, 128)
        for test, dtype in (("plain", "bf16"), ("window", "bf16"), ("bits", "fp16"), ("band", "fp16"), ("frames", "bf16"))
        for values8 in ((False, True) if has_e4m3(arch) else (False,))
    ]


def main() -> int:
    """Build the chosen cases, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description="Compile the int8_qk kernel without a GPU.")
    parser.add_argument("--all", action="store_true", help="every architecture and configuration")
    parser.add_argument("--target", action="append", choices=sorted(SHARED_LIMIT), help="only this architecture")
    args = parser.parse_args()
    import_pack()
    broken = 0
    print(f"{'target':8} {'D':>4} {'block':>5} {'test':7} {'type':5} {'values':6} {'warps':>5} {'stages':>6} {'shared':>8} {'s':>5}  verdict", flush=True)
    for arch, width, block, test, dtype, values8 in cases(args):
        began, label = time.perf_counter(), f"{arch:8} {width:4} {block:5} {test:7} {dtype:5} {'e4m3' if values8 else '':6}"
        try:
            s, compiled = compile_one(arch, width, block, test, dtype, values8)
        except Exception as error:  # a compiler may throw anything; the row says what
            broken += 1
            print(f"{label} did not compile: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}", flush=True)
            continue
        found = problems(arch, compiled, values8)
        broken += bool(found)
        took = time.perf_counter() - began
        print(f"{label} {s.warps:5} {s.stages:6} {compiled.metadata.shared:8} {took:5.1f}  {'; '.join(found) or 'ok'}", flush=True)
    print(f"{broken} broken" if broken else "all within limits")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
