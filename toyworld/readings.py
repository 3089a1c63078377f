"""What a picture or clip of the second toy world shows, read from its pixels given the caption.

Every pixel is given to the nearest of the six object colours and of the ground that is seen (a colour is a segment from its shaded to its full
value, so patterns do not matter). Connected areas of one colour are blobs. A blob is compared with each shape *at its own area*, so no size is
assumed. The caption's things take the blobs that fit them best, by colour first and then by shape; a blob that has neither is nobody's.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import grid_sample

from .scenes.grammar import GROUNDS, Caption
from .scenes.render import GROUND_LIFT, SHADE
from .world import COLOURS, SHAPES, coverage

LEAST = 0.008  # area of a blob, as a share of the picture: half of the smallest object
AREA = {"circle": 3.1416, "square": 2.9584, "triangle": 2.2865}  # of a shape with radius 1
SINK = {"circle": 0.0, "square": 0.0, "triangle": 0.087}  # centre of mass below the centre, in radii
PATCH, SPAN, INSET = 24, 1.1, 0.76  # a surface patch: samples per side, half its width in radii, share of the shape that is looked at
FLAT = np.zeros((3, 3, 3), dtype=bool)
FLAT[1] = ndimage.generate_binary_structure(2, 1)  # for ndimage.label: connected within a frame, not over time
NAMES, GROUND_NAMES = list(COLOURS), list(GROUNDS)


@dataclass(frozen=True)
class Blob:
    """One area of one colour in one frame. Lengths are picture widths."""

    frame: int
    colour: int  # index in NAMES
    mask: torch.Tensor  # [S, S] bool, holes filled
    iou: torch.Tensor  # [3] overlap with each of SHAPES at the blob's own area and centre
    x: float  # centre of the best shape
    y: float
    radius: float  # of the best shape


@dataclass(frozen=True)
class Reading:
    """What F frames of S x S pixels show of N things. Where `found` is false, x, y and radius are nan, the rest is zero."""

    caption: Caption
    frames: torch.Tensor  # [F, S, S, 3]
    classes: torch.Tensor  # [F, S, S] index in NAMES, or len(NAMES) for ground
    ground: torch.Tensor  # [F, S, S] index of the nearest ground in GROUND_NAMES, wherever it is
    found: torch.Tensor  # [N, F] bool: a blob has the thing's colour or shape
    colour: torch.Tensor  # [N, F] index in NAMES, -1 if not found
    iou: torch.Tensor  # [N, F, 3]
    x: torch.Tensor  # [N, F]
    y: torch.Tensor
    radius: torch.Tensor
    masks: torch.Tensor  # [N, F, S, S] bool, holes filled
    blobs: torch.Tensor  # [F] how many blobs there are, somebody's or nobody's

    @property
    def shape(self) -> torch.Tensor:
        """Best fitting shape [N, F] as an index in SHAPES, -1 if not found."""
        return torch.where(self.found, self.iou.argmax(-1), -1)

    @cached_property
    def surfaces(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Darkness and inside of every thing's surface in its own coordinates, [N, F, 24, 24] each: see `patches`."""
        return patches(self)

    def boxes(self) -> torch.Tensor:
        """Bounding boxes [N, F, 4] (left, top, right, bottom) of the masks in picture widths; nan if not found."""
        size = self.masks.shape[-1]
        result = torch.full((*self.found.shape, 4), float("nan"))
        for i, f in self.found.nonzero().tolist():
            rows, columns = self.masks[i, f].any(1).nonzero(), self.masks[i, f].any(0).nonzero()
            result[i, f] = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / size
        return result


def read(frames: torch.Tensor, caption: Caption | str) -> Reading:
    """Detect the caption's things in frames [F, S, S, 3] in 0..1, S at least 32; a ValueError for other shapes and captions.

    Example: `read(render(scene), scene.caption).found.all()`.
    """
    caption = Caption.parse(caption) if isinstance(caption, str) else caption
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.shape[1] != frames.shape[2] or frames.shape[1] < 32:
        raise ValueError(f"Frames are a tensor [F, S, S, 3] in 0..1 with S of 32 or more, not one of shape {list(frames.shape)}.")
    frames = frames.detach().float().cpu().clamp(0, 1)
    classes, grounds = classify(frames)
    blobs = find_blobs(classes)
    count, total, size = len(caption.things), len(frames), frames.shape[1]
    found = torch.zeros(count, total, dtype=torch.bool)
    colour = torch.full((count, total), -1)
    iou = torch.zeros(count, total, 3)
    x, y, radius = (torch.full((count, total), float("nan")) for _ in range(3))
    masks = torch.zeros(count, total, size, size, dtype=torch.bool)
    for frame in range(total):
        for i, blob in _match(caption, [blob for blob in blobs if blob.frame == frame]):
            found[i, frame], colour[i, frame], iou[i, frame], masks[i, frame] = True, blob.colour, blob.iou, blob.mask
            x[i, frame], y[i, frame], radius[i, frame] = blob.x, blob.y, blob.radius
    number = torch.bincount(torch.tensor([blob.frame for blob in blobs], dtype=torch.long), minlength=total)
    return Reading(caption, frames, classes, grounds, found, colour, iou, x, y, radius, masks, number)


def classify(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Class of each pixel (object colour or ground) and nearest ground of each pixel, both [F, S, S].

    Which ground is seen is decided for the whole clip by most pixels; only that one competes with the object colours.
    """
    full = torch.tensor(list(COLOURS.values()))
    objects = torch.stack([_distance(frames, SHADE * end, end) for end in full], -1)
    dark = torch.tensor(list(GROUNDS.values()))
    grounds = torch.stack([_distance(frames, start, start * GROUND_LIFT[0] + GROUND_LIFT[1]) for start in dark], -1)
    nearest = grounds.argmin(-1)
    votes = torch.bincount(nearest[grounds.amin(-1) < objects.amin(-1)], minlength=len(GROUNDS))
    seen = grounds[..., int(votes.argmax())]
    return torch.cat([objects, seen[..., None]], -1).argmin(-1), nearest


def _distance(frames: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Squared distance [F, S, S] of pixels to the segment of colours from start to end."""
    way = end - start
    offset = frames - start
    along = ((offset @ way) / (way @ way)).clamp(0, 1)
    return (offset - along[..., None] * way).square().sum(-1)


def find_blobs(classes: torch.Tensor) -> list[Blob]:
    """All connected areas of one object colour, at least LEAST large, in class maps [F, S, S].

    Areas are found after an opening, which removes the fringes that antialiasing and blur leave between two colours.
    """
    size = classes.shape[-1]
    reach = 2 * round(size / 64) + 1 if size > 64 else 3
    found: list[tuple[int, int]] = []
    masks: list[np.ndarray] = []
    for colour in range(len(NAMES)):
        whole = (classes == colour).float()
        core = widen(narrow(whole, reach), reach) > 0
        if not bool(core.any()):
            continue
        labels, _ = ndimage.label(core.numpy(), FLAT)
        for label, where in enumerate(ndimage.find_objects(labels), 1):
            frame = where[0].start
            piece = torch.from_numpy(labels[frame] == label)
            if int(piece.sum()) < LEAST * size * size:
                continue
            near = (widen(piece[None].float(), reach)[0] > 0) & (whole[frame] > 0)
            found.append((frame, colour))
            masks.append(ndimage.binary_fill_holes(near.numpy()))
    if not found:
        return []
    stack = torch.from_numpy(np.stack(masks))
    iou, x, y, radius = fit(stack)
    best = iou.argmax(1, keepdim=True)
    picked = [value.gather(1, best)[:, 0].tolist() for value in (x, y, radius)]
    return [Blob(*found[i], stack[i], iou[i], *(value[i] for value in picked)) for i in range(len(found))]


def fit(masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compare masks [B, S, S] with every shape of the same area and centre of mass: overlap, x, y, radius, each [B, 3].

    Overlap = sum of minima over sum of maxima of mask and antialiased shape; lengths in picture widths.
    """
    size = masks.shape[-1]
    weight = masks.float()
    area = weight.sum((1, 2))
    grid = torch.arange(size) + 0.5
    middle, height = (weight.sum(1) * grid).sum(1) / area, (weight.sum(2) * grid).sum(1) / area
    columns = []
    for shape in SHAPES:
        radius = (area / AREA[shape]).sqrt()
        y = height - SINK[shape] * radius
        ideal = coverage(shape, middle, y, radius, size)
        overlap = torch.minimum(weight, ideal).sum((1, 2)) / torch.maximum(weight, ideal).sum((1, 2))
        columns.append(torch.stack([overlap, middle / size, y / size, radius / size]))
    iou, x, y, radius = torch.stack(columns, -1)
    return iou, x, y, radius


def _match(caption: Caption, blobs: list[Blob]) -> list[tuple[int, Blob]]:
    """Which thing takes which blob of one frame: colour counts most, then the overlap with the thing's shape, then the area."""
    if not blobs:
        return []
    score = np.zeros((len(caption.things), len(blobs)))
    for i, thing in enumerate(caption.things):
        shape = SHAPES.index(thing.shape)
        for j, blob in enumerate(blobs):
            alike = blob.colour == NAMES.index(thing.colour)
            if alike or int(blob.iou.argmax()) == shape:
                score[i, j] = 2.0 * alike + float(blob.iou[shape]) + blob.radius
    rows, columns = linear_sum_assignment(score, maximize=True)
    return [(i, blobs[j]) for i, j in zip(rows, columns) if score[i, j] > 0]


def patches(reading: Reading) -> tuple[torch.Tensor, torch.Tensor]:
    """Surfaces of the things in their own coordinates: darkness [N, F, 24, 24] (0 full colour, 1 shaded) and what of it lies inside [N, F, 24, 24].

    The window reaches SPAN radii to every side. Nothing lies inside where the thing was not found.
    """
    things, total = reading.found.shape
    at = (torch.arange(PATCH) + 0.5) / PATCH * 2 * SPAN - SPAN
    inside = torch.stack([coverage(shape, torch.full((1,), PATCH / 2), torch.full((1,), PATCH / 2), INSET * PATCH / 2 / SPAN, PATCH)[0] > 0.5 for shape in SHAPES])
    dark = torch.zeros(things, total, PATCH, PATCH)
    for i in range(things):
        colours = torch.tensor([COLOURS[NAMES[c]] for c in reading.colour[i].clamp(min=0).tolist()])
        brightness = (reading.frames * colours[:, None, None]).sum(-1) / colours.square().sum(1)[:, None, None]
        x, y, radius = (value[i].nan_to_num(0.0)[:, None, None] for value in (reading.x, reading.y, reading.radius))
        places = torch.stack([(x + radius * at).expand(-1, PATCH, -1), (y + radius * at[:, None]).expand(-1, -1, PATCH)], -1)
        dark[i] = (1 - grid_sample(brightness[:, None], places * 2 - 1, align_corners=False)[:, 0]) / (1 - SHADE)
    return dark, inside[reading.shape.clamp(min=0)] & reading.found[..., None, None]


def widen(mask: torch.Tensor, reach: int) -> torch.Tensor:
    """Dilation of masks [..., S, S] (float) by a square of odd width `reach`.

    Shifted maxima, first along rows, then along columns: many times faster on a CPU than pooling.
    """
    for axis in (-1, -2):
        wide, size = mask.clone(), mask.shape[axis]
        for step in range(1, reach // 2 + 1):
            for to, source in ((0, step), (step, 0)):
                part = wide.narrow(axis, to, size - step)
                torch.maximum(part, mask.narrow(axis, source, size - step), out=part)
        mask = wide
    return mask


def narrow(mask: torch.Tensor, reach: int) -> torch.Tensor:
    """Erosion of masks [..., S, S] (float) by a square of odd width `reach`; the picture's border does not erode."""
    return -widen(-mask, reach)
