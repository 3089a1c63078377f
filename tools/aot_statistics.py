"""What the compiled kernels are made of, worked out on a machine without a GPU: the table in docs/performance.md.

    python tools/aot_statistics.py            print the table
    python tools/aot_statistics.py --write    put it into docs/performance.md

Every row is one kernel compiled for sm_90 with bf16 and the shipped settings, or with the other variants that can be measured on a
GPU. The loops are read from the machine code (``tools/sass.py``). The cycles are computed from the figures of an H100 SXM
below, not measured: they say what bounds a loop, not how fast it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import aot
import sass

ARCH = "sm_90"
PAGE = aot.ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- statistics: written by tools/aot_statistics.py -->", "<!-- end of statistics -->"

# One multiprocessor of an H100 SXM (its datasheet and architecture paper; clock 1.83 GHz, 132 of them).
MATRIX_FLOPS = 4096
"""bf16 operations of the matrix units per cycle."""
SCHEDULERS, EXP2, LANES = 4, 16, 32
"""Instructions issued per cycle; exponentials per cycle; threads per warp."""
CACHE_BYTES = 23.0
"""Bytes a cycle from the second-level cache: 5.5 TB/s shared by all."""
REGISTERS, SHARED, THREADS, RESERVED = 65_536, 232_448, 2048, 1024
"""Per multiprocessor; bytes of shared memory each program takes beside its own."""


@dataclass(frozen=True)
class Row:
    """One loop of one kernel. pairs: (queries, keys) of a round; products: how many of the head's width it forms per pair.

    warps: that run the loop; all_warps: of a program. groups: of warps that do not wait for one another.
    """

    kernel: str
    features: str
    width: int
    label: str
    warps: int
    registers: int
    stack: int
    shared: int
    loop: sass.Loop
    pairs: tuple[int, int]
    products: int
    all_warps: int
    groups: int = 1

    @property
    def programs(self) -> int:
        """How many fit a multiprocessor at a time."""
        threads = self.all_warps * LANES
        by_registers = REGISTERS // (-(-self.registers // 8) * 8 * threads)
        return min(by_registers, SHARED // (self.shared + RESERVED), THREADS // threads)

    @property
    def matrix_cycles(self) -> float:
        """Of the matrix units, for one round of one program."""
        return 2 * self.products * self.pairs[0] * self.pairs[1] * self.width / MATRIX_FLOPS

    @property
    def issue_cycles(self) -> float:
        """To hand out the instructions of a round of a tile in which nothing is skipped over less often than it is run."""
        return (self.loop.total - self.loop.skipped) * self.warps / SCHEDULERS

    @property
    def exp2_cycles(self) -> float:
        """Of the units that take exponentials."""
        return self.loop.kinds["exp2"] * self.warps * LANES / EXP2

    @property
    def cache_cycles(self) -> float:
        """To bring K and V (or Q and dO) of the round from the second-level cache."""
        return 2 * self.pairs[1] * self.width * 2 / CACHE_BYTES

    @property
    def bounds(self) -> tuple[float, float]:
        """Share of the matrix units' peak if everything overlaps, and if they wait for the other instructions of a round.

        Of one group: another one's products can run meanwhile.
        """
        other, least = max(self.issue_cycles, self.exp2_cycles), max(self.matrix_cycles, self.cache_cycles)
        return self.matrix_cycles / max(least, other), self.matrix_cycles / max(least, (self.matrix_cycles + other) / self.groups)


def rows() -> Iterator[Row]:
    """All of the table, compiled one after another."""
    for feature, width in (("plain", 128), ("blocks", 128), ("blocks64", 128), ("window", 128), ("bits", 128), ("frames", 128), ("labels", 128), ("blocks", 64)):
        yield from _forward(feature, width, {})
    for change in _variants():
        yield from _forward("blocks", 128, change)
    for width, keys, stages, feature in ((128, 128, 2, "whole"), (128, 128, 2, "blocks"), (128, 128, 3, "blocks"), (64, 128, 2, "blocks"), (128, 64, 4, "paired")):
        yield _specialised(width, keys, stages, feature)
    for feature in ("window", "bits", "frames", "labels"):
        yield _specialised(128, 64, 4, feature)
    for kernel in ("dq", "dkdv"):
        for feature in ("blocks", "frames"):
            yield from _backward(kernel, feature)
    yield from _int8(False)
    yield from _int8(True)


def _variants() -> list[dict[str, Any]]:
    """The other candidates for block plans of 128 at head width 128."""
    from attention_loom.kernels.triton.candidates import candidates

    names = ("block_m", "block_n", "warps", "stages", "variant")
    return [{n: getattr(s, n) for n in names} for s in candidates(ARCH, 128, 2)[1:] if "specialised" not in s.variant]


def _forward(feature: str, width: int, change: dict[str, Any]) -> Iterator[Row]:
    from attention_loom.kernels.triton import settings as module

    shipped = module.settings
    module.settings = lambda *args, **more: replace(shipped(*args, **more), **change)  # type: ignore[assignment]
    try:
        s, compiled = aot.compile_one(ARCH, width, 2, feature, "bf16")
    finally:
        module.settings = shipped
    label = f"{s.block_m}x{s.block_n}, {s.warps} warps, {s.stages} stages{'' if s.variant == 'plain' else ', ' + s.variant}"
    found = _loops(compiled)
    for n, loop in enumerate(found[: 1 if change else 2]):
        keys = s.block_n if n == 0 else min(s.block_n, module.MOST_PAIRED)
        yield _row("forward", feature if n == 0 else f"{feature}: looks at pairs", width, label, s.warps, compiled, loop, (s.block_m, keys), 2)


def _specialised(width: int, keys: int, stages: int, feature: str) -> Row:
    import aot_specialised

    compiled = aot_specialised.compile_one(width, keys, stages, feature)
    loop, label = aot_specialised.main_loop(compiled, width, keys), f"128x{keys}, 12 warps, {stages} stages"
    if feature in aot_specialised.PAIRED:  # a round that the group takes, all of which stands in a branch
        loop = replace(loop, skipped=0)
    row = _row("specialised", feature, width, label, aot_specialised.MULTIPLYING, compiled, loop, (128, keys), 2)
    return replace(row, all_warps=aot_specialised.WARPS, groups=2)


def _backward(kernel: str, feature: str) -> Iterator[Row]:
    import aot_backward

    (block_m, block_n, warps, stages), compiled = aot_backward.compile_one(kernel, ARCH, 128, 2, feature, "bf16")
    label = f"{block_m}x{block_n}, {warps} warps, {stages} stages"
    pairs = (block_m, block_n) if kernel == "dq" else (block_n, block_m)
    for n, loop in enumerate(_loops(compiled)[:2]):
        yield _row(kernel, feature if n == 0 else f"{feature}: looks at pairs", 128, label, warps, compiled, loop, pairs, 3 if kernel == "dq" else 4)


def _int8(values8: bool) -> Iterator[Row]:
    import aot_int8

    s, compiled = aot_int8.compile_one(ARCH, 128, 128, "plain", "bf16", values8)
    label = f"{s.block_m}x{s.block_n}, {s.warps} warps, {s.stages} stages"
    yield _row("int8_qk_fp8_pv" if values8 else "int8_qk", "plain", 128, label, s.warps, compiled, _loops(compiled)[0], (s.block_m, s.block_n), 2)


def _loops(compiled: Any) -> list[sass.Loop]:
    """Those with matrix instructions; a retry at the far end of the code makes a second loop of the same ones, which is left out."""
    found: list[sass.Loop] = []
    for loop in sass.loops(sass.instructions(sass.disassemble(compiled.asm["cubin"]))):
        if not any(loop.first < other.last and other.first < loop.last for other in found):
            found.append(loop)
    return found


def _row(kernel: str, features: str, width: int, label: str, warps: int, compiled: Any, loop: sass.Loop, pairs: tuple[int, int], products: int) -> Row:
    registers, stack = aot.resources(compiled, ARCH)
    return Row(kernel, features, width, label, warps, int(registers), int(stack), compiled.metadata.shared, loop, pairs, products, warps)


HEADS = (
    "kernel", "call", "D", "tile", "registers", "spilt bytes", "shared KB", "programs per SM", "instructions", "skipped", "matrix", "waits", "exp2", "beside", "fp32", "barriers",
    "matrix cycles", "issue", "exp2 cycles", "cache", "share of peak, computed",
)  # fmt: skip


def line(r: Row) -> str:
    """One Markdown row."""
    k, (best, worst) = r.loop.kinds, r.bounds
    waits = r.loop.count("WARPGROUP.DEPBAR") if r.loop.count("[HIQ]GMMA") else "-"
    cells = (
        r.kernel, r.features, r.width, r.label, r.registers, r.stack, f"{r.shared / 1024:.0f}", r.programs, r.loop.total, r.loop.skipped, k["matrix"], waits, k["exp2"], r.loop.beside if waits != "-" else "-", k["fp32"],
        r.loop.count("BAR"), f"{r.matrix_cycles:.0f}", f"{r.issue_cycles:.0f}", f"{r.exp2_cycles:.0f}", f"{r.cache_cycles:.0f}", f"{100 * worst:.0f} to {100 * best:.0f} %",
    )  # fmt: skip
    return "| " + " | ".join(str(c) for c in cells) + " |"


def table(found: list[Row]) -> str:
    """The Markdown table."""
    left = ("kernel", "call", "tile")
    return "\n".join(["| " + " | ".join(HEADS) + " |", "|" + "|".join("---" if h in left else "---:" for h in HEADS) + "|", *(line(r) for r in found)])


def write(text: str, page: Path) -> None:
    """Replace what stands between the markers of ``page``. Raises ValueError where they are missing."""
    whole = page.read_text(encoding="utf8")
    if BEGIN not in whole or END not in whole:
        raise ValueError(f"{page.name} has no place for the statistics: the lines {BEGIN!r} and {END!r} are missing")
    before, rest = whole.split(BEGIN, 1)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END, 1)[1]}", encoding="utf8")


def main() -> int:
    """Compile, print, write."""
    parser = argparse.ArgumentParser(description="Statistics of the compiled kernels, without a GPU.")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    args = parser.parse_args()
    aot.import_pack()
    import triton

    found = []
    for row in rows():
        found.append(row)
        print(line(row), flush=True)
    text = f"Triton {triton.__version__}, sm_90, bf16, kernels as of this tree.\n\n{table(found)}"
    if args.write:
        write(text, PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
