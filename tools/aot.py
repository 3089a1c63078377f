"""Compile every shipped Triton configuration for every supported GPU, on a machine that has none.

    python tools/aot.py --all              every architecture, head width, type and feature set
    python tools/aot.py --target sm_90     one architecture (may be repeated); default: a short selection

The interpreter accepts programs that GPUs refuse, so this is the other half of the kernel tests. Prints one row per build
(shared memory, registers, spills, matrix instruction) and exits 1 if a limit is broken: shared memory above what the
architecture has, or no matrix instruction where the types allow one.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
ROOT = Path(__file__).resolve().parent.parent

SHARED_LIMIT = {
    "sm_80": 166_912,
    "sm_86": 101_376,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_120": 101_376,
    "gfx942": 65_536,
}
INSTRUCTION = {
    "sm_80": "mma.sync",
    "sm_86": "mma.sync",
    "sm_89": "mma.sync",
    "sm_90": "wgmma",
    "sm_100": "tcgen05.mma",
    "sm_120": "mma.sync",
    "gfx942": "v_mfma",
}
# Flags of the kernel per feature set; the rest is off.
FEATURES = {
    "plain": (),
    "frames": ("LISTED", "FRAMES", "POSITIVE_ONLY", "CENTER"),
    "distance": ("LISTED", "DISTANCE", "POSITIVE_ONLY"),
    "labels": ("LISTED", "LABELS", "BIAS", "HEAD_SCALE"),
}
FLAGS = ("LISTED", "FRAMES", "DISTANCE", "LABELS", "POSITIVE_ONLY", "CENTER", "HEAD_SCALE", "BIAS")
POINTERS = {
    "kbar": ("CENTER", "*fp32"),
    "head_scale": ("HEAD_SCALE", "*fp32"),
    "key_bias": ("BIAS", "*fp32"),
    "frame_q": ("FRAMES", "*i16"),
    "frame_k": ("FRAMES", "*i16"),
    "frame_table": ("FRAMES", "*u8"),
    "frame_factors": ("FRAMES", "*fp32"),
    "pos_q": ("DISTANCE", "*i32"),
    "pos_k": ("DISTANCE", "*i32"),
    "distance_table": ("DISTANCE", "*u8"),
    "distance_factors": ("DISTANCE", "*fp32"),
    "label_k": ("LABELS", "*i8"),
    "allow_q": ("LABELS", "*i64"),
    "columns": ("LISTED", "*i32"),
    "ends": ("LISTED", "*i32"),
}


def import_pack():
    """The pack under its own name, whatever the folder of the checkout is called."""
    import importlib.util

    if "attention_loom" not in sys.modules:
        spec = importlib.util.spec_from_file_location("attention_loom", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
        module = importlib.util.module_from_spec(spec)
        sys.modules["attention_loom"] = module
        spec.loader.exec_module(module)


def compile_one(arch: str, width: int, item_size: int, feature: str, dtype: str, smallest: bool = False):
    """Compile one configuration; returns (settings, compiled kernel)."""
    import triton
    from attention_loom.kernels.triton.forward import forward_kernel
    from attention_loom.kernels.triton.settings import padded_width, precision, settings
    from attention_loom.kernels.triton.settings import smallest as smallest_settings
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    s = smallest_settings(item_size) if smallest else settings(arch, width, item_size, "LISTED" in FEATURES[feature])
    on = FEATURES[feature]
    constants: dict[str, Any] = {flag: flag in on for flag in FLAGS}
    constants |= {"D": width, "BLOCK_D": padded_width(width), "BLOCK_M": s.block_m, "BLOCK_N": s.block_n}
    constants |= {"EVEN_N": False, "UPCAST": False, "PRECISION": precision(arch)}
    signature: dict[str, Any] = {}
    attributes: dict[Any, Any] = {}
    for index, name in enumerate(forward_kernel.arg_names):
        flag, kind = POINTERS.get(name, (None, None))
        if name in constants:
            signature[name] = "constexpr"
        elif flag is not None and flag not in on:
            signature[name] = "constexpr"
            constants[name] = None
        elif flag is not None:
            signature[name] = kind
        elif name in "qkvo" or name == "lse":
            signature[name] = "*fp32" if name == "lse" else f"*{dtype}"
        else:
            signature[name] = "fp32" if name == "scale" else "i32"
        # What a launch would find: allocations aligned to 16 bytes, strides of whole rows divisible by 16.
        if signature[name].startswith("*") or re.fullmatch(r"[qkvo]_s[bhn]", name):
            attributes[(index,)] = [["tt.divisibility", 16]]
    amd = arch.startswith("gfx")
    target = GPUTarget("hip", arch, 64) if amd else GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    source = ASTSource(forward_kernel, signature, dict(constants), attributes)
    return s, triton.compile(source, target=target, options={"num_warps": s.warps, "num_stages": s.stages})


def resources(compiled, arch: str) -> tuple[str, str]:
    """(registers, spill bytes) per thread as text; "?" where no tool tells."""
    if arch.startswith("gfx"):
        text = compiled.asm["amdgcn"]
        found = re.search(r"\.vgpr_count:\s+(\d+)", text), re.search(r"\.private_segment_fixed_size:\s+(\d+)", text)
        return tuple(m.group(1) if m else "?" for m in found)  # type: ignore[return-value]
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        try:
            shown = subprocess.run([str(tool), "-res-usage", cubin.name], capture_output=True, text=True, timeout=60).stdout
        except (OSError, subprocess.TimeoutExpired):
            return "?", "?"
    registers, stack = re.search(r"REG:(\d+)", shown), re.search(r"STACK:(\d+)", shown)
    return (registers.group(1) if registers else "?"), (stack.group(1) if stack else "?")


def problems(arch: str, item_size: int, compiled) -> list[str]:
    """Broken limits of one build, as sentences."""
    from attention_loom.kernels.triton.settings import precision

    found = []
    if compiled.metadata.shared > SHARED_LIMIT[arch]:
        found.append(f"{compiled.metadata.shared} bytes of shared memory, the limit is {SHARED_LIMIT[arch]}")
    expected = precision(arch) != "ieee" if item_size == 4 else True
    if expected and instruction(arch, item_size, compiled) == "-":
        found.append(f"no {INSTRUCTION[arch]}")
    return found


def instruction(arch: str, item_size: int, compiled) -> str:
    """The matrix instruction found, or "-". fp32 tiles may be too small for the newest units and use the older one."""
    code = compiled.asm["amdgcn" if arch.startswith("gfx") else "ptx"]
    accepted = [INSTRUCTION[arch]] + (["mma.sync"] if item_size == 4 else [])
    return next((name for name in accepted if name in code), "-")


def cases(args: argparse.Namespace) -> list[tuple[str, int, int, str, str, bool]]:
    """(arch, width, bytes per element, feature set, dtype, smallest settings) to build."""
    from attention_loom.kernels.triton.settings import shipped

    table = shipped()
    if not args.all and not args.target:
        # The widest and the most common head on one GPU of each kind: enough to notice a broken kernel within seconds.
        return [
            ("sm_80", 128, 2, "frames", "bf16", False),
            ("sm_90", 128, 2, "frames", "bf16", False),
            ("sm_120", 128, 2, "labels", "fp16", False),
            ("gfx942", 64, 2, "frames", "fp16", False),
        ]
    rows = []
    for arch in args.target or table:
        for width, size in table[arch]:
            dtype = "bf16" if size == 2 else "fp32"
            rows += [(arch, width, size, feature, dtype, False) for feature in FEATURES]
        rows += [(arch, 256, size, "frames", "bf16" if size == 2 else "fp32", True) for size in (2, 4)]
        rows += [(arch, 72, 2, "frames", "fp16", False)]
    return rows


def main() -> int:
    """Build the chosen cases, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description="Compile the shipped Triton configurations without a GPU.")
    parser.add_argument("--all", action="store_true", help="every architecture and configuration")
    parser.add_argument("--target", action="append", choices=sorted(SHARED_LIMIT), help="only this architecture")
    parser.add_argument("--no-resources", action="store_true", help="do not ask for registers and spills (quicker)")
    args = parser.parse_args()
    import_pack()

    broken = 0
    head = f"{'target':8} {'D':>4} {'type':5} {'features':9} {'tile':>8} {'warps':>5} {'stages':>6} {'shared':>8} {'regs':>5} {'spill':>6}"
    print(f"{head} {'matrix':12} {'s':>5}  verdict", flush=True)
    for arch, width, size, feature, dtype, smallest in cases(args):
        began = time.perf_counter()
        try:
            s, compiled = compile_one(arch, width, size, feature, dtype, smallest)
        except Exception as error:  # a compiler may throw anything; the row says what
            broken += 1
            reason = (str(error).strip().splitlines() or [""])[0]
            print(f"{arch:8} {width:4} {dtype:5} {feature:9} did not compile: {type(error).__name__}: {reason}", flush=True)
            continue
        took = time.perf_counter() - began
        registers, spill = ("", "") if args.no_resources else resources(compiled, arch)
        found = problems(arch, size, compiled)
        broken += bool(found)
        tile = f"{s.block_m}x{s.block_n}" + ("*" if smallest else "")
        row = f"{arch:8} {width:4} {dtype:5} {feature:9} {tile:>8} {s.warps:5} {s.stages:6} {compiled.metadata.shared:8} {registers:>5}"
        print(f"{row} {spill:>6} {instruction(arch, size, compiled):12} {took:5.1f}  {'; '.join(found) or 'ok'}", flush=True)
    print(f"{broken} broken" if broken else "all within limits")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
