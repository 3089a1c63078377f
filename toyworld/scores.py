"""All measures of one picture or clip of the second toy world against its caption.

`score(frames, caption)` gives the numbers that COLUMNS describes. Measures that need a second picture, a mask or a commanded path are in `edits`;
`surfaces.same_individual` compares subjects of two pictures. Rendered truth is the anchor: `tests/toyworld/test_scores.py` holds every
measure to its perfect value there, and each has a corruption that it must see.
"""

import math

import torch

from . import stability, surfaces, traits
from .readings import NAMES, Reading, read
from .scenes.grammar import SCALINGS, WITH_SPEED, Caption
from .scenes.tracks import NATIVE_FRAMES
from .world import SHAPES

# name: (what and how, range, perfect, broken)
COLUMNS = {
    "presence": ("share of (thing, frame) in which the thing is seen: a blob has its colour or its shape", "0..1", "1", "0.5 if one of two is dropped"),
    "complete": ("share of frames in which every named thing is seen", "0..1", "1", "0 if one is dropped"),
    "count": ("share of frames with exactly as many blobs as named things", "0..1", "1", "0 if one is dropped, doubled or torn"),
    "colour": ("of the things seen, share with their own colour", "0..1", "1", "0 in another colour"),
    "shape": ("of the things seen, share whose shape fits best of the three", "0..1", "1", "0 in another shape"),
    "binding": ("of the things seen, share with both their colour and their shape", "0..1", "1", "0 if two swap colours"),
    "iou": ("overlap with the named shape at the thing's own area and centre; 0 where not seen", "0..1", "0.95 at 64 pixels, 0.97 at 128", "0.8 another shape, below 0.7 torn"),
    "size": ("of the things seen, share whose median radius is nearest to that of the named size; nan if they grow or shrink", "0..1", "1", "0 in another size"),
    "texture": ("of the things seen, share with the named texture", "0..1", "1", "0 plain instead of striped"),
    "placement": ("of the placed things seen, share whose centre is nearest to their place; nan without places", "0..1", "1", "0 elsewhere"),
    "motion": ("of the things seen, share whose track in the first native clip is the named motion; nan for pictures", "0..1", "1", "0 another motion"),
    "speed": ("of the straight, turning and bouncing things seen, share with the named motion at the named speed", "0..1", "1", "0 another speed or motion"),
    "ground": ("1 if most of the ground has the named colour", "0, 1", "1", "0 another colour"),
    "ground_texture": ("1 if the ground has the named texture", "0, 1", "1", "0 another texture"),
    "identity": (
        "similarity of each patterned thing's surface with its mean over the first quarter of the native clip; nan if all are plain",
        "0..1",
        "above 0.85",
        "0.6 if the pattern changes halfway",
    ),
    "leakage": ("leaked / (leaked + own area): another named thing's colour in a thing, worst pair; nan with one colour", "0..1", "0", "0.25 if a quarter is overrun"),
    "mixing": ("highest similarity of two things' patterns; nan without two patterned things", "0..1", "0.3 on average", "1 if one has the other's"),
    "dynamic": (
        "way of centres plus change of radii in a native clip, picture widths",
        "0..",
        "0 still, 0.1 growing, 0.25 to 0.54 straight, 0.45 to 1.3 bouncing, 0.7 to 2.2 turning",
        "0 frozen",
    ),
    "freeze": ("share of frame pairs without change", "0..1", "0 if anything moves, 1 if all stands", "1 frozen"),
    "repetition": ("rise of the autocorrelation over latent lags beyond that of rendered clips; nan if nothing moves", "0..2", "below 0.1", "0.5 and more looped"),
    "flicker": ("amplitude of frame-to-frame changes of ground and objects beside motion", "0..1", "below 0.01", "the amplitude"),
    "sharpness": (
        "steepest quarter of the outline's neighbour differences over the contrast",
        "0..",
        "0.5 to 1.1, 0.7 on average (edges fall on or between pixels)",
        "0.3 after a blur of 1 pixel",
    ),
}


def score(frames: torch.Tensor, caption: Caption | str, native: int = NATIVE_FRAMES) -> dict[str, float]:
    """Every measure of COLUMNS for frames [F, S, S, 3] in 0..1; nan where a measure does not apply. ValueError: see `readings.read`.

    `native` is the number of frames of a native clip, which defines speeds and true periods.
    Example: `score(render(scene), str(scene.caption))["binding"] == 1.0`.
    """
    return score_reading(read(frames, caption), native)


def score_reading(reading: Reading, native: int = NATIVE_FRAMES) -> dict[str, float]:
    """The same for a reading that is at hand."""
    clip = reading.caption.moving and len(reading.frames) > 1
    values = {**_objects(reading), **_traits(reading)}
    values["motion"], values["speed"] = _motions(reading, native) if clip else (math.nan, math.nan)
    values["identity"] = _mean([surfaces.kept_identity(reading, i, native) for i in range(len(reading.found))]) if clip else math.nan
    values["leakage"], values["mixing"] = surfaces.colour_leakage(reading), surfaces.pattern_mixing(reading)
    values["dynamic"] = stability.dynamic_degree(reading, native)
    values["freeze"] = stability.freeze(reading.frames)
    values["repetition"] = stability.repetition(reading, native)
    values["flicker"] = stability.flicker(reading)
    values["sharpness"] = stability.sharpness(reading)
    return {name: values[name] for name in COLUMNS}


def _mean(values: list[float]) -> float:
    """Mean of the values that are not nan; nan if none is left."""
    kept = [value for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan


def _objects(reading: Reading) -> dict[str, float]:
    things, found = reading.caption.things, reading.found
    seen = int(found.sum()) or math.nan
    colour = reading.colour == torch.tensor([[NAMES.index(thing.colour)] for thing in things])
    named = torch.tensor([[SHAPES.index(thing.shape)] for thing in things])
    shape = reading.shape == named
    own = reading.iou.gather(2, named[..., None].expand(*found.shape, 1))
    return {
        "presence": float(found.float().mean()),
        "complete": float(found.all(0).float().mean()),
        "count": float((reading.blobs == len(things)).float().mean()),
        "colour": int(colour.sum()) / seen,
        "shape": int(shape.sum()) / seen,
        "binding": int((colour & shape).sum()) / seen,
        "iou": float(own.mean()),
    }


def _traits(reading: Reading) -> dict[str, float]:
    things = reading.caption.things
    sizes, textures, places = traits.size_names(reading), traits.texture_names(reading), traits.place_names(reading)
    ground = traits.ground_names(reading)
    seen = reading.found.any(1).tolist()
    return {
        "size": _mean([float(got == thing.size) for got, thing, shown in zip(sizes, things, seen) if shown and thing.motion not in SCALINGS]),
        "texture": _mean([float(got == thing.texture) for got, thing, shown in zip(textures, things, seen) if shown]),
        "placement": _mean([float(got == thing.place) for got, thing, shown in zip(places, things, seen) if shown and thing.place]),
        "ground": float(ground[0] == reading.caption.ground.colour),
        "ground_texture": float(ground[1] == reading.caption.ground.texture),
    }


def _motions(reading: Reading, native: int) -> tuple[float, float]:
    motions, speeds = [], []
    for thing, found, *track in zip(reading.caption.things, reading.found, reading.x, reading.y, reading.radius):
        if not bool(found.any()):
            continue
        x, y, radius = (value[:native] for value in track)
        right = traits.motion_name(x, y, radius) == thing.motion
        motions.append(float(right))
        if thing.motion in WITH_SPEED:
            speeds.append(float(right and traits.speed_name(x, y, thing.motion, native) == thing.speed))
    return _mean(motions), _mean(speeds)
