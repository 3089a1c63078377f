"""Launch settings: one table for all kernels, chosen by architecture and problem, never by measuring during a run.

The key is architecture, bytes per element, head width bucket, block sizes of the plan and the flags below; never the number
of tokens, the batch or the heads, so a result does not depend on them. Density would be part of the key (measured settings
carry it, ``tuning.py``) where a row differed by it; no shipped one does. No row was measured: each follows from what the
tile takes in registers and shared memory, and the ahead-of-time check holds it to that.

No triton import here: the table is also read by the ahead-of-time check and by tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

FLAGS = ("bias", "modulation", "partial", "segments", "tail")
"""What a call may have beside its block lists: key bias; tables or labels; an element test; extra segments; a pooled tail."""
PER_PAIR = frozenset({"modulation", "partial"})
"""Flags that look at single pairs, which takes registers."""
MOST_PAIRED = 64
"""Most keys per step of the loops that look at single pairs; the other loops of the same kernel take the tile's."""
VARIANTS = ("plain", "ahead", "engine", "engine ahead", "specialised", "specialised persistent")
"""Ways to run the inner loops, all with the same result to the bit or nearly so (the order of additions is the same).

ahead: the product of the next tile is begun before the softmax of this one, so that matrix unit and exponentials overlap within
a warp; takes registers for one more tile of logits. engine: tiles of K and V come by the copy engine of NVIDIA architectures
from 9.0 on (tensor descriptors) instead of by addresses each thread works out. specialised: a kernel of its own, for 9.0 only, in
which one warp brings tiles and two warp groups multiply (``specialised.py``); calls it does not know take "plain". persistent: as
many programs as there are multiprocessors, each of which takes one item after the other.
"""


@dataclass(frozen=True)
class Settings:
    """Tile of ``block_m`` queries x ``block_n`` keys, warps per program, depth of the load pipeline, way of :data:`VARIANTS`."""

    block_m: int
    block_n: int
    warps: int
    stages: int
    variant: str = "plain"

    def within(self, block_q: int, block_k: int) -> Settings:
        """The same with a tile that fits the blocks of a plan; the specialised kernel can have two rows of 64 in its tile."""
        if "specialised" in self.variant and block_q == 64:
            return replace(self, block_n=min(self.block_n, block_k))
        warps = self.warps if block_q >= self.block_m else min(self.warps, 4)
        return replace(self, block_m=min(self.block_m, block_q), block_n=min(self.block_n, block_k), warps=warps)

    def on(self, arch: str) -> Settings:
        """The same without what ``arch`` does not have."""
        if "specialised" in self.variant:
            return self if has_wgmma(arch) else replace(self, variant="plain")
        if "engine" not in self.variant or has_engine(arch):
            return self
        return replace(self, variant="ahead" if "ahead" in self.variant else "plain")


def has_engine(arch: str) -> bool:
    """Whether tiles can come by the copy engine; the interpreter stands in for it."""
    return arch == "interpreted" or (arch.startswith("sm_") and int(arch.removeprefix("sm_")) >= 90)


def has_wgmma(arch: str) -> bool:
    """Whether ``arch`` has the matrix instruction of the specialised kernel: Hopper's, which no later one has."""
    return arch == "sm_90"


INTERPRETED = Settings(64, 64, 4, 1)

# Padded head width -> settings for 16-bit types. 128-row tiles: a 64-row tile reads each K/V byte for half the arithmetic.
_HALF = {
    "sm_80": {32: (128, 64, 4, 3), 64: (128, 64, 4, 3), 128: (128, 64, 8, 3), 256: (64, 64, 4, 2)},
    # 99 KiB of shared memory per block: a shallower pipeline and narrower wide heads.
    "sm_86": {32: (128, 64, 4, 3), 64: (128, 64, 4, 3), 128: (128, 32, 4, 2), 256: (64, 32, 4, 1)},
    # Three stages: with two, a tile is asked for where it is needed, and nothing hides the way from the cache.
    "sm_90": {32: (128, 128, 8, 3), 64: (128, 128, 8, 3), 128: (128, 128, 8, 3), 256: (128, 64, 8, 2)},
    "sm_100": {32: (128, 128, 8, 3), 64: (128, 128, 8, 3), 128: (128, 128, 8, 2), 256: (128, 64, 8, 2)},
    "gfx942": {32: (128, 64, 4, 1), 64: (128, 64, 4, 1), 128: (128, 64, 4, 1), 256: (64, 32, 4, 1)},
    # 32 lanes and 64 KiB: a warp holds half of what one of gfx942 does.
    "gfx1100": {32: (128, 32, 4, 1), 64: (128, 32, 4, 1), 128: (128, 32, 8, 1), 256: (64, 16, 8, 1)},
}
# The same where the plan's query blocks are 64 long: one warp group, keys in steps of 64, what is left of the shared memory
# for a deeper pipeline.
_HALF_64 = {
    "sm_80": {32: (64, 64, 4, 3), 64: (64, 64, 4, 3), 128: (64, 64, 4, 3), 256: (64, 64, 4, 2)},
    "sm_86": {32: (64, 64, 4, 3), 64: (64, 64, 4, 3), 128: (64, 32, 4, 2), 256: (64, 32, 4, 1)},
    "sm_90": {32: (64, 64, 4, 3), 64: (64, 64, 4, 3), 128: (64, 64, 4, 3), 256: (64, 64, 4, 2)},
    "sm_100": {32: (64, 64, 4, 3), 64: (64, 64, 4, 3), 128: (64, 64, 4, 3), 256: (64, 64, 4, 2)},
    "gfx942": {32: (64, 64, 4, 1), 64: (64, 64, 4, 1), 128: (64, 64, 4, 1), 256: (64, 32, 4, 1)},
    "gfx1100": {32: (64, 32, 4, 1), 64: (64, 32, 4, 1), 128: (64, 32, 4, 1), 256: (64, 16, 8, 1)},
}
_PAIRS_AHEAD = ("sm_90",)
"""Where tiles with rules for pairs leave too few registers: the compiler then waits after every matrix instruction, unless the
logits it works on are those of the tile before (docs/performance.md, waits)."""
# fp32: twice the bytes and three products for one, so small tiles.
_FULL = {32: (64, 64, 4, 2), 64: (64, 32, 4, 2), 128: (32, 32, 4, 1), 256: (32, 16, 4, 1)}
# No matrix unit there: plain products, and operands in registers.
_FULL_RDNA = {32: (32, 32, 8, 1), 64: (32, 32, 8, 1), 128: (32, 16, 8, 1), 256: (16, 16, 8, 1)}

_ALIASES = {
    "sm_87": "sm_86", "sm_89": "sm_86", "sm_120": "sm_86", "sm_121": "sm_86", "sm_103": "sm_100", "gfx1101": "gfx1100",
    "gfx1102": "gfx1100", "gfx1151": "gfx1100", "gfx1200": "gfx1100", "gfx1201": "gfx1100",
}  # fmt: skip
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx1100", "gfx1200")
"""What the ahead-of-time check compiles for."""


def padded_width(width: int) -> int:
    """Head width as the kernel holds it: the next power of two, 32 at least (16 is the least a matrix unit takes)."""
    return max(32, 1 << (width - 1).bit_length())


def is_shipped(arch: str) -> bool:
    """Whether the table has a row of its own for ``arch``; others take that of a relative, or what was measured."""
    return arch == "interpreted" or _ALIASES.get(arch, arch) in _HALF


def settings(arch: str, width: int, item_size: int, flags: Iterable[str] = (), block_q: int = 128, block_k: int = 128) -> Settings:
    """Settings for an architecture ("sm_90", "gfx942", "interpreted"), a head width and bytes per element.

    flags: of :data:`FLAGS`. block_q, block_k: block sizes of the plan, which the tile divides. An unknown architecture takes
    the row with the least shared memory of its vendor.
    """
    if arch == "interpreted":
        return INTERPRETED.within(block_q, block_k)
    block_d = padded_width(width)
    row = _ALIASES.get(arch, arch)
    if row not in _HALF:
        row = "gfx1100" if arch.startswith(("gfx10", "gfx11", "gfx12")) else "gfx942" if arch.startswith("gfx") else "sm_86"
    if item_size > 2:
        return Settings(*(_FULL_RDNA if row == "gfx1100" else _FULL)[block_d]).within(block_q, block_k)
    s = Settings(*(_HALF if block_q > 64 else _HALF_64)[row][block_d])
    if PER_PAIR & frozenset(flags):
        # Factors, masks and positions of a tile of pairs: more warps share it.
        s = replace(s, block_n=min(s.block_n, MOST_PAIRED), warps=8 if s.block_m > 64 or block_d > 64 else s.warps)
        if row in _PAIRS_AHEAD and s.block_m > 64 and block_d <= 128:
            s = replace(s, variant="ahead")
    return s.within(block_q, block_k) if block_q > 64 else replace(s, block_m=min(s.block_m, block_q), block_n=min(s.block_n, block_k))


def smallest(item_size: int) -> Settings:
    """What is tried when a launch with the regular settings fails. 64 rows are the least a Hopper matrix unit takes."""
    return Settings(64, 32, 8, 1) if item_size <= 2 else Settings(32, 16, 4, 1)


def precision(arch: str) -> str:
    """How fp32 products are formed. Three TF32 products (error about 1e-7) keep fp32 accuracy on NVIDIA's matrix units; plain
    fp32 products there run out of registers. TF32 alone is never used."""
    return "tf32x3" if arch.startswith("sm_") else "ieee"
