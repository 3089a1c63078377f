"""The host's own sparse kernels (comfy-kitchen), for the plans they compute exactly.

Read in release 0.2.40. Two of its functions are sparse attention:

* ``na3d`` (and ``na2d``): a window of a fixed number of positions on each axis of the grid. Away from causal axes the window
  shifts inward at the borders, where the tests of a block plan cut it off, so discs, bands and tiles never agree with it at
  the borders. What does agree: an axis the window covers, and a causal one. That leaves plans in which a frame reads itself
  and so many frames before it.
* ``sol_attn``: 64-token blocks, but it scores and chooses them itself, and rounds to eight bits. It takes no list.

Everything else is refused with a reason. The package is imported when a plan first fits.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .block_mask import admitted
from .blocks import EMPTY, FULL, BlockPlan, Frames
from .caching import with_part

if TYPE_CHECKING:
    from .backends import Call

FUSED_WIDTHS = frozenset({16, 32, 48, 64})
"""Head widths of its compiled window kernel."""
NOT_WINDOWS = "the plan is not a window of whole frames up to the query's own, the one form its kernels share with block plans"


def available(call: Call) -> str | None:
    """Why comfy-kitchen cannot run ``call``; None if it can."""
    blocks = call.plan.blocks
    if blocks is None:
        return "it is taken for plans of blocks only"
    if not isinstance(blocks, BlockPlan):
        return "the pattern lists blocks during the call, and its kernels take no lists"
    if not installed():
        return "comfy-kitchen is not installed"
    if call.q.shape[1] != call.k.shape[1]:
        return "its window kernel needs as many key heads as query heads"
    if call.q.device.type == "cpu" and not call.explicit:
        return "on a CPU it is slow and runs only when asked for by name"
    if call.q.device.type == "cuda" and (call.q.dtype == torch.float32 or call.q.shape[-1] not in FUSED_WIDTHS):
        return f"its window kernel takes half precision and head widths {', '.join(map(str, sorted(FUSED_WIDTHS)))}"
    return None if frames_read(blocks) else NOT_WINDOWS


def installed() -> bool:
    """Whether comfy-kitchen can be imported."""
    return importlib.util.find_spec("comfy_kitchen") is not None


def frames_read(plan: BlockPlan) -> int:
    """How many frames every query reads, its own and those before it, where that is all the plan says; else 0.

    Waits for the device the first time a plan is met. Plans that patterns make during a call do not come here.
    """
    return with_part(plan, "frames read", lambda: _frames_read(plan))


def _frames_read(plan: BlockPlan) -> int:
    grid = plan.q.grid
    if grid is None or plan.k is not plan.q or plan.tail != "off" or plan.q.tokens != grid[0] * grid[1] * grid[2]:
        return 0
    if plan.groups != 1 or bool((plan.q.frame < 0).any()):
        return 0
    read = _whole_frame_pairs(plan)
    if read is None:
        return 0
    frames = int(read[-1].sum())
    back = torch.arange(grid[0])[:, None] - torch.arange(grid[0])[None, :]
    return frames if torch.equal(read, (back >= 0) & (back < frames)) else 0


def _whole_frame_pairs(plan: BlockPlan) -> Tensor | None:
    """bool [T, T]: which frames are read by which; None if some pair of frames is read in part."""
    assert plan.q.grid is not None
    frame = plan.q.frame.long().cpu()
    kinds = plan.kinds()[0].cpu()
    first = (plan.q.perm.view(plan.q.blocks, -1)[:, 0]).long()
    read = kinds == FULL
    if plan.mask is not None:
        if not isinstance(plan.mask, Frames):
            return None
        # such a test says the same of all pairs of two blocks within frames: one of them is asked
        read = (kinds != EMPTY) & admitted(plan, 0, first, first).cpu()
    t = plan.q.grid[0]
    total, hit = (torch.zeros(t, t, dtype=torch.long) for _ in range(2))
    at = (frame[:, None].expand_as(read), frame[None, :].expand_as(read))
    total.index_put_(at, torch.ones((), dtype=torch.long), accumulate=True)
    hit.index_put_(at, read.long(), accumulate=True)
    return None if bool(((hit > 0) & (hit < total)).any()) else hit > 0


def run(call: Call, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan) -> Tensor:
    """o [B,H,N,D] of a plan for which :func:`frames_read` is not 0."""
    import comfy_kitchen

    assert plan.q.grid is not None
    t, y, x = plan.q.grid
    # all tokens are on the grid, in its order: whatever the plan's own order, [B, N, H, D] is the grid
    on_grid = [z.transpose(1, 2).unflatten(1, (t, y, x)).contiguous() for z in (q, k, v)]
    o = comfy_kitchen.na3d(*on_grid, [frames_read(plan), y, x], [True, False, False], call.scale)
    return o.flatten(1, 3).transpose(1, 2)
