"""Every measure is perfect on rendered truth and sees the corruption it exists for."""

import math
import random

import pytest
import torch
from attention_loom.toyworld import measures, world


def clip(colour="red", shape="circle", motion="right", frames=world.NATIVE_FRAMES, seed=0):
    caption = world.Caption(colour, shape, motion)
    return world.render(world.random_scene(random.Random(seed), caption), frames), str(caption)


@pytest.mark.parametrize("motion", world.MOTIONS)
@pytest.mark.parametrize("frames", [world.NATIVE_FRAMES, 81])
def test_truth_is_perfect(motion, frames):
    rng = random.Random(world.MOTIONS.index(motion) + frames)
    for shape in world.SHAPES:
        scene = world.random_scene(rng, world.Caption(rng.choice(list(world.COLOURS)), shape, motion))
        got = measures.measure_clip(world.render(scene, frames), str(scene.caption))
        assert set(got) == set(measures.COLUMNS)
        assert got["colour"] == got["shape"] == got["motion"] == got["motion_kept"] == 1 and got["broken"] == 0
        assert got["iou"] > 0.92 and got["identity"] > 0.95 and 0.7 < got["sharpness"] < 1.1
        if motion == "still":
            assert got["freeze"] == 1 and got["speed"] < 0.01 and got["range"] < 0.01 and got["repetition"] > 0.99
        else:
            assert got["freeze"] < 0.05 and got["repetition"] < 0.4 and 1.4 < got["speed"] < 3.1
        if motion in world.ORBITS:
            assert got["turning"] == pytest.approx(1, abs=0.02)


def test_colours_and_shapes_are_told_apart():
    rng = random.Random(4)
    for colour in world.COLOURS:
        for shape in world.SHAPES:
            scene = world.random_scene(rng, world.Caption(colour, shape, "up"))
            reading = measures.read_frames(world.render(scene, 5))
            assert reading.colours == [colour] * 5
            assert (reading.iou.argmax(1) == world.SHAPES.index(shape)).all()


def test_wrong_words_score_zero():
    frames, _ = clip("red", "circle", "right")
    assert measures.measure_clip(frames, "a blue circle moving right")["colour"] == 0
    assert measures.measure_clip(frames, "a red triangle moving right")["shape"] == 0
    for motion in set(world.MOTIONS) - {"right"}:
        assert measures.measure_clip(frames, str(world.Caption("red", "circle", motion)))["motion"] == 0


def test_frozen_clip():
    frames, caption = clip(motion="clockwise")
    frozen = torch.cat([frames[:11], frames[10:11].repeat(10, 1, 1, 1)])
    got = measures.measure_clip(frozen, caption)
    assert got["freeze"] == pytest.approx(0.5) and got["speed_late"] < 0.1


def test_looped_clip_repeats():
    frames, caption = clip(motion="right")
    looped = torch.cat([frames[:15]] * 4)
    assert measures.measure_clip(looped, caption)["repetition"] > 0.95
    assert measures.measure_clip(clip(motion="right", frames=61)[0], caption)["repetition"] < 0.4


def test_reversed_orbit_turns_the_other_way():
    frames, caption = clip(motion="clockwise")
    got = measures.measure_clip(frames.flip(0), caption)
    assert got["turning"] == pytest.approx(-1, abs=0.02) and got["motion"] == 0


def test_shuffled_clip_loses_its_motion():
    frames, caption = clip(motion="right")
    shuffled = frames[torch.randperm(len(frames), generator=torch.Generator().manual_seed(0))]
    got = measures.measure_clip(shuffled, caption)
    assert got["motion"] == 0 and got["speed"] > 4


def test_blurred_clip_is_not_sharp():
    frames, caption = clip()
    flat = frames.permute(0, 3, 1, 2)
    blurred = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(flat, (4, 4, 4, 4), value=world.BACKGROUND), 9, 1).permute(0, 2, 3, 1)
    got, truth = measures.measure_clip(blurred, caption), measures.measure_clip(frames, caption)
    assert got["sharpness"] < 0.6 and got["iou"] < truth["iou"] - 0.1


def test_faded_half_breaks_frames_and_identity():
    frames, caption = clip(motion="still")
    faded = frames.clone()
    faded[11:] = world.BACKGROUND + 0.25 * (frames[11:] - world.BACKGROUND)
    got = measures.measure_clip(faded, caption)
    assert got["broken"] == pytest.approx(10 / 21, abs=0.01) and got["identity"] < 0.75


def test_two_objects_break_the_frame():
    frames, caption = clip(motion="still", seed=1)
    double = torch.where((frames - world.BACKGROUND).abs() > 0.02, frames, frames.roll(26, 2))
    assert measures.measure_clip(double, caption)["broken"] == 1


def test_changing_colour_or_shape_breaks_identity():
    red, caption = clip("red", "circle", "still", seed=2)
    blue, _ = clip("blue", "circle", "still", seed=2)
    square, _ = clip("red", "triangle", "still", seed=2)
    assert measures.measure_clip(torch.cat([red, blue]), caption)["identity"] < 0.6
    assert measures.measure_clip(torch.cat([red, square]), caption)["identity"] < 0.93
    assert measures.measure_clip(torch.cat([red, red]), caption)["identity"] > 0.99


def test_kept_motion_counts_windows():
    right, caption = clip(motion="clockwise")
    got = measures.measure_clip(torch.cat([right, right[-1:].repeat(20, 1, 1, 1)]), caption)
    assert got["motion"] == 1 and got["motion_kept"] == 0.5


def test_sizes_and_lengths():
    frames, caption = clip()
    small = torch.nn.functional.interpolate(frames.permute(0, 3, 1, 2), (128, 128)).permute(0, 2, 3, 1)
    assert measures.measure_clip(small, caption)["motion"] == 1
    one = measures.measure_clip(frames[:1], caption)
    assert one["colour"] == 1 and math.isnan(one["speed"]) and math.isnan(one["freeze"]) and math.isnan(one["repetition"])
    empty = measures.measure_clip(torch.full((5, 64, 64, 3), world.BACKGROUND), caption)
    assert empty["iou"] == 0 and empty["broken"] == 1


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"frames \[F, H, W, 3\]"):
        measures.measure_clip(torch.zeros(3, 64, 64), "a red circle moving right")
    with pytest.raises(ValueError, match="not a caption"):
        measures.measure_clip(torch.zeros(3, 64, 64, 3), "a red dog")


def test_summary_leaves_nan_out():
    got = measures.summarise([{"a": 1.0, "b": math.nan}, {"a": 3.0, "b": 2.0}])
    assert got["a"]["mean"] == 2 and got["a"]["half_interval"] == pytest.approx(1.96, abs=0.01) and got["b"]["clips"] == 1
