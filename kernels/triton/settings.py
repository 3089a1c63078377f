"""Launch settings: one table for all kernels, chosen by architecture and problem, never by measuring during a run.

No triton import here: the table is also read by the ahead-of-time check and by tests.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Tile of ``block_m`` queries x ``block_n`` keys, warps per program, depth of the load pipeline."""

    block_m: int
    block_n: int
    warps: int
    stages: int

    def within(self, block_q: int, block_k: int) -> Settings:
        """The same with a tile that fits the blocks of a plan."""
        warps = self.warps if block_q >= self.block_m else min(self.warps, 4)
        return Settings(min(self.block_m, block_q), min(self.block_n, block_k), warps, self.stages)


INTERPRETED = Settings(64, 64, 4, 1)

# Padded head width -> settings for 16-bit types. 128-row tiles: a 64-row tile reads each K/V byte for half the arithmetic.
_HALF = {
    "sm_80": {32: (128, 64, 4, 3), 64: (128, 64, 4, 3), 128: (128, 64, 8, 3), 256: (64, 64, 4, 2)},
    # 99 KiB of shared memory per block: a shallower pipeline and narrower wide heads.
    "sm_86": {32: (128, 64, 4, 3), 64: (128, 64, 4, 3), 128: (128, 32, 4, 2), 256: (64, 32, 4, 1)},
    "sm_90": {32: (128, 128, 8, 3), 64: (128, 128, 8, 3), 128: (128, 128, 8, 2), 256: (128, 64, 8, 2)},
    "sm_100": {32: (128, 128, 8, 3), 64: (128, 128, 8, 3), 128: (128, 128, 8, 2), 256: (128, 64, 8, 2)},
    "gfx942": {32: (128, 64, 4, 1), 64: (128, 64, 4, 1), 128: (128, 64, 4, 1), 256: (64, 32, 4, 1)},
}
# fp32: twice the bytes and three products for one, so small tiles.
_FULL = {32: (64, 64, 4, 2), 64: (64, 32, 4, 2), 128: (32, 32, 4, 1), 256: (32, 16, 4, 1)}

_ALIASES = {"sm_89": "sm_86", "sm_120": "sm_86", "sm_121": "sm_86", "sm_103": "sm_100", "sm_87": "sm_86"}


def padded_width(width: int) -> int:
    """Head width as the kernel holds it: the next power of two, 32 at least (16 is the least a matrix unit takes)."""
    return max(32, 1 << (width - 1).bit_length())


def settings(arch: str, width: int, item_size: int, rules: bool = False) -> Settings:
    """Settings for an architecture ("sm_90", "gfx942", "interpreted"), a head width and bytes per element.

    rules: the kernel looks at single pairs (tables, labels), which takes registers: more warps share a tile. An unknown architecture takes the row with the least shared memory of its vendor.
    """
    if arch == "interpreted":
        return INTERPRETED
    block_d = padded_width(width)
    if item_size > 2:
        return Settings(*_FULL[block_d])
    row = _HALF.get(_ALIASES.get(arch, arch))
    if row is None:
        row = _HALF["gfx942" if arch.startswith("gfx") else "sm_86"]
    block_m, block_n, warps, stages = row[block_d]
    if rules:
        block_n, warps = min(block_n, 64), 8
    return Settings(block_m, block_n, warps, stages)


def smallest(item_size: int) -> Settings:
    """What is tried when a launch with the regular settings fails. 64 rows are the least a Hopper matrix unit takes."""
    return Settings(64, 32, 8, 1) if item_size <= 2 else Settings(32, 16, 4, 1)


def precision(arch: str) -> str:
    """How fp32 products are formed. Three TF32 products (error about 1e-7) keep fp32 accuracy on NVIDIA's matrix units; plain
    fp32 products there run out of registers. TF32 alone is never used."""
    return "tf32x3" if arch.startswith("sm_") else "ieee"


def shipped() -> dict[str, list[tuple[int, int]]]:
    """(head width, bytes per element) combinations of the table per architecture, for the ahead-of-time check."""
    archs = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942"]
    return {arch: [(d, size) for size in (2, 4) for d in (32, 64, 128, 256)] for arch in archs}
