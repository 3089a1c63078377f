"""What a clip of the shapes world shows, read from its pixels: colour, shape, track, motion, freezing, repetition, identity.

`measure_clip(frames, caption)` works for any number of frames and any picture size (pictures are resized to 64 x 64). Rendered truth scores
about perfect on every measure at native length (`tests/toyworld/test_measures.py`), and each measure has a corruption that it alone must see.
A frame is read as the strength a of an object over the known grey ground: a = contrast / contrast of the nearest palette colour, 0..1.
"""

import math
from dataclasses import dataclass

import torch

from . import world

WINDOW = world.NATIVE_FRAMES  # frames of one native clip; longer clips are also read window by window
RADII = tuple(world.SIZE * share for share in (0.13, 0.14, 0.15, 0.16, 0.17, 0.18))  # candidate radii of the shape fit, pixels
TRIANGLE_OFFSET = 0.087  # centre of mass of the rendered triangle below its centre, in radii
STILL_RANGE = 6.0  # pixels: a track that stays inside this range stands still
CURVED = 2.2  # pixels: RMS distance from the best straight, uniform track above which a motion is an orbit
BROKEN = 0.45  # a frame whose shape IoU is below this shows something else
LAGS = range(12, 31)  # frames: shorter lags still overlap with the object itself, at 40 an orbit rightly returns
CHANGED, STIRRED = 0.1, 0.0015  # a pixel changed if any channel moved by this much; a frame stirred if this share of pixels changed

COLUMNS = {
    "colour": "share of frames whose object is nearest to the caption's colour; 0..1, perfect 1, wrong colour 0",
    "shape": "share of frames in which the caption's shape fits best of the three; 0..1, perfect 1, chance 1/3",
    "iou": "overlap (min over max of the strengths) with the caption's ideal shape at the object's centre, best of six radii; 0..1, truth about 0.97, another shape about 0.85 and less, smeared below 0.7",
    "broken": f"share of frames with iou below {BROKEN}; 0..1, perfect 0",
    "motion": "1 if the motion read from the first native window is the caption's, else 0",
    "motion_kept": "share of native windows (21 frames, step 20) that show the caption's motion; a straight mover may have turned back at a wall after the first; 0..1, perfect 1",
    "range": "larger side of the box around the track in the first native window, pixels; truth 30 straight, 28..38 orbit, 0 still",
    "speed": "mean step of the object's centre, pixels per frame; truth 1.5 straight, 2.2..3.0 orbit, 0 still",
    "speed_late": "the same over the last quarter of the clip",
    "turning": "turned angle over the caption's, for orbits, summed over windows around each window's fitted centre; perfect 1, standing 0, wrong way -1; nan for other motions",
    "freeze": f"share of frame pairs in which fewer than {STIRRED:.2%} of the pixels change by {CHANGED}; 0..1, perfect 0, standing still 1",
    "repetition": "highest mean similarity (cosine of the strengths) of frames 12 to 30 apart; 0..1, truth below 0.4 for moving objects, a loop about 1, standing still 1",
    "identity": "mean over frames of colour, area and shape agreement with the first native window; 0..1, perfect about 1",
    "sharpness": "mean of the 40 steepest strength differences between neighbours, relative to a rendered shape; rendered truth 0.7 to 1 (it depends on where edges fall in the pixel grid), blurred below 0.6",
}


@dataclass(frozen=True)
class Reading:
    """What was detected in F frames; lengths in pixels of a 64-pixel picture."""

    strength: torch.Tensor  # [F, 64, 64], 0..1
    x: torch.Tensor  # [F] centre of mass
    y: torch.Tensor  # [F]
    area: torch.Tensor  # [F] sum of strengths
    rgb: torch.Tensor  # [F, 3] mean colour of the strongest part
    colours: list[str]  # [F] nearest palette name
    iou: torch.Tensor  # [F, 3] best overlap with each shape of world.SHAPES


def read_frames(frames: torch.Tensor) -> Reading:
    """Detect the object in frames [F, H, W, 3] in 0..1."""
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"A clip is frames [F, H, W, 3] in 0..1, not a tensor of shape {list(frames.shape)}.")
    frames = frames.float()
    if frames.shape[1:3] != (world.SIZE, world.SIZE):
        resized = torch.nn.functional.interpolate(frames.permute(0, 3, 1, 2), (world.SIZE, world.SIZE), mode="bilinear", antialias=True)
        frames = resized.permute(0, 2, 3, 1)
    contrast = (frames - world.BACKGROUND).abs().amax(-1)
    strongest = (contrast > 0.7 * contrast.amax((1, 2), keepdim=True).clamp(min=0.05)).float()
    rgb = (frames * strongest[..., None]).sum((1, 2)) / strongest.sum((1, 2)).clamp(min=1)[:, None]
    palette = torch.tensor(list(world.COLOURS.values()))
    nearest = ((rgb[:, None] - palette) ** 2).sum(-1).argmin(1)
    full = (palette - world.BACKGROUND).abs().amax(-1)[nearest]
    # The stretch drops the ground's noise and the last antialiasing step, which would otherwise sum up over 4096 pixels.
    strength = ((contrast / full[:, None, None] - 0.1) / 0.8).clamp(0, 1)
    area = strength.sum((1, 2))
    grid = torch.arange(world.SIZE) + 0.5
    x = (strength.sum(1) * grid).sum(1) / area.clamp(min=1)
    y = (strength.sum(2) * grid).sum(1) / area.clamp(min=1)
    iou = torch.stack([_best_overlap(strength, name, x, y) for name in world.SHAPES], 1)
    names = list(world.COLOURS)
    return Reading(strength, x, y, area, rgb, [names[i] for i in nearest.tolist()], iou)


def _best_overlap(strength: torch.Tensor, shape: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Highest overlap [F] of strengths [F, 64, 64] with a shape whose centre of mass is at x, y, over the candidate radii."""
    best = torch.zeros(len(x))
    for radius in RADII:
        ideal = world.coverage(shape, x, y - (TRIANGLE_OFFSET * radius if shape == "triangle" else 0.0), radius)
        best = torch.maximum(best, torch.minimum(strength, ideal).sum((1, 2)) / torch.maximum(strength, ideal).sum((1, 2)))
    return best


def motion_class(x: torch.Tensor, y: torch.Tensor) -> str:
    """Name the motion of a track x, y [F] in pixels: small range = still; poor straight fit = orbit, by the sign of its area; else direction."""
    if _range(x, y) < STILL_RANGE:
        return "still"
    t = torch.arange(len(x)) - (len(x) - 1) / 2
    vx, vy = ((c * t).sum() / (t * t).sum() for c in (x, y))
    dx, dy = x - x.mean(), y - y.mean()
    residual = ((dx - vx * t) ** 2 + (dy - vy * t) ** 2).mean().sqrt()
    if residual > CURVED:
        swept = (dx[:-1] * dy[1:] - dx[1:] * dy[:-1]).sum()
        return "clockwise" if swept > 0 else "counterclockwise"
    if abs(vx) > abs(vy):
        return "right" if vx > 0 else "left"
    return "down" if vy > 0 else "up"


def _range(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(max(x.max() - x.min(), y.max() - y.min()))


def _windows(count: int) -> list[slice]:
    """Native windows with one shared frame; one window for a clip of at most native length."""
    return [slice(start, start + WINDOW) for start in range(0, max(1, count - WINDOW + 1), WINDOW - 1)]


def _keeps(x: torch.Tensor, y: torch.Tensor, motion: str, first: bool) -> bool:
    """Whether a window shows the motion. After the first window a straight mover only has to stay on its axis and move."""
    if first or motion not in world.STRAIGHT:
        return motion_class(x, y) == motion
    along, across = (x, y) if world.STRAIGHT[motion][0] else (y, x)
    return bool(along.max() - along.min() >= STILL_RANGE and across.max() - across.min() <= STILL_RANGE)


def _turning(x: torch.Tensor, y: torch.Tensor, motion: str) -> float:
    """Turned angle over the caption's; the angle is that of the velocity, which needs no centre."""
    if motion not in world.ORBITS or len(x) < 4:
        return math.nan
    dx, dy = x[2:] - x[:-2], y[2:] - y[:-2]  # steps over two frames: less noise
    change = torch.atan2(dx[:-1] * dy[1:] - dx[1:] * dy[:-1], dx[:-1] * dx[1:] + dy[:-1] * dy[1:])
    return float(change.sum() * world.ORBITS[motion] / (2 * math.pi / world.ORBIT_PERIOD * len(change)))


def repetition(strength: torch.Tensor) -> float:
    """Highest mean cosine similarity of strengths [F, Y, X] at a lag in LAGS that leaves at least five pairs; nan for shorter clips."""
    flat = torch.nn.functional.normalize(strength.flatten(1), dim=1)
    similarity = flat @ flat.T
    lags = [lag for lag in LAGS if len(flat) - lag >= 5]
    return max((float(similarity.diagonal(lag).mean()) for lag in lags), default=math.nan)


def freeze(frames: torch.Tensor) -> float:
    """Share of consecutive pairs of frames [F, H, W, 3] with almost no change."""
    if len(frames) < 2:
        return math.nan
    changed = (frames[1:] - frames[:-1]).abs().amax(-1) > CHANGED
    return float((changed.float().mean((1, 2)) < STIRRED).float().mean())


def _identity(reading: Reading) -> float:
    """Colour, area and shape agreement of every frame with the first native window."""
    head = slice(0, WINDOW)
    colour = 1 - ((reading.rgb - reading.rgb[head].median(0).values).norm(dim=1) / 0.5).clamp(0, 1)
    area = reading.area / reading.area[head].median().clamp(min=1)
    area = torch.minimum(area, 1 / area.clamp(min=1e-3))
    shape = int(reading.iou[head].mean(0).argmax())
    overlap = (reading.iou[:, shape] / reading.iou[head, shape].median().clamp(min=1e-3)).clamp(0, 1)
    return float((colour * area * overlap).mean())


def _sharpness(strength: torch.Tensor) -> float:
    """Mean of the 40 steepest neighbour differences per frame [F, Y, X]; 0.95 is what rendered shapes have."""
    across, along = (strength[:, :, 1:] - strength[:, :, :-1]).abs(), (strength[:, 1:] - strength[:, :-1]).abs()
    steep = torch.cat([across.flatten(1), along.flatten(1)], 1).topk(40, dim=1).values
    return float(steep.mean() / 0.95)


def measure_clip(frames: torch.Tensor, caption: str) -> dict[str, float]:
    """All measures of COLUMNS for a clip [F, H, W, 3] in 0..1 and its caption; a ValueError for a caption outside the grammar.

    Example: `measure_clip(world.render(scene), str(scene.caption))["motion"] == 1.0`.
    """
    asked = world.Caption.parse(caption)
    reading = read_frames(frames)
    x, y = reading.x, reading.y
    steps = torch.sqrt((x[1:] - x[:-1]) ** 2 + (y[1:] - y[:-1]) ** 2)
    late = steps[-max(1, len(steps) // 4) :]
    shape = world.SHAPES.index(asked.shape)
    iou = reading.iou[:, shape]
    windows = _windows(len(x))
    kept = [_keeps(x[w], y[w], asked.motion, w.start == 0) for w in windows]
    return {
        "colour": sum(name == asked.colour for name in reading.colours) / len(x),
        "shape": float((reading.iou.argmax(1) == shape).float().mean()),
        "iou": float(iou.mean()),
        "broken": float((iou < BROKEN).float().mean()),
        "motion": float(kept[0]),
        "motion_kept": sum(kept) / len(kept),
        "range": _range(x[windows[0]], y[windows[0]]),
        "speed": float(steps.mean()) if len(steps) else math.nan,
        "speed_late": float(late.mean()) if len(steps) else math.nan,
        "turning": _turning(x, y, asked.motion),
        "freeze": freeze(frames),
        "repetition": repetition(reading.strength),
        "identity": _identity(reading),
        "sharpness": _sharpness(reading.strength),
    }


def summarise(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and half width of the 95 % interval per measure over clips, leaving nan out."""
    result = {}
    for name in rows[0]:
        values = torch.tensor([row[name] for row in rows if not math.isnan(row[name])])
        if len(values):
            half = 1.96 * float(values.std()) / len(values) ** 0.5 if len(values) > 1 else math.nan
            result[name] = {"mean": round(float(values.mean()), 4), "half_interval": round(half, 4), "clips": len(values)}
    return result
