"""Does an object follow a commanded path? Measures of a clip against one box per frame."""

from __future__ import annotations

import torch

from .readings import NAMES, Reading

LOST = 0.5
"""Distance, in picture widths, that a frame counts in which the object is not seen: half the picture."""

COLUMNS = {
    "path_iou": "overlap (intersection over union) of the box around the object with the commanded box, 0 where it is not seen; mean over frames; 0..1, an object that fills its box 1, "
    "one of half its height and width that stays inside 0.25",
    "path_error": f"distance of the object's centre from that of the box, in picture widths, {LOST} where it is not seen; mean over frames; 0 is perfect, a point anywhere against a box anywhere about 0.4",
    "path_inside": "share of frames whose object has its centre inside the commanded box; 0..1, perfect 1",
    "path_seen": "share of frames that show the object in its own colour; 0..1, perfect 1",
}


def follow(reading: Reading, boxes: torch.Tensor) -> dict[str, float]:
    """COLUMNS of the first thing of a caption. boxes [F, 4]: (x0, y0, x1, y1) of each frame, in picture widths.

    A ValueError if there is not one box per frame.
    """
    if boxes.shape != (len(reading.frames), 4):
        raise ValueError(f"{len(reading.frames)} frames need {len(reading.frames)} boxes of 4 numbers, not a tensor of shape {list(boxes.shape)}.")
    boxes, thing = boxes.double(), reading.caption.things[0]
    seen = reading.found[0] & (reading.colour[0] == NAMES.index(thing.colour))
    around = torch.stack([_extent(mask) for mask in reading.masks[0]])
    centre, wanted = (around[:, :2] + around[:, 2:]) / 2, (boxes[:, :2] + boxes[:, 2:]) / 2
    away = (centre - wanted).norm(dim=1)
    inside = ((centre >= boxes[:, :2]) & (centre <= boxes[:, 2:])).all(1)
    return {
        "path_iou": float(torch.where(seen, _overlap(around, boxes), 0.0).mean()),
        "path_error": float(torch.where(seen, away, LOST).mean()),
        "path_inside": float((inside & seen).double().mean()),
        "path_seen": float(seen.double().mean()),
    }


def _extent(mask: torch.Tensor) -> torch.Tensor:
    """(x0, y0, x1, y1) around a mask [S, S] in picture widths, zeros for an empty one."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    if not len(rows):
        return torch.zeros(4, dtype=torch.float64)
    return torch.tensor([int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1], dtype=torch.float64) / len(mask)


def _overlap(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """IoU of boxes [F, 4] with boxes [F, 4]."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    both = (high - low).clamp(min=0).prod(1)
    total = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - both
    return both / total.clamp(min=1e-9)
