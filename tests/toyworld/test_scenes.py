"""The second world: captions that are read back, scenes that never contradict them, pixels that depend on the seed alone."""

import dataclasses
import itertools
import math
import random
import sys

import pytest
import torch
from attention_loom.toyworld import world
from attention_loom.toyworld.scenes import Caption, Ground, Mix, Scene, Thing, grammar, layout, random_caption, random_scene, render, render_batch, textures, tracks
from attention_loom.toyworld.scenes.render import ground, masks

RED, BLUE = Thing("red", "circle", motion="right"), Thing("blue", "square", "small", motion="still")


@pytest.mark.parametrize("moving", [True, False])
def test_captions_are_read_back(moving):
    rng = random.Random(1)
    for _ in range(1500):
        caption = random_caption(rng, moving, Mix(two=0.4, three=0.4))
        text = str(caption)
        assert Caption.parse(text) == caption and caption.moving == moving
        assert set(text.split()) <= set(grammar.WORDS) and len(text.split()) <= grammar.LONGEST


def test_the_captions_of_the_plan():
    first = Caption.parse("a red circle moving right and a small blue square standing still on a green striped background")
    assert first == Caption((RED, BLUE), Ground("green", "striped"))
    second = Caption.parse("a striped red circle on the left and a large blue square on the right on a grey background")
    assert [thing.place for thing in second.things] == ["left", "right"] and second.things[0].texture == "striped" and second.things[1].size == "large"


def test_every_single_thing_is_read_back():
    for size, texture, motion, speed, place in itertools.product(grammar.SIZES, grammar.TEXTURES, ("", *grammar.MOTIONS), grammar.SPEEDS, ("", *grammar.PLACES)):
        try:
            thing = Thing("red", "circle", size, texture, motion, speed, place)
        except ValueError:
            continue
        caption = Caption((thing,))
        assert Caption.parse(str(caption)) == caption


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "a red circle moving right",
        "a red circle moving right on a pink background",
        "a red circle moving on a grey background",
        "a red dog moving right on a grey background",
        "a striped small red circle on a grey background",
        "a plain red circle on a grey background",
        "a red circle standing slowly still on a grey background",
        "A red circle moving right on a grey background",
        "a red circle moving right and on a grey background",
        "a red circle moving right on a grey striped dotted background",
        "a red circle  on a grey background",
    ],
)
def test_other_texts_are_refused_in_one_sentence(text):
    with pytest.raises(ValueError, match="is not a caption of the second toy world") as error:
        Caption.parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a green circle on a green background", "would not be seen"),
        ("a red circle and a striped red circle on a grey background", "differ in colour or shape"),
        ("a red circle moving right and a blue circle on a grey background", "every object has a motion"),
        ("a red circle on the left and a blue circle on the left on a grey background", "same place"),
        ("a large red circle growing on a grey background", "cannot be called large"),
        (" and ".join(f"a {colour} circle" for colour in ("red", "blue", "white", "yellow")) + " on a grey background", "1 to 3 objects"),
    ],
)
def test_contradictions_are_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        Caption.parse(text)


@pytest.mark.parametrize("native", [17, 33])
@pytest.mark.parametrize("motion", grammar.MOTIONS)
def test_native_clips_do_what_they_say(motion, native):
    rng = random.Random(native)
    for size, speed, shape in itertools.product(grammar.SIZES, grammar.SPEEDS, world.SHAPES):
        try:
            thing = Thing("red", shape, size, motion=motion, speed=speed)
        except ValueError:
            continue
        scene = random_scene(rng, Caption((thing,)), native)
        boxes = scene.boxes(native)
        assert boxes.min() > -1e-4 and boxes.max() < 1 + 1e-4
        x, y, radius = tracks.follow(scene.bodies[0], native, native)
        dx, dy = x[1:] - x[:-1], y[1:] - y[:-1]
        if motion in world.STRAIGHT:
            ex, ey = world.STRAIGHT[motion]
            step = tracks.WAY[speed] / (native - 1)
            assert torch.allclose(dx, torch.full_like(dx, ex * step), atol=1e-5) and torch.allclose(dy, torch.full_like(dy, ey * step), atol=1e-5)
        elif motion in world.ORBITS:
            assert ((dx[:-1] * dy[1:] - dx[1:] * dy[:-1]) * world.ORBITS[motion] > 0).all() and scene.bodies[0].swing > 0.19
        elif motion == "bouncing":
            assert not dx.any() and y.max() - y.min() > 0.2
        else:
            assert not dx.any() and not dy.any()
        assert bool((radius[1:] != radius[:-1]).all()) == (motion in grammar.SCALINGS)
        if motion in grammar.SCALINGS:
            assert (radius[-1] > radius[0]) == (motion == "growing")


@pytest.mark.parametrize("motion", grammar.MOTIONS)
def test_the_period_is_the_true_one(motion):
    scene = random_scene(random.Random(3), Caption((Thing("red", "triangle", motion=motion),)), native=31)
    body = scene.bodies[0]
    period = tracks.period(body.thing, body.radius, 31)
    if math.isinf(period):
        return
    coarse = torch.stack(tracks.follow(body, 400, 31))
    whole = next(k * period for k in range(1, 60) if abs(k * period - round(k * period)) < 0.3)
    assert whole < 380
    assert (coarse[:, round(whole) :] - coarse[:, : 400 - round(whole)]).abs().max() < 0.03


@pytest.mark.parametrize("moving", [True, False])
def test_objects_keep_apart_and_are_seen(moving):
    rng = random.Random(5)
    for _ in range(25):
        scene = random_scene(rng, moving=moving, mix=Mix(two=0.5, three=0.5))
        cover = masks(scene, size=64)
        alone = cover > 0.5
        total = alone.sum(0)
        for index, mask in enumerate(alone):
            hidden = (mask & (total > 1)).sum((1, 2)) / mask.sum((1, 2))
            assert hidden.max() < 0.12, (str(scene.caption), index)
        for i, j in itertools.combinations(range(len(alone)), 2):
            if scene.caption.things[i].colour == scene.caption.things[j].colour:
                near = torch.nn.functional.max_pool2d(alone[i].float(), 3, 1, 1) > 0
                assert not (near & alone[j]).any()


def test_objects_may_cross_if_asked():
    caption = Caption((Thing("red", "square", "large", motion="clockwise"), Thing("blue", "circle", "large", motion="counterclockwise")))
    with pytest.raises(ValueError, match="find no room"):
        random_scene(random.Random(0), caption)
    assert random_scene(random.Random(0), caption, apart=0).caption == caption


def test_placed_objects_are_there():
    rng = random.Random(6)
    for place, size in itertools.product(grammar.PLACES, grammar.SIZES):
        body = random_scene(rng, Caption((Thing("red", "triangle", size, place=place),))).bodies[0]
        nearest = min(layout.ANCHORS, key=lambda name: math.hypot(body.x - layout.ANCHORS[name][0], body.y - layout.ANCHORS[name][1]))
        assert nearest == place


def test_pixels_depend_on_the_seed_alone():
    first, again, other = (render(random_scene(random.Random(seed), Caption((RED, BLUE), Ground("green", "dotted")))) for seed in (1, 1, 2))
    assert first.shape == (33, 64, 64, 3) and torch.equal(first, again) and not torch.equal(first, other)
    assert first.min() >= 0 and first.max() <= 1


def test_a_clip_begins_like_a_longer_one_and_the_ground_stays():
    scene = random_scene(random.Random(2), Caption((RED,), Ground("brown", "checkered")))
    long = render(scene, 40)
    assert torch.equal(long[:33], render(scene))
    free = masks(scene, 40)[0].amax(0) == 0
    assert torch.equal(long[:, free], ground(scene)[free].expand(40, -1, 3))


def test_sizes_of_the_picture_agree():
    scene = random_scene(random.Random(4), Caption((Thing("red", "triangle", texture="striped"), Thing("white", "circle")), Ground("blue", "striped")))
    small, big = render(scene), render(scene, size=128)
    halved = big.reshape(1, 64, 2, 64, 2, 3).mean((2, 4))
    assert (small - halved).abs().mean() < 0.01 and (small - halved).abs().max() < 0.35
    assert render_batch([scene, scene], size=128).shape == (2, 1, 128, 128, 3)


def test_the_first_named_object_is_in_front():
    red, blue = (tracks.Body(thing, 0.15, 0.5, 0.5) for thing in (dataclasses.replace(RED, motion=""), dataclasses.replace(BLUE, motion="")))
    frame = render(Scene(Caption((red.thing, blue.thing)), (red, blue)))[0]
    assert torch.allclose(frame[32, 32], torch.tensor(world.COLOURS["red"]))


def test_a_pattern_follows_its_seed_and_its_object():
    thing = Thing("red", "circle", texture="striped")
    patches = []
    for seed, x, radius in ((7, 0.3, 0.2), (7, 0.7, 0.1), (8, 0.3, 0.2)):
        frame = render(Scene(Caption((thing,)), (tracks.Body(thing, radius, x, 0.5, seed=seed),)), size=256)[0, ..., 0]
        at = torch.linspace(-0.6, 0.6, 24) * radius
        patches.append(frame[((0.5 + at) * 256).long()][:, ((x + at) * 256).long()].flatten())
    same, different = (float(torch.corrcoef(torch.stack([patches[0], other]))[0, 1]) for other in patches[1:])
    assert same > 0.9 and different < 0.5
    with pytest.raises(ValueError, match="unknown"):
        textures.darkness(textures.pattern("furry", 0), torch.zeros(1), torch.zeros(1), 1.0)


def test_seeds_name_individuals():
    caption = Caption((Thing("red", "circle", texture="striped"), Thing("blue", "circle")))
    assert [body.seed for body in random_scene(random.Random(0), caption, seeds=(5, 9)).bodies] == [5, 9]
    with pytest.raises(ValueError, match="do not fit the 2 objects"):
        random_scene(random.Random(0), caption, seeds=(5,))


def test_the_mix_is_what_was_asked():
    rng = random.Random(0)
    counts = [len(random_caption(rng, mix=Mix(two=0.2, three=0.05)).things) for _ in range(2000)]
    assert counts.count(2) / 2000 == pytest.approx(0.2, abs=0.03) and counts.count(3) / 2000 == pytest.approx(0.05, abs=0.02)
    assert len(random_caption(rng, count=3).things) == 3
    with pytest.raises(ValueError, match="shares of captions"):
        Mix(two=0.9, three=0.3)


def test_the_sheet_is_written(tmp_path, monkeypatch):
    from attention_loom.toyworld.scenes import __main__ as command

    monkeypatch.setattr(sys, "argv", ["scenes", str(tmp_path / "sheet.png"), "--clips", "1", "--pictures", "2"])
    command.main()
    assert (tmp_path / "sheet.png").stat().st_size > 2000
