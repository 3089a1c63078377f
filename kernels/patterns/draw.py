"""Pictures of block plans: the block mask, and what one query reads, drawn with numpy and Pillow.

Every pattern's ``main()`` calls :func:`draw_main`; run ``python -m attention_loom.kernels.patterns.radial out.png``.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..block_mask import admitted
from ..blocks import EMPTY, FULL, PARTIAL, BlockPlan, TokenOrder
from ..plan import AttentionPlan
from .base import Moment, Pattern, Situation, Tokens

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = {EMPTY: (243, 244, 246), PARTIAL: (240, 158, 62), FULL: (37, 84, 138)}
QUERY, LINE, FREE, INK, PAPER = (206, 32, 62), (196, 201, 208), (30, 140, 90), (32, 36, 42), (255, 255, 255)
SIDE = 640  # pixels the block mask aims at
LEFT, TOP, GAP = 78, 104, 26


def situation(tokens: Tokens, *, batch: int = 1, heads: int = 2, width: int = 32, seed: int = 0, moment: Moment | None = None) -> Situation:
    """A call with made-up q, k, v whose attention is local, a little different in each head, and finds some content far away.

    Tokens carry random waves of their position, so near tokens look alike, and a few shared features. Free tokens are noise.
    """
    g = torch.Generator().manual_seed(seed)
    place = _positions(tokens)
    speed = torch.randn(batch, heads, width // 2, 3, generator=g) * torch.tensor([0.5, 0.35, 0.35])
    angle = torch.einsum("bhcd,nd->bhnc", speed, place)
    waves = torch.cat([angle.cos(), angle.sin()], -1)
    subject = torch.randn(batch, heads, 1, width, generator=g) * (torch.sin(place @ torch.tensor([0.3, 0.9, 0.6])) > 0.6).float()[:, None]

    def one() -> Tensor:
        return 1.6 * waves + subject + 0.3 * torch.randn(batch, heads, tokens.count, width, generator=g)

    q, k, v = one(), one(), one()
    return Situation(tokens, moment or Moment(), q, k, v, AttentionPlan(), width**-0.5, False)


def _positions(tokens: Tokens) -> Tensor:
    """fp32 [N, 3]: (t, y, x) of each token; free tokens, and all tokens without a grid, stand on a line."""
    out = torch.zeros(tokens.count, 3)
    out[:, 2] = torch.arange(tokens.count)
    if tokens.grid is not None:
        axes = torch.meshgrid(*(torch.arange(float(n)) for n in tokens.grid), indexing="ij")
        out[tokens.start : tokens.start + tokens.inside] = torch.stack(axes, -1).reshape(-1, 3)
    return out


def draw_main(pattern: Pattern, tokens: Tokens, argv: Sequence[str] | None = None, plan: BlockPlan | None = None) -> None:
    """What a pattern's ``main()`` does: draw its mask for ``tokens`` to the file named on the command line.

    plan: the plan to draw, for patterns whose :meth:`Pattern.blocks` needs a history; by default that of a made-up call.
    """
    parser = argparse.ArgumentParser(description=f"Draw the block mask of the pattern {pattern.name}.")
    parser.add_argument("picture", nargs="?", default=f"./{pattern.name}.png", help="PNG file to write (default: %(default)s)")
    path = parser.parse_args(sys.argv[1:] if argv is None else argv).picture
    plan = pattern.blocks(situation(tokens)) if plan is None else plan
    picture(plan, f"{pattern.label} on {describe(tokens)}").save(path)
    print(f"{path}: {pattern.label}, density {float(plan.density()):.3f}")


def describe(tokens: Tokens) -> str:
    """The tokens in words: ``6 x 12 x 20 grid + 77 free tokens``."""
    if tokens.grid is None:
        return f"{tokens.count} tokens without a grid"
    free = f" + {tokens.free} free tokens" if tokens.free else ""
    return " x ".join(map(str, tokens.grid)) + " grid" + free


def picture(plan: BlockPlan, title: str, head: int = 0) -> Image:
    """The block mask of one head as a picture: queries downwards, keys to the right, in the plan's own order.

    Grey lines part frames, a green line parts the grid from the free tokens. With a grid, a second panel shows which of
    its tokens one query in the middle reads. Waits for the device.
    """
    from PIL import Image, ImageDraw

    plan = _on_cpu(plan)
    group = int(plan.head_map[0, head % plan.head_map.shape[1]])
    mask = _mask_panel(plan, plan.kinds()[group].numpy())
    seen = None if plan.k.grid is None else _grid_panel(plan, group, max(SIDE, mask.shape[1]))
    height = TOP + mask.shape[0] + 74 + (0 if seen is None else 44 + seen[0].shape[0]) + GAP
    width = LEFT + max(mask.shape[1], 560, 0 if seen is None else seen[0].shape[1]) + GAP
    image = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((LEFT, 16), title, INK, font=_font(17))
    heads = f"head {head + 1} of {plan.head_map.shape[1]}" if plan.groups > 1 else "all heads"
    pen.text((LEFT, 42), f"density {float(plan.density()):.3f}, {plan.q.blocks} x {plan.k.blocks} blocks of {plan.k.block} tokens, {heads}", INK, font=_font(14))
    image.paste(Image.fromarray(mask), (LEFT, TOP))
    _axes(image, pen, plan, mask)
    _legend(pen, LEFT, TOP + mask.shape[0] + 44, plan)
    if seen is not None:
        y = TOP + mask.shape[0] + 74 + 12
        pen.text((LEFT, y), seen[1], INK, font=_font(14))
        image.paste(Image.fromarray(seen[0]), (LEFT, y + 26))
    return image


def _mask_panel(plan: BlockPlan, kinds: np.ndarray) -> np.ndarray:
    """uint8 [rows, columns, 3]: one square per block, lines between frames and before the free tokens."""
    cell = max(1, SIDE // max(kinds.shape))
    table = np.array([COLOURS[kind] for kind in (EMPTY, PARTIAL, FULL)], dtype=np.uint8)
    out = np.kron(table[kinds].transpose(2, 0, 1), np.ones((1, cell, cell), np.uint8)).transpose(1, 2, 0).copy()
    for axis, order in enumerate((plan.q, plan.k)):
        lines = out if axis == 0 else out.transpose(1, 0, 2)
        frame = order.frame.numpy()
        for at in np.flatnonzero(frame[1:] != frame[:-1]) + 1:
            lines[at * cell] = LINE
        if 0 < order.grid_blocks < order.blocks:
            lines[order.grid_blocks * cell : order.grid_blocks * cell + max(min(2, cell), cell // 6)] = FREE
    return out


def _grid_panel(plan: BlockPlan, group: int, width: int) -> tuple[np.ndarray, str]:
    """(picture, caption) of the grid tokens that one query in the middle of the grid reads, frame beside frame."""
    assert plan.k.grid is not None
    frames, rows, cols = plan.k.grid
    at = (frames // 2 * rows + rows // 2) * cols + cols // 2
    place = torch.nonzero(plan.q.pos == at)[0]
    keys = torch.arange(plan.k.tokens)
    read = admitted(plan, group, plan.q.perm[place].long(), keys)[0]
    pos = plan.k.pos[plan.k.inverse.long()].long()
    flat = torch.zeros(frames * rows * cols, dtype=torch.bool)
    flat[pos[pos >= 0]] = read[pos >= 0]
    colour = np.array([COLOURS[EMPTY], COLOURS[FULL]], np.uint8)[flat.numpy().astype(np.uint8)]
    most = max(1, (width + 6) // (3 * cols + 6))
    per_row = -(-frames // -(-frames // most))  # rows of equal length
    cell = max(2, min(12, ((width + 6) // per_row - 6) // cols))
    pictures = np.kron(colour.reshape(frames, rows, cols, 3).transpose(0, 3, 1, 2), np.ones((1, 1, cell, cell), np.uint8)).transpose(0, 2, 3, 1)
    out = np.full((-(-frames // per_row) * (rows * cell + 6) - 6, per_row * (cols * cell + 6) - 6, 3), 255, np.uint8)
    for f in range(frames):
        y, x = f // per_row * (rows * cell + 6), f % per_row * (cols * cell + 6)
        out[y : y + rows * cell, x : x + cols * cell] = pictures[f]
        if f == frames // 2:
            y, x, r = y + rows // 2 * cell + cell // 2, x + cols // 2 * cell + cell // 2, max(2, cell // 2)
            out[y - r : y + r + 1, x - r : x + r + 1] = QUERY
    frame = f"frame {frames // 2}, " if frames > 1 else ""
    return out, f"Grid tokens read by the red one ({frame}row {rows // 2}, column {cols // 2})" + (", frame by frame" if frames > 1 else "")


def _axes(image: Image, pen: Any, plan: BlockPlan, mask: np.ndarray) -> None:
    from PIL import Image, ImageDraw

    font, cell = _font(12), mask.shape[0] // plan.q.blocks
    for at in _ticks(plan.k):
        pen.text((LEFT + at * cell + cell // 2, TOP - 6), str(at), INK, font=font, anchor="ms")
    for at in _ticks(plan.q):
        pen.text((LEFT - 8, TOP + at * cell + cell // 2), str(at), INK, font=font, anchor="rm")
    pen.text((LEFT + mask.shape[1] // 2, TOP - 22), "key block", INK, font=_font(13), anchor="ms")
    label = Image.new("RGB", (120, 20), PAPER)
    ImageDraw.Draw(label).text((60, 15), "query block", INK, font=_font(13), anchor="ms")
    image.paste(label.rotate(90, expand=True), (14, TOP + mask.shape[0] // 2 - 60))
    pen.rectangle((LEFT - 1, TOP - 1, LEFT + mask.shape[1], TOP + mask.shape[0]), outline=LINE)


def _ticks(order: TokenOrder) -> range:
    """About eight round block numbers."""
    raw = max(1.0, order.blocks / 8)
    unit = 10 ** math.floor(math.log10(raw))
    return range(0, order.blocks, next(int(unit * m) for m in (1, 2, 5, 10) if unit * m >= raw))


def _legend(pen: Any, x: int, y: int, plan: BlockPlan) -> None:
    entries = [(COLOURS[FULL], "read whole"), (COLOURS[EMPTY], "not read" if plan.tail == "off" else "read as one mean")]
    if plan.partial is not None:
        entries.insert(1, (COLOURS[PARTIAL], "pairs tested one by one"))
    if 0 < plan.k.grid_blocks < plan.k.blocks:
        entries.append((FREE, "free tokens begin"))
    for colour, text in entries:
        pen.rectangle((x, y, x + 14, y + 14), fill=colour, outline=LINE)
        pen.text((x + 21, y + 7), text, INK, font=_font(13), anchor="lm")
        x += 44 + int(pen.textlength(text, font=_font(13)))


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _on_cpu(plan: BlockPlan) -> BlockPlan:
    moved = AttentionPlan(blocks=plan).to("cpu").blocks
    assert isinstance(moved, BlockPlan)
    return moved
