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
    "gfx1100": 65_536,
    "gfx1200": 65_536,
}
INSTRUCTION = {
    "sm_80": "mma.sync",
    "sm_86": "mma.sync",
    "sm_89": "mma.sync",
    "sm_90": "wgmma",
    "sm_100": "tcgen05.mma",
    "sm_120": "mma.sync",
    "gfx942": "v_mfma",
    "gfx1100": "v_wmma",
    "gfx1200": "v_wmma",
}
# Feature sets: tensors of kernels.triton.arguments.Tensors that are there, and numbers that differ from a plain call.
LISTED = ("items", "head_map", "bounds", "col")
ORDERED = (*LISTED, "perm_q", "perm_k", "k_valid")
TABLE = ("frame_q", "frame_k", "frame_table", "frame_factors")
FEATURES: dict[str, tuple[tuple[str, ...], dict[str, int]]] = {
    "plain": ((), {}),
    "frames": ((*LISTED, *TABLE, "gains", "kbar"), {"positive_only": 1}),
    "distance": ((*LISTED, "gains", "pos_q", "pos_k", "distance_table", "distance_factors"), {"positive_only": 1}),
    "labels": ((*LISTED, "label_k", "allow_q", "key_bias", "head_scale"), {}),
    "blocks": (ORDERED, {"splits": 2}),
    "blocks64": (ORDERED, {"block_q": 64, "block_k": 64}),
    "window": ((*ORDERED, "partial_ptr", "partial_col", "place_q", "place_k"), {"element": 1}),
    "bits": ((*ORDERED, "partial_ptr", "partial_col", "bit_words", "bit_ids", "key_bias"), {"element": 4}),
    "segments": ((*ORDERED, "seg0_k", "seg0_v", "seg0_bias", "seg1_k", "seg1_v", "seg1_rows", "unread", "mix_amount"), {"tail": 1, "mix": 1}),
    "affine": ((*ORDERED, "row_scale", "residual"), {"splits": 2}),
    "all": ((*ORDERED, "partial_ptr", "partial_col", "place_q", "place_k", *TABLE, "gains", "kbar", "seg0_k", "seg0_v"), {"element": 1, "positive_only": 1}),
}
TYPES = {
    "*fp32": ("gains", "kbar", "head_scale", "row_scale", "key_bias", "frame_factors", "distance_factors", "seg0_bias", "seg1_bias", "k_mean", "v_mean", "mix_mean", "mix_amount", "part_o", "part_lse", "lse"),
    "*i16": ("frame_q", "frame_k", "col", "partial_col"),
    "*u8": ("frame_table", "distance_table", "seg0_rows", "seg1_rows", "mix_rows", "unread"),
    "*i8": ("label_k",),
    "*i64": ("allow_q",),
    "fp32": ("scale", "radius2", "frame_scale"),
}  # fmt: skip
OF_INPUT = ("q", "k", "v", "o", "residual", "mix_v", "seg0_k", "seg0_v", "seg1_k", "seg1_v")


def import_pack():
    """The pack under its own name, whatever the folder of the checkout is called."""
    import importlib.util

    if "attention_loom" not in sys.modules:
        spec = importlib.util.spec_from_file_location("attention_loom", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
        module = importlib.util.module_from_spec(spec)
        sys.modules["attention_loom"] = module
        spec.loader.exec_module(module)


def arguments(arch: str, width: int, item_size: int, feature: str, smallest: bool):
    """(settings, tensors, numbers) of a call with the features named; tensors have no memory behind them."""
    import torch
    from attention_loom.kernels.triton.arguments import Numbers, Tensors
    from attention_loom.kernels.triton.settings import VARIANTS, settings
    from attention_loom.kernels.triton.settings import smallest as smallest_settings

    names, more = FEATURES[feature]
    flags = {"modulation": "frame_q pos_q label_k", "partial": "partial_ptr", "bias": "key_bias", "segments": "seg0_k", "tail": "unread"}
    present = [flag for flag, any_of in flags.items() if set(any_of.split()) & set(names)]
    listed = "perm_q" in names
    block_q, block_k = more.get("block_q", 128), more.get("block_k", 128)
    s = smallest_settings(item_size).within(block_q, block_k) if smallest else settings(arch, width, item_size, present, block_q, block_k)
    if not listed:  # the kernel's own tile is the block
        block_q, block_k = s.block_m, s.block_n
    shape = {"seg0_k": (1, 1, 9, width), "seg1_k": (1, 1, 300, width)}
    tensors = Tensors(**{name: torch.empty(shape.get(name, (1,)), device="meta") for name in names})
    numbers: dict[str, Any] = {"block_q": block_q, "block_k": block_k} | more
    return s, tensors, Numbers(s.block_m, s.block_n, s.warps, s.stages, blocks_q=4, blocks_k=4, variant=VARIANTS.index(s.variant), **numbers)


def compile_one(arch: str, width: int, item_size: int, feature: str, dtype: str, smallest: bool = False):
    """Compile one configuration; returns (settings, compiled kernel)."""
    from attention_loom.kernels.triton.forward import forward_kernel
    from attention_loom.kernels.triton.launch import constants as known
    from attention_loom.kernels.triton.settings import precision

    s, tensors, numbers = arguments(arch, width, item_size, feature, smallest)
    constants: dict[str, Any] = known(tensors, numbers, width, precision(arch))
    kinds = {name: kind for kind, names in TYPES.items() for name in names} | dict.fromkeys(OF_INPUT, f"*{dtype}")
    there = {"q", "k", "v", "o", "lse"} | set(FEATURES[feature][0])
    there |= {"k_mean", "v_mean"} if numbers.tail else set()
    there |= {"part_o", "part_lse", "chunk"} if numbers.splits > 1 else set()
    there |= {"mix_v"} if numbers.mix else set()
    sizes = [name for name in forward_kernel.arg_names if kinds.get(name) == "fp32" or re.search(r"_s[bhn]$|_(group|n)$", name)]
    sizes += ["n_q", "n_k", "heads", "group", "tiles_q", "rows_q", "blocks_k", "unread_bytes", "frames_q", "frames_k", "distances"]
    sizes += ["split_from", "splits", "grid_y", "grid_x", "lo", "hi"]
    signature, attributes = signature_of(forward_kernel.arg_names, constants, kinds, sizes, there)
    return s, build(forward_kernel, arch, signature, constants, attributes, s.warps, s.stages)


def signature_of(names: list[str], constants: dict[str, Any], kinds: dict[str, str], sizes: list[str], there: set[str]) -> tuple[dict[str, str], dict[Any, Any]]:
    """(type of each argument, what is known of them): ``sizes`` are numbers, tensors not ``there`` become constants None."""
    signature: dict[str, str] = {}
    attributes: dict[Any, Any] = {}
    for index, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in sizes:
            signature[name] = kinds.get(name, "i32")
        elif name in there:
            signature[name] = kinds.get(name, "*i32")
        else:
            signature[name], constants[name] = "constexpr", None
        # What a launch would find: allocations aligned to 16 bytes, strides of whole rows divisible by 16.
        if signature[name].startswith("*") or re.fullmatch(r"[qkvo]_s[bhn]", name):
            attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, attributes


def compile_pass(arch: str, name: str, dtype: str = "bf16"):
    """Compile a kernel that runs before or after the attention: "permute" or "merge"."""
    from attention_loom.kernels.triton import epilogue, permute

    kernel = permute.permute_kernel if name == "permute" else epilogue.merge_kernel
    constants: dict[str, Any] = {"D": 128, "BLOCK_D": 128, "BLOCK": 128, "STEP": 32, "ORDERED": True, "POOL": True}
    if name == "merge":
        constants = {"D": 128, "BLOCK_D": 128, "BLOCK_M": 128, "Q_ORDERED": True, "AFFINE": True, "MIX": 1, "MIX_ROWS": True}
    of_input, fp32 = {"k", "v", "k_out", "v_out", "o", "residual"}, {"k_mean", "v_mean", "part_o", "part_lse", "lse", "row_scale", "mix_amount"}
    pointers = dict.fromkeys(of_input, f"*{dtype}") | dict.fromkeys(fp32, "*fp32") | {"perm": "*i32", "perm_q": "*i32", "mix_rows": "*u8"}
    signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if signature[n].startswith("*")}
    return build(kernel, arch, signature, constants, aligned, 4, 1)


def build(kernel, arch: str, signature: dict[str, str], constants: dict[str, Any], attributes: dict, warps: int, stages: int):
    """Compile one Triton kernel for an architecture that need not be there."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    amd = arch.startswith("gfx")
    target = GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32) if amd else GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    return triton.compile(ASTSource(kernel, signature, constants, attributes), target=target, options={"num_warps": warps, "num_stages": stages})


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
    expected = precision(arch) != "ieee" if item_size == 4 else True  # plain fp32 products have no matrix unit
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
    from attention_loom.kernels.triton.settings import ARCHITECTURES

    if not args.all and not args.target:
        # One of each kind of GPU and of list: enough to notice a broken kernel within seconds.
        return [
            ("sm_80", 128, 2, "segments", "bf16", False),
            ("sm_90", 128, 2, "blocks", "bf16", False),
            ("sm_90", 128, 2, "window", "bf16", False),
            ("sm_120", 128, 2, "labels", "fp16", False),
            ("gfx942", 64, 2, "frames", "fp16", False),
        ]
    rows = []
    for arch in args.target or ARCHITECTURES:
        rows += [(arch, 128, 2, feature, "bf16", False) for feature in FEATURES]
        rows += [(arch, width, 2, feature, "bf16", False) for width in (32, 64, 256) for feature in ("plain", "blocks64", "all")]
        rows += [(arch, width, 4, feature, "fp32", False) for width in (32, 64, 128, 256) for feature in ("blocks", "all")]
        rows += [(arch, 256, size, "all", "bf16" if size == 2 else "fp32", True) for size in (2, 4)]
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
    for arch in sorted({case[0] for case in cases(args)}):
        for name in ("permute", "merge"):
            compiled = compile_pass(arch, name)
            broken += compiled.metadata.shared > SHARED_LIMIT[arch]
            print(f"{arch:8}  128 bf16  {name:9} {compiled.metadata.shared:32}", flush=True)
    print(f"{broken} broken" if broken else "all within limits")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
