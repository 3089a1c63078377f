"""Every measure has its perfect value on rendered truth and sees the corruption it exists for, above all others."""

import dataclasses
import math
import random
from pathlib import Path

import pytest
import torch
from attention_loom.toyworld import edits, readings, scores, surfaces, world
from attention_loom.toyworld.scenes import Caption, Ground, Mix, Thing, grammar, random_scene, render
from attention_loom.toyworld.scenes.layout import Scene
from attention_loom.toyworld.scenes.render import ground, masks
from attention_loom.toyworld.scenes.tracks import Body

RED = Thing("red", "circle", "large", "striped", "right")
BLUE = Thing("blue", "square", "", "dotted", "still")
BODIES = (Body(RED, 0.19, 0.25, 0.3, seed=3), Body(BLUE, 0.14, 0.6, 0.75, seed=4))
SCENE = Scene(Caption((RED, BLUE), Ground("green", "dotted")), BODIES, 5)
TRUTH = render(SCENE)
LIMITS = {  # lowest and highest value a rendered clip or picture may have
    **dict.fromkeys(("presence", "complete", "count", "colour", "shape", "binding", "size", "texture", "placement", "motion", "speed"), (1.0, 1.0)),
    **dict.fromkeys(("ground", "ground_texture"), (1.0, 1.0)),
    "iou": (0.85, 1.0),
    "identity": (0.85, 1.0),
    "leakage": (0.0, 0.01),
    "mixing": (0.0, 1.0),
    "dynamic": (0.0, 2.6),
    "freeze": (0.0, 1.0),
    "repetition": (0.0, 0.1),
    "flicker": (0.0, 0.01),
    "sharpness": (0.5, 1.2),
}


def changed(scene=SCENE, frames=None, **what):
    """Render a scene with other things than its caption says: `red=dict(...)`, `blue=dict(...)` replace fields of thing or body."""
    bodies = []
    for body, name in zip(scene.bodies, ("red", "blue")):
        fields = what.get(name, {})
        thing = dataclasses.replace(body.thing, **{key: value for key, value in fields.items() if hasattr(body.thing, key)})
        bodies.append(dataclasses.replace(body, thing=thing, **{key: value for key, value in fields.items() if not hasattr(thing, key)}))
    return render(dataclasses.replace(scene, caption=Caption(tuple(body.thing for body in bodies), what.get("ground", scene.caption.ground)), bodies=tuple(bodies)), frames)


def blurred(frames, sigma=1.0):
    taps = torch.exp(-(torch.arange(-5, 6).float() ** 2) / (2 * sigma**2))
    planes = torch.nn.functional.pad(frames.permute(0, 3, 1, 2).reshape(-1, 1, 64, 64), (5, 5, 5, 5), mode="replicate")
    for shape in ((1, 1, 1, 11), (1, 1, 11, 1)):
        planes = torch.nn.functional.conv2d(planes, (taps / taps.sum()).view(shape))
    return planes.reshape(len(frames), 3, 64, 64).permute(0, 2, 3, 1)


def leaking(frames):
    """The lower third of the red circle turns blue."""
    x, y, radius = (64 * value for value in (0.25 + 0.39 / 32 * torch.arange(33), torch.full((33,), 0.3), torch.full((33,), 0.19)))
    grid = torch.arange(64) + 0.5
    low = (masks(SCENE)[0] > 0.5) & (grid[None, :, None] > (y + 0.35 * radius)[:, None, None])
    return torch.where(low[..., None], torch.tensor(world.COLOURS["blue"]), frames)


def only_red():
    return render(Scene(Caption((RED,), SCENE.caption.ground), BODIES[:1], 5))


def doubled():
    body = Body(Thing("white", "triangle", "small", motion="still"), 0.1, 0.15, 0.85)
    return render(Scene(Caption((RED, BLUE, body.thing), SCENE.caption.ground), (*BODIES, body), 5))


def flickering():
    return TRUTH + 0.06 * torch.tensor([1.0, -1.0] * 17)[:33, None, None, None]


# corruption: (frames, {measure: (low, high)}); measures not named must stay within LIMITS if they are in ALONE.
CORRUPTIONS = {
    "an object is dropped": (only_red, {"presence": (0.5, 0.5), "complete": (0, 0), "count": (0, 0)}),
    "an object too many": (doubled, {"count": (0, 0)}),
    "colours are swapped": (lambda: changed(red={"colour": "blue"}, blue={"colour": "red"}), {"binding": (0, 0), "shape": (0, 0)}),
    "one colour is wrong": (lambda: changed(red={"colour": "white"}), {"colour": (0.5, 0.5), "binding": (0.5, 0.5)}),
    "one shape is wrong": (lambda: changed(red={"shape": "triangle"}), {"shape": (0.5, 0.5), "binding": (0.5, 0.5)}),
    "one size is wrong": (lambda: changed(red={"radius": 0.1}), {"size": (0.5, 0.5)}),
    "one texture is wrong": (lambda: changed(red={"texture": "dotted"}), {"texture": (0.5, 0.5)}),
    "one motion is wrong": (lambda: changed(red={"motion": "left", "x": 0.7}), {"motion": (0.5, 0.5), "speed": (0, 0)}),
    "one speed is wrong": (lambda: changed(red={"speed": "quickly", "x": 0.22}), {"speed": (0, 0)}),
    "the ground has another colour": (lambda: changed(ground=Ground("brown", "dotted")), {"ground": (0, 0)}),
    "the ground has another texture": (lambda: changed(ground=Ground("green", "checkered")), {"ground_texture": (0, 0)}),
    "the pattern changes halfway": (lambda: torch.cat([TRUTH[:16], changed(red={"seed": 90}, blue={"seed": 91})[16:]]), {"identity": (0, 0.72)}),
    "colour leaks": (lambda: leaking(TRUTH), {"leakage": (0.15, 0.5)}),
    "frozen": (lambda: TRUTH[:1].repeat(33, 1, 1, 1), {"freeze": (1, 1), "dynamic": (0, 0.001), "motion": (0.5, 0.5), "repetition": None}),
    "looped": (lambda: TRUTH[torch.arange(33) % 16], {"repetition": (0.5, 2), "motion": (0.5, 0.5)}),
    "flicker": (flickering, {"flicker": (0.05, 0.07)}),
    "blurred": (lambda: blurred(TRUTH), {"sharpness": (0.1, 0.42)}),
}
# Measures that nothing but their own corruption may move.
ALONE = ("presence", "count", "size", "ground", "freeze", "repetition", "flicker", "leakage")
ACCEPTED = {
    ("colours are swapped", "size"),  # by colour the things have swapped their sizes too
    ("colour leaks", "count"),  # a large leak is a blob of its own, and what is left is smaller
    ("colour leaks", "size"),
}


@pytest.mark.parametrize(("moving", "frames", "size", "count"), [(True, None, 64, 10), (True, 97, 64, 4), (False, None, 64, 40), (False, None, 128, 15)])
def test_truth_is_perfect(moving, frames, size, count):
    rng = random.Random(11)
    for _ in range(count):
        scene = random_scene(rng, moving=moving, mix=Mix(two=0.4, three=0.3))
        got = scores.score(render(scene, frames, size), str(scene.caption))
        assert list(got) == list(scores.COLUMNS) == [name for name in scores.COLUMNS if name in LIMITS]
        for name, (low, high) in LIMITS.items():
            slack = 0.04 if frames and low == high else 0.0  # beyond the native clip objects may meet
            assert math.isnan(got[name]) or low - slack <= got[name] <= high, (name, got[name], str(scene.caption))
        stands = all(thing.motion == "still" for thing in scene.caption.things)
        if moving:
            assert (got["freeze"] == 1 and got["dynamic"] < 0.01) if stands else (got["freeze"] < 0.1 and got["dynamic"] > 0.03)


@pytest.fixture(scope="module")
def truth():
    return scores.score(TRUTH, SCENE.caption)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_is_seen_by_its_measure(name, truth):
    make, seen = CORRUPTIONS[name]
    got = scores.score(make(), SCENE.caption)
    for measure, limits in seen.items():
        if limits is None:
            assert math.isnan(got[measure])
            continue
        assert limits[0] <= got[measure] <= limits[1], (measure, got[measure])
        assert not limits[0] <= truth[measure] <= limits[1], (measure, truth[measure])
    for measure in ALONE:
        if measure not in seen and (name, measure) not in ACCEPTED:
            if math.isnan(got[measure]):
                continue
            low, high = (0.0, 0.25) if measure in ("freeze", "repetition") else LIMITS[measure]
            assert low <= got[measure] <= high, (measure, got[measure])


def test_a_copied_pattern_is_mixing():
    asked = Caption((Thing("red", "circle", "large", "striped"), Thing("blue", "circle", "large", "striped")))
    bodies = [tuple(Body(thing, 0.19, x, 0.5, seed=seed) for thing, x, seed in zip(asked.things, (0.25, 0.75), seeds)) for seeds in ((1, 2), (1, 1))]
    own, copied = (scores.score(render(Scene(asked, pair)), asked)["mixing"] for pair in bodies)
    assert copied > 0.9 and own < 0.6


def test_placement_is_judged_by_the_nearest_place():
    left, right = (Caption((Thing("red", "circle", place=place),)) for place in ("left", "right"))
    frames = render(random_scene(random.Random(0), left))
    assert scores.score(frames, left)["placement"] == 1 and scores.score(frames, right)["placement"] == 0
    assert math.isnan(scores.score(frames, "a red circle on a grey background")["placement"])


def test_the_same_individual_is_known_in_another_picture():
    rng = random.Random(5)
    same, other = [], []
    for seed in range(30):
        thing = Thing("red", rng.choice(world.SHAPES), "large", rng.choice(("striped", "dotted")))
        captions = [Caption((dataclasses.replace(thing, size=size, place=place),), Ground(colour)) for size, place, colour in (("large", "left", "grey"), ("", "right", "blue"))]
        first, again, stranger = (
            readings.read(render(random_scene(rng, caption, seeds=(number,))), caption) for caption, number in ((captions[0], seed), (captions[1], seed), (captions[1], seed + 500))
        )
        same.append(surfaces.same_individual(first, 0, again, 0))
        other.append(surfaces.same_individual(first, 0, stranger, 0))
    assert min(same) > 0.8 and sum(other) / 30 < 0.5 and sum(a > b for a, b in zip(same, other)) >= 28
    square = readings.read(changed(red={"shape": "square"})[:1], SCENE.caption)
    assert surfaces.same_individual(readings.read(TRUTH[:1], SCENE.caption), 0, square, 0) == 0
    plain = readings.read(changed(red={"texture": "plain"})[:1], SCENE.caption)
    assert math.isnan(surfaces.same_individual(plain, 0, plain, 0))


def test_a_path_is_followed_or_not():
    reading = readings.read(TRUTH, SCENE.caption)
    boxes = SCENE.boxes(33)
    for thing in (0, 1):
        overlap, error = edits.follow_path(reading, thing, boxes[thing])
        assert overlap > 0.85 and error < 0.01
    overlap, error = edits.follow_path(reading, 0, boxes[0] + 0.1)
    assert overlap < 0.6 and error == pytest.approx(0.1 * 2**0.5, abs=0.01)
    missing = edits.follow_path(readings.read(only_red(), SCENE.caption), 1, boxes[1])
    assert missing[0] == 0 and math.isnan(missing[1])
    with pytest.raises(ValueError, match="one for each frame"):
        edits.follow_path(reading, 0, boxes[0][:5])


def dragged(ghost=0.0):
    """Before, after and both masks of a drag of the blue square; `ghost` of it stays behind."""
    before, after = (changed(blue={"x": x})[0] for x in (0.6, 0.25))
    old, new = (masks(dataclasses.replace(SCENE, bodies=(BODIES[0], dataclasses.replace(BODIES[1], x=x))), 1)[1, 0] > 0 for x in (0.6, 0.25))
    return before, torch.where(old[..., None], after + ghost * (before - after), after), old, new


@pytest.mark.parametrize("ghost", [0.0, 0.3, 1.0])
def test_the_old_place_of_a_drag_shows_what_is_left(ghost):
    before, after, old, new = dragged(ghost)
    assert edits.old_place_trace(before, after, old, new) == pytest.approx(ghost, abs=0.06)
    assert edits.background_change(before, after, old | new) == 0
    assert math.isnan(edits.old_place_trace(before, after, old, old))


def test_changes_of_the_ground_are_seen():
    before, after, old, new = dragged()
    assert edits.background_change(before, after + 0.1, old | new) == pytest.approx(0.1, abs=1e-5)
    assert edits.background_change(before, after, old) > 0.01  # the new place is not excused
    assert math.isnan(edits.background_change(before, after, torch.ones(64, 64)))
    with pytest.raises(ValueError, match="one shape"):
        edits.background_change(before, after[:32], old)


def test_a_slow_drift_is_no_flicker():
    brighter = TRUTH + torch.linspace(0, 0.08, 33)[:, None, None, None]
    reading = readings.read(brighter, SCENE.caption)
    assert edits.drift(readings.read(TRUTH, SCENE.caption)) < 0.002 and edits.drift(reading) == pytest.approx(0.04, abs=0.008)
    assert scores.score_reading(reading)["flicker"] < 0.01
    other = TRUTH.clone()
    free = masks(SCENE).amax(0) == 0
    other[16:][free[16:]] = ground(dataclasses.replace(SCENE, ground_seed=6)).expand(17, -1, -1, -1)[free[16:]]
    assert edits.drift(readings.read(other, SCENE.caption)) > 0.01


def test_short_and_empty_clips_have_no_number_rather_than_a_wrong_one():
    got = scores.score(TRUTH[:1], SCENE.caption)
    assert all(math.isnan(got[name]) for name in ("motion", "speed", "identity", "dynamic", "freeze", "repetition", "flicker")) and got["binding"] == 1
    empty = scores.score(torch.full((33, 64, 64, 3), 0.26), SCENE.caption)
    assert empty["presence"] == empty["iou"] == empty["count"] == 0
    assert all(math.isnan(empty[name]) for name in ("colour", "binding", "size", "texture", "motion", "leakage", "dynamic", "sharpness"))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="not a caption of the second toy world"):
        scores.score(TRUTH, "a red circle moving right")
    with pytest.raises(ValueError, match=r"tensor \[F, S, S, 3\]"):
        scores.score(TRUTH[0], SCENE.caption)


def test_every_measure_is_described():
    assert set(scores.COLUMNS) == set(LIMITS) and all(len(row) == 4 and all(row) for row in scores.COLUMNS.values())
    page = (Path(scores.__file__).parent.parent / "docs" / "toyworld.md").read_text()
    assert all(f"| `{name}` | {' | '.join(row)} |" in page for name, row in scores.COLUMNS.items())
    assert set(grammar.MOTIONS) == {"right", "left", "up", "down", "still", "clockwise", "counterclockwise", "bouncing", "growing", "shrinking"}
