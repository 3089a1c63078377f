"""Names for what a reading shows: size, texture, place, motion and speed of a thing, and the ground's colour and texture."""

import math

import torch
from torch.nn.functional import avg_pool2d

from .readings import GROUND_NAMES, NAMES, Reading, narrow, widen
from .scenes.grammar import GROUND_TEXTURES, GROUNDS, PLACES, SIZES, SPEEDS, WITH_SPEED
from .scenes.layout import ANCHORS
from .scenes.render import GROUND_LIFT
from .scenes.tracks import HOP, RADII, TURN, WAY
from .world import ORBITS, STRAIGHT

PLAIN = 0.16  # spread of the darkness of a surface below which it is plain; full stripes have 0.5
COHERENT = 0.5  # of gradient directions: above it a pattern has one direction (stripes), below it many (dots, checks)
STILL = 0.09  # picture widths: a track that stays inside this range stands still
SCALED = 1.5  # ratio of the last to the first radius from which a thing grew
CURVED = 0.03  # picture widths: RMS distance from the best straight, uniform track above which a motion turns or hops
SPARSE = 0.4  # share of light ground between that of dots (0.3) and that of checks (0.5)
STEADY = 0.7  # share of frames a thing must be seen in for its motion to be read


def size_names(reading: Reading) -> list[str]:
    """Size of every thing: the size whose radius is nearest to the median one, by ratio; "none" where it was never found."""
    small, middle, large = (math.sqrt(low * high) for low, high in (RADII[name] for name in SIZES))
    names = []
    for radius in reading.radius.nanmedian(1).values.tolist():
        names.append("none" if math.isnan(radius) else SIZES[(radius > math.sqrt(small * middle)) + (radius > math.sqrt(middle * large))])
    return names


def texture_names(reading: Reading) -> list[str]:
    """Texture of every thing: plain if the surface's darkness hardly varies, striped if its gradients share one direction, else dotted."""
    names = []
    for dark, inside in zip(*reading.surfaces):
        seen = inside.flatten(1).any(1)
        if not bool(seen.any()):
            names.append("none")
            continue
        spread = float(_spread(dark[seen], inside[seen]).median())
        names.append("plain" if spread < PLAIN else "striped" if coherence(dark[seen], inside[seen]) > COHERENT else "dotted")
    return names


def _spread(dark: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Standard deviation [F] of values [F, Y, X] over the positions inside."""
    share = inside / inside.sum((1, 2), keepdim=True)
    mean = (dark * share).sum((1, 2), keepdim=True)
    return ((dark - mean).square() * share).sum((1, 2)).sqrt()


def coherence(values: torch.Tensor, inside: torch.Tensor) -> float:
    """How far the gradients of values [F, Y, X] share one direction, over all frames: 0 none, 1 all (from the eigenvalues of the structure tensor)."""
    whole = inside[:, 1:-1, 1:-1] & inside[:, :-2, 1:-1] & inside[:, 2:, 1:-1] & inside[:, 1:-1, :-2] & inside[:, 1:-1, 2:]
    gx = (values[:, 1:-1, 2:] - values[:, 1:-1, :-2]) * whole
    gy = (values[:, 2:, 1:-1] - values[:, :-2, 1:-1]) * whole
    xx, yy, xy = ((gx * gx).sum((1, 2)), (gy * gy).sum((1, 2)), (gx * gy).sum((1, 2)))
    return float((torch.sqrt((xx - yy).square() + 4 * xy.square()).sum()) / (xx + yy).sum().clamp(min=1e-6))


def place_names(reading: Reading) -> list[str]:
    """Nearest of the five places to every thing's median centre; "none" where it was never found."""
    centres = zip(reading.x.nanmedian(1).values.tolist(), reading.y.nanmedian(1).values.tolist())
    return ["none" if math.isnan(x) else min(PLACES, key=lambda name: math.hypot(x - ANCHORS[name][0], y - ANCHORS[name][1])) for x, y in centres]


def motion_name(x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor) -> str:
    """Motion of a track in picture widths, [F] each with nan where nothing was found; "none" for a thing that is seen in too few frames.

    In this order: grows or shrinks; stands; its track is not a straight uniform one and stays in one column (bounces) or does not (orbits, by
    the sign of the swept area); else the direction of the fitted velocity.
    """
    seen = ~x.isnan()
    if int(seen.sum()) < max(3, STEADY * len(x)):
        return "none"
    t, x, y, radius = torch.arange(len(x))[seen].float(), x[seen], y[seen], radius[seen]
    ends = max(1, len(t) // 8)
    growth = float(radius[-ends:].median() / radius[:ends].median())
    if growth > SCALED or growth < 1 / SCALED:
        return "growing" if growth > 1 else "shrinking"
    wide, high = (float(c.max() - c.min()) for c in (x, y))
    if max(wide, high) < STILL:
        return "still"
    (vx, dx), (vy, dy) = _line(t, x), _line(t, y)
    if float((dx.square() + dy.square()).mean().sqrt()) > CURVED:
        if wide < STILL:
            return "bouncing"
        ox, oy = x - x.mean(), y - y.mean()
        return "clockwise" if float((ox[:-1] * oy[1:] - ox[1:] * oy[:-1]).sum()) > 0 else "counterclockwise"
    if abs(vx) > abs(vy):
        return "right" if vx > 0 else "left"
    return "down" if vy > 0 else "up"


def _line(t: torch.Tensor, c: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Slope of the best straight line through c(t) and the distances from it."""
    t = t - t.mean()
    slope = float((c * t).sum() / (t * t).sum())
    return slope, c - c.mean() - slope * t


def speed_name(x: torch.Tensor, y: torch.Tensor, motion: str, native: int) -> str:
    """Which of SPEEDS a track [F] of a known motion has; "none" for motions without speeds and things not seen enough.

    Straight: fitted way per native clip. Orbit: turning of the velocity. Bounce: the period whose parabolas fit the heights best.
    """
    seen = ~x.isnan()
    if motion not in WITH_SPEED or int(seen.sum()) < max(5, STEADY * len(x)):
        return "none"
    t, x, y = torch.arange(len(x))[seen].float(), x[seen], y[seen]
    if motion in STRAIGHT:
        way = math.hypot(_line(t, x)[0], _line(t, y)[0]) * (native - 1)
        return min(SPEEDS, key=lambda name: abs(math.log(max(way, 1e-6) / WAY[name])))
    if motion in ORBITS:
        dx, dy = x[2:] - x[:-2], y[2:] - y[:-2]  # steps over two frames: less noise
        turned = torch.atan2(dx[:-1] * dy[1:] - dx[1:] * dy[:-1], dx[:-1] * dx[1:] + dy[:-1] * dy[1:])
        rate = abs(float(turned.sum())) / float(t[-2] - t[1]) / (2 * math.pi)  # turns per frame
        return min(SPEEDS, key=lambda name: abs(math.log(max(rate * native, 1e-6) * TURN[name])))
    return min(SPEEDS, key=lambda name: _misfit(t, y, HOP[name] * native))


def _misfit(t: torch.Tensor, y: torch.Tensor, period: float) -> float:
    """Least mean squared distance of heights y(t) from hops of a period, over 48 phases, with free height and floor."""
    phase = (torch.arange(48)[:, None] / 48 + t / period) % 1
    hop = phase * (1 - phase)
    hop, y = hop - hop.mean(1, keepdim=True), y - y.mean()
    scale = (hop * y).sum(1, keepdim=True) / hop.square().sum(1, keepdim=True)
    return float((y - scale * hop).square().mean(1).min())


def free_ground(reading: Reading, margin: int = 5) -> torch.Tensor:
    """Pixels [F, S, S] that belong to no object colour, nor lie within `margin` // 2 pixels of one (specks of less than 3 x 3 pixels aside)."""
    objects = (reading.classes < len(NAMES)).float()
    return widen(torch.maximum(widen(narrow(objects, 3), 3), reading.masks.any(0).float()), margin) == 0


def _smooth(values: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """Mean of the free values [F, S, S] among each pixel and its eight neighbours: a ground's pattern is faint, noise is not."""
    weight = avg_pool2d(free.float()[:, None], 3, 1, 1)
    return (avg_pool2d((values * free)[:, None], 3, 1, 1) / weight.clamp(min=1e-6))[:, 0]


def ground_names(reading: Reading) -> tuple[str, str]:
    """Colour of the ground (most of its pixels) and texture (by the share of light pixels and the coherence of gradients)."""
    free = free_ground(reading)
    if not bool(free.any()):
        return "none", "none"
    colour = GROUND_NAMES[int(torch.bincount(reading.ground[free], minlength=len(GROUND_NAMES)).argmax())]
    dark = torch.tensor(GROUNDS[colour])
    way = dark * (GROUND_LIFT[0] - 1) + GROUND_LIFT[1]
    light = _smooth(((reading.frames - dark) @ way) / (way @ way), free)
    values = light[free]
    if float(values.std()) < PLAIN:
        return colour, GROUND_TEXTURES[0]
    if coherence(light, free) > COHERENT:
        return colour, "striped"
    return colour, "dotted" if float((values > 0.5).float().mean()) < SPARSE else "checkered"
