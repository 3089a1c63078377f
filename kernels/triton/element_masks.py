"""Device side of the element tests of partial blocks: which pairs of one tile are admitted.

The plain-torch statement of the same tests is ``kernels/block_mask.py``; positions are flat places ``(t*Y + y)*X + x`` in a grid
of frames of Y x X tokens, -1 for free tokens, which are admitted with everything.
"""

from __future__ import annotations

import triton
import triton.language as tl

NONE, WINDOW, BAND, FRAMES, BITS = 0, 1, 2, 3, 4
"""Kinds of test, as the kernels' constant ELEMENT."""


@triton.jit
def admitted_by_position(
    pos_i, pos_j, grid_y, grid_x, radius2, frame_scale, lo, hi, ELEMENT: tl.constexpr, INVERTED: tl.constexpr
):  # fmt: skip
    """bool [M, N] for positions pos_i [M], pos_j [N]. radius2, frame_scale: WINDOW; hi: BAND's half width; lo, hi: FRAMES."""
    inside = (pos_i >= 0)[:, None] & (pos_j >= 0)[None, :]
    i, j = tl.maximum(pos_i, 0), tl.maximum(pos_j, 0)
    per_frame = grid_y * grid_x
    frame_i, frame_j = i // per_frame, j // per_frame
    i, j = i - frame_i * per_frame, j - frame_j * per_frame
    if ELEMENT == 1:
        dy = (i // grid_x)[:, None] - (j // grid_x)[None, :]
        dx = (i % grid_x)[:, None] - (j % grid_x)[None, :]
        dt = (frame_i[:, None] - frame_j[None, :]).to(tl.float32) * frame_scale
        hit = (dy * dy + dx * dx).to(tl.float32) + dt * dt < radius2
    elif ELEMENT == 2:
        hit = tl.abs(i[:, None] - j[None, :]) <= hi
    else:
        ahead = frame_j[None, :] - frame_i[:, None]
        hit = (ahead >= lo) & (ahead <= hi)
    # A free token is admitted with everything; the complement of a plan therefore admits it with nothing.
    return (inside & (hit == 0)) if INVERTED else (hit | (inside == 0))


@triton.jit
def admitted_by_bits(words, mask_id, rows, cols, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, INVERTED: tl.constexpr):
    """bool [M, N] from packed bits: words int32 [masks, BLOCK_Q, BLOCK_K/32]; rows [M], cols [N]: places inside the block."""
    WIDTH: tl.constexpr = BLOCK_K // 32
    at = words + (mask_id.to(tl.int64) * BLOCK_Q + rows[:, None]) * WIDTH + (cols // 32)[None, :]
    hit = ((tl.load(at) >> (cols % 32)[None, :]) & 1) != 0
    return (hit == 0) if INVERTED else hit
