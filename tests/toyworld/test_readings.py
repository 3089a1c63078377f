"""Detection reaches its ceiling on rendered truth, stands a little blur and noise, and says "not there" of what is not there."""

import itertools
import random

import pytest
import torch
from attention_loom.toyworld import readings, traits, world
from attention_loom.toyworld.scenes import Caption, Ground, Mix, Thing, grammar, random_scene, render, tracks
from attention_loom.toyworld.scenes.layout import Scene
from attention_loom.toyworld.scenes.render import masks

MIX = Mix(two=0.4, three=0.3)


def soften(frames, sigma=0.7, noise=0.03):
    """What a good decoder may do to a picture: a slight blur and a little noise."""
    taps = torch.exp(-(torch.arange(-3, 4).float() ** 2) / (2 * sigma**2))
    taps = taps / taps.sum()
    planes = frames.permute(0, 3, 1, 2)
    planes = torch.nn.functional.pad(planes, (3, 3, 3, 3), mode="replicate")
    planes = torch.nn.functional.conv2d(planes.reshape(-1, 1, *planes.shape[-2:]), taps.view(1, 1, 1, 7))
    planes = torch.nn.functional.conv2d(planes, taps.view(1, 1, 7, 1)).reshape(len(frames), 3, *frames.shape[1:3])
    generator = torch.Generator().manual_seed(0)
    return (planes.permute(0, 2, 3, 1) + noise * torch.randn(frames.shape, generator=generator)).clamp(0, 1)


def tally(scenes, size, change=lambda frames: frames):
    """Share of right answers for each question, over scenes."""
    right, asked = {}, {}

    def note(question, values):
        values = torch.as_tensor(values, dtype=torch.float32).flatten()
        right[question], asked[question] = right.get(question, 0) + float(values.sum()), asked.get(question, 0) + len(values)

    for scene in scenes:
        things = scene.caption.things
        reading = readings.read(change(render(scene, size=size)), scene.caption)
        note("found", reading.found)
        note("colour", reading.colour == torch.tensor([[readings.NAMES.index(thing.colour)] for thing in things]))
        note("shape", reading.shape == torch.tensor([[world.SHAPES.index(thing.shape)] for thing in things]))
        note("count", reading.blobs == len(things))
        note("ground", [a == b for a, b in zip(traits.ground_names(reading), (scene.caption.ground.colour, scene.caption.ground.texture))])
        note("texture", [name == thing.texture for name, thing in zip(traits.texture_names(reading), things)])
        note("size", [name == thing.size for name, thing in zip(traits.size_names(reading), things) if thing.motion not in grammar.SCALINGS])
        note("place", [name == thing.place for name, thing in zip(traits.place_names(reading), things) if thing.place])
        for thing, *track in zip(things, reading.x, reading.y, reading.radius):
            if thing.motion:
                note("motion", [traits.motion_name(*track) == thing.motion])
            if thing.speed:
                note("speed", [traits.speed_name(*track[:2], thing.motion, scene.native) == thing.speed])
    return {question: right[question] / asked[question] for question in right if asked[question]}


@pytest.mark.parametrize(("moving", "size", "count"), [(True, 64, 30), (False, 64, 150), (False, 128, 50)])
def test_rendered_truth_reaches_the_ceiling(moving, size, count):
    rng = random.Random(size + moving)
    got = tally([random_scene(rng, moving=moving, mix=MIX) for _ in range(count)], size)
    assert len(got) == (9 if moving else 8)
    assert min(got.values()) >= 0.99, got


@pytest.mark.parametrize(("moving", "count"), [(True, 15), (False, 100)])
def test_a_little_blur_and_noise_costs_little(moving, count):
    rng = random.Random(7)
    got = tally([random_scene(rng, moving=moving, mix=MIX) for _ in range(count)], 64, soften)
    assert min(value for name, value in got.items() if name not in ("texture", "ground")) >= 0.97, got
    assert min(got["texture"], got["ground"]) >= 0.9, got


@pytest.mark.parametrize("motion", grammar.MOTIONS)
def test_every_motion_and_speed_is_told_apart(motion):
    rng = random.Random(9)
    for shape, speed in itertools.product(world.SHAPES, grammar.SPEEDS if motion in grammar.WITH_SPEED else ("",)):
        scene = random_scene(rng, Caption((Thing("white", shape, motion=motion, speed=speed),)))
        x, y, radius = tracks.follow(scene.bodies[0], 33)
        assert traits.motion_name(x, y, radius) == motion
        assert traits.speed_name(x, y, motion, 33) == (speed if motion in grammar.WITH_SPEED else "none")


def test_track_radius_mask_and_box_are_the_true_ones():
    rng = random.Random(3)
    for _ in range(8):
        scene = random_scene(rng, mix=MIX)
        reading = readings.read(render(scene), scene.caption)
        for i, body in enumerate(scene.bodies):
            x, y, radius = tracks.follow(body, 33)
            assert torch.hypot(reading.x[i] - x, reading.y[i] - y).max() < 0.8 / 64
            assert ((reading.radius[i] - radius).abs() / radius).max() < 0.12
        truth = masks(scene) > 0.5
        overlap = (reading.masks & truth).sum((2, 3)) / (reading.masks | truth).sum((2, 3))
        assert overlap.min() > 0.75 and overlap.mean() > 0.88
        assert (reading.boxes() - scene.boxes(33)).abs().max() < 1.6 / 64


def picture(*things, ground=None, seed=0):
    return render(random_scene(random.Random(seed), Caption(things, ground or Ground())))


def test_a_dropped_object_is_missed_and_a_further_one_is_counted():
    red, blue, white = Thing("red", "circle", place="left"), Thing("blue", "square", place="right"), Thing("white", "triangle", place="top")
    one = readings.read(picture(red), Caption((red, blue)))
    assert one.found[:, 0].tolist() == [True, False] and one.blobs.tolist() == [1] and one.shape[1, 0] == -1 and one.x[1].isnan().all()
    three = readings.read(picture(red, blue, white), Caption((red, blue)))
    assert three.found.all() and three.blobs.tolist() == [3]
    nothing = readings.read(torch.full((2, 64, 64, 3), 0.26), Caption((red, blue)))
    assert not nothing.found.any() and nothing.blobs.tolist() == [0, 0] and nothing.boxes().isnan().all()
    assert traits.size_names(nothing) == traits.texture_names(nothing) == traits.place_names(nothing) == ["none", "none"]


def test_colour_comes_before_shape_when_things_take_blobs():
    asked = Caption((Thing("red", "circle"), Thing("blue", "square")))
    swapped = readings.read(picture(Thing("blue", "circle"), Thing("red", "square")), asked)
    assert swapped.found.all() and swapped.colour[:, 0].tolist() == [readings.NAMES.index("red"), readings.NAMES.index("blue")]
    assert [world.SHAPES[k] for k in swapped.shape[:, 0].tolist()] == ["square", "circle"]
    green = readings.read(picture(Thing("green", "circle"), Thing("blue", "square")), asked)
    assert green.found.all() and readings.NAMES[green.colour[0, 0]] == "green"


def test_objects_of_one_colour_are_told_apart_by_shape():
    asked = Caption((Thing("red", "circle", place="left"), Thing("red", "square", place="right")))
    reading = readings.read(picture(*asked.things), asked)
    assert reading.x[0, 0] < 0.4 < 0.6 < reading.x[1, 0] and reading.blobs.tolist() == [2]


def test_another_ground_than_asked_is_read_as_it_is():
    red = Thing("red", "circle")
    reading = readings.read(picture(red, ground=Ground("blue", "checkered")), Caption((red,), Ground("green")))
    assert reading.found.all() and reading.blobs.tolist() == [1] and traits.ground_names(reading) == ("blue", "checkered")


def test_a_patch_does_not_depend_on_place_and_size():
    thing = Thing("red", "square", texture="striped")
    shown = [Scene(Caption((thing,)), (tracks.Body(thing, radius, x, 0.5, seed=4),)) for radius, x in ((0.14, 0.3), (0.19, 0.6))]
    (first, inside), (second, _) = (readings.patches(readings.read(render(scene), scene.caption)) for scene in shown)
    both = inside[0, 0]
    assert float(torch.corrcoef(torch.stack([first[0, 0][both], second[0, 0][both]]))[0, 1]) > 0.9 and both.sum() > 80


@pytest.mark.parametrize("shape", [(64, 64, 3), (2, 64, 64), (2, 64, 48, 3), (1, 16, 16, 3), (1, 64, 64, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"tensor \[F, S, S, 3\]"):
        readings.read(torch.zeros(shape), "a red circle on a grey background")
