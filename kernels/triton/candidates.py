"""What is tried on a GPU the shipped table does not know, and on what: the call that fills the store of ``tuning.py``.

Made for the start of a program or a session, not for the middle of a run.
"""

from __future__ import annotations

import torch

from ..attend import attend
from ..builders import from_bool
from ..order import raster
from ..plan import AttentionPlan
from .launch import architecture
from .settings import Settings, is_shipped, padded_width, settings
from .tuning import MOST_BYTES, MOST_CANDIDATES, tune, tuning_key

HEADS, BLOCK = 8, 128
DENSITY = 0.25
"""Of the measured call: lists of different lengths, and enough work to tell candidates apart."""


def candidates(arch: str, width: int, item_size: int) -> list[Settings]:
    """At most 12 settings for a head width and bytes per element, the table's best guess for a relative first."""
    guess = settings(arch, width, item_size)
    wide = padded_width(width) > 128 or item_size > 2
    if is_hopper(arch) and not wide:
        return [guess, *_HOPPER]
    tiles = ((64, 64), (64, 32), (32, 32)) if wide else ((128, 64), (128, 128), (64, 64), (128, 32))
    stages = (1,) if arch.startswith("gfx") else (2, 3) if not wide else (1, 2)
    more = [Settings(m, n, warps, depth) for m, n in tiles for depth in stages for warps in (4, 8)]
    return list(dict.fromkeys([guess, *more]))[:MOST_CANDIDATES]


def is_hopper(arch: str) -> bool:
    """Compute capability 9.0, or the interpreter, which rehearses its variants."""
    return arch in ("sm_90", "interpreted")


SPECIALISED = Settings(128, 128, 8, 2, "specialised persistent")
SPECIALISED_FOR_PAIRS = Settings(128, 64, 8, 4, "specialised persistent")
"""Where rules look at single pairs, which takes registers."""
_HOPPER = [
    SPECIALISED,
    Settings(128, 128, 8, 2, "specialised"),
    Settings(128, 128, 8, 3, "specialised persistent"),
    Settings(128, 64, 8, 3, "ahead"),
    Settings(128, 64, 8, 3, "engine ahead"),
    Settings(128, 128, 8, 3, "engine"),
    Settings(128, 128, 8, 2),
    Settings(128, 64, 8, 4, "ahead"),
    Settings(128, 64, 8, 4, "engine"),
    Settings(64, 64, 4, 3),
    Settings(64, 64, 4, 2, "engine ahead"),
]
"""All compile for sm_90 without spilling at head width 128, and none has its matrix instructions run one by one."""


def synthetic_tokens(width: int, item_size: int) -> int:
    """Tokens of the measured call, a multiple of the block: q, k, v, the output and the log-sum-exp fit :data:`MOST_BYTES`."""
    per_token = HEADS * (4 * width * item_size + 4)
    return min(16384, int(MOST_BYTES * 0.9) // per_token // BLOCK * BLOCK)


def measure_missing(width: int, dtype: torch.dtype, device: torch.device, *, tokens: int | None = None, **options: object) -> Settings | None:
    """Settings of the forward kernel for this GPU: measured, if neither the table nor the store has them; else what is known.

    None where the shipped table has the GPU or nothing could be measured. options: as of :func:`tune`.
    """
    arch, size = architecture(device), torch.empty((), dtype=dtype).element_size()
    if is_shipped(arch) and not options:
        return None
    tokens = synthetic_tokens(width, size) if tokens is None else tokens
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, tokens, width, dtype=dtype, device=device, generator=generator) for _ in range(3))
    order = raster(tokens, BLOCK, str(device))
    mask = torch.rand(order.blocks, order.blocks, device=device, generator=generator) < DENSITY
    plan = AttentionPlan(blocks=from_bool(mask, order, order))
    key = tuning_key("forward", arch, padded_width(width), size, BLOCK, BLOCK)
    run = {"deterministic": False, **options}
    return tune(key, candidates(arch, width, size), lambda: attend(q, k, v, plan, backend="triton"), device, **run)  # type: ignore[arg-type]
