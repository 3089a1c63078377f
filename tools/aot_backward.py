"""Compile the backward passes and the block mass for every supported GPU, on a machine that has none.

    python tools/aot_backward.py --all              every architecture, head width and type; at width 128 every feature set
    python tools/aot_backward.py --target sm_90     one architecture (may be repeated); default: a short selection

The companion of ``tools/aot.py``, with the same limits and the same table.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from aot import SHARED_LIMIT, import_pack, instruction, problems, resources

LISTED = ("items", "head_map", "bounds", "col")
ORDERED = (*LISTED, "perm_q", "perm_k")
TABLE = ("frame_q", "frame_k", "frame_table", "frame_factors")
PARTIAL = ("part_ptr", "part_col")
# Feature sets: tensors of kernels.triton.backward.Given that are there, and sizes that differ from a plain call.
FEATURES: dict[str, tuple[tuple[str, ...], dict[str, int]]] = {
    "plain": ((), {}),
    "blocks": (ORDERED, {}),
    "bias": ((*ORDERED, "key_bias", "label_k", "allow_q", "head_scale"), {}),
    "window": ((*ORDERED, *PARTIAL, "pos_q", "pos_k"), {"element": 1}),
    "bits": ((*ORDERED, *PARTIAL, "part_id", "words"), {"element": 4}),
    "frames": ((*LISTED, *TABLE, "kbar"), {"positive_only": 1}),
    "distance": ((*LISTED, "at_q", "at_k", "distance_table", "distance_factors"), {}),
    "all": ((*ORDERED, *PARTIAL, "pos_q", "pos_k", *TABLE, "kbar", "key_bias"), {"element": 1, "positive_only": 1}),
}
KERNELS = ("dq", "dkdv", "mass")
KINDS = {
    "*fp32": ("kbar", "head_scale", "key_bias", "frame_factors", "distance_factors", "lse", "dlse", "delta", "dcenter", "dbias", "out"),
    "*i16": ("frame_q", "frame_k", "col", "part_col"),
    "*u8": ("frame_table", "distance_table"),
    "*i8": ("label_k",),
    "*i64": ("allow_q",),
    "fp32": ("scale", "radius2", "frame_scale"),
}  # fmt: skip
OF_INPUT = ("q", "k", "v", "o", "do", "dq", "dk", "dv")
POINTERS = {*OF_INPUT, "dlse", "lse", "delta", "dcenter", "dbias", "out", "perm_q", "valid_q", "valid_k"}


def compile_one(kernel: str, arch: str, width: int, item_size: int, feature: str, dtype: str, careful: bool = False):
    """Compile one kernel; returns ((tile, warps, stages), compiled kernel)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function, constants, absent, settings = (mass if kernel == "mass" else backward)(kernel, arch, width, item_size, feature, careful)
    kinds = {name: kind for kind, names in KINDS.items() for name in names} | dict.fromkeys(OF_INPUT, f"*{dtype}")
    signature: dict[str, Any] = {}
    attributes: dict[Any, Any] = {}
    for index, name in enumerate(function.arg_names):
        if name in constants or name in absent:
            constants.setdefault(name, None)
            signature[name] = "constexpr"
        elif name in POINTERS or name in FEATURES["all"][0] or name in {n for names, _ in FEATURES.values() for n in names}:
            signature[name] = kinds.get(name, "*i32")
        else:
            signature[name] = kinds.get(name, "i32")
        # What a launch would find: allocations aligned to 16 bytes, strides of whole rows divisible by 16.
        if signature[name].startswith("*") or re.fullmatch(r"(d?[qkvo]|do)_s[bhn]", name):
            attributes[(index,)] = [["tt.divisibility", 16]]
    amd = arch.startswith("gfx")
    target = GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32) if amd else GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    options = {"num_warps": settings[2], "num_stages": settings[3]}
    return settings, triton.compile(ASTSource(function, signature, constants, attributes), target=target, options=options)


def backward(kernel: str, arch: str, width: int, item_size: int, feature: str, careful: bool):
    """(kernel, constants, names of absent arguments, (BLOCK_M, BLOCK_N, warps, stages)) of one of the two passes."""
    import torch
    from attention_loom.kernels.triton.backward import Given, Sizes, backward_settings, constants
    from attention_loom.kernels.triton.backward_dkdv import dkdv_kernel
    from attention_loom.kernels.triton.backward_dq import dq_kernel
    from attention_loom.kernels.triton.settings import precision

    names, more = FEATURES[feature]
    s = backward_settings(arch, width, item_size, feature not in ("plain", "blocks"), careful)
    sizes = Sizes(s.block_m, s.block_n, s.warps, s.stages, 128, 128, 4, 4, **more)
    given = Given(**{name: torch.empty(1, 4, 4 if "frame_table" in names else 2, device="meta") for name in names})
    known = constants(width, given, sizes, precision(arch), upcast=False)
    function = dq_kernel if kernel == "dq" else dkdv_kernel
    known |= {"DLSE": True} if kernel == "dq" else {}
    absent = set(Given().__dict__) - set(names) | (set() if "kbar" in names else {"dcenter"}) | (set() if "key_bias" in names else {"dbias"})
    return function, known, absent, (s.block_m, s.block_n, s.warps, s.stages)


def mass(kernel: str, arch: str, width: int, item_size: int, feature: str, careful: bool):
    """The same for the block mass; feature: "plain" reads the log-sum-exp, any other finds its own and has a bias."""
    from attention_loom.kernels.triton.mass import mass_kernel, mass_tile
    from attention_loom.kernels.triton.settings import padded_width, precision

    own = feature != "plain"
    block_m, block_n, warps, stages = mass_tile(128, 128, width, item_size)
    constants = {
        "D": width, "BLOCK_D": padded_width(width), "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_Q": 128, "BLOCK_K": 128,
        "OWN_LSE": own, "BIAS": own, "UPCAST": False, "PRECISION": precision(arch),
    }  # fmt: skip
    return mass_kernel, constants, {"lse"} if own else {"key_bias"}, (block_m, block_n, warps, stages)


def cases(args: argparse.Namespace) -> list[tuple[str, str, int, int, str, str, bool]]:
    """(kernel, arch, width, bytes per element, feature set, dtype, smallest settings) to build."""
    if not args.all and not args.target:
        short = [("sm_80", "dq", "window"), ("sm_90", "dkdv", "bits"), ("gfx942", "dkdv", "blocks"), ("sm_100", "mass", "blocks")]
        return [(kernel, arch, 128, 2, feature, "bf16", False) for arch, kernel, feature in short]
    rows: list[tuple[str, str, int, int, str, str, bool]] = []
    for arch in args.target or SHARED_LIMIT:
        for width in (32, 64, 128, 256):
            for size, dtype in ((2, "bf16"), (4, "fp32")):
                features = FEATURES if width == 128 and size == 2 else ("blocks", "all")
                rows += [(kernel, arch, width, size, feature, dtype, False) for kernel in ("dq", "dkdv") for feature in features]
                rows += [("mass", arch, width, size, feature, dtype, False) for feature in ("plain", "blocks")]
        rows += [(kernel, arch, 256, 2, "all", "fp16", True) for kernel in ("dq", "dkdv")]
        rows += [(kernel, arch, 72, 2, "frames", "fp16", False) for kernel in ("dq", "dkdv")]
    return rows


def main() -> int:
    """Build the chosen cases, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description="Compile the backward and block-mass kernels without a GPU.")
    parser.add_argument("--all", action="store_true", help="every architecture and configuration")
    parser.add_argument("--target", action="append", choices=sorted(SHARED_LIMIT), help="only this architecture")
    parser.add_argument("--no-resources", action="store_true", help="do not ask for registers and spills (quicker)")
    args = parser.parse_args()
    import_pack()

    broken = 0
    head = f"{'kernel':6} {'target':8} {'D':>4} {'type':5} {'features':9} {'tile':>8} {'warps':>5} {'stages':>6} {'shared':>8} {'regs':>5} {'spill':>6}"
    print(f"{head} {'matrix':12} {'s':>5}  verdict", flush=True)
    for kernel, arch, width, size, feature, dtype, careful in cases(args):
        began = time.perf_counter()
        label = f"{kernel:6} {arch:8} {width:4} {dtype:5} {feature:9}"
        try:
            (block_m, block_n, warps, stages), compiled = compile_one(kernel, arch, width, size, feature, dtype, careful)
        except Exception as error:  # a compiler may throw anything; the row says what
            broken += 1
            print(f"{label} did not compile: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}", flush=True)
            continue
        registers, spill = ("", "") if args.no_resources else resources(compiled, arch)
        found = problems(arch, size, compiled)
        if min(block_m, block_n) < 64 and "mma.sync" in compiled.asm.get("ptx", ""):
            found = [sentence for sentence in found if not sentence.startswith("no ")]  # too small for the newest units
        broken += bool(found)
        tile = f"{block_m}x{block_n}" + ("*" if careful else "")
        took = time.perf_counter() - began
        row = f"{label} {tile:>8} {warps:5} {stages:6} {compiled.metadata.shared:8} {registers:>5} {spill:>6}"
        print(f"{row} {instruction(arch, size, compiled):12} {took:5.1f}  {'; '.join(found) or 'ok'}", flush=True)
    print(f"{broken} broken" if broken else "all within limits")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
