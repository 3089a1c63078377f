"""The renderer and the linear latent: truth that contradicts no caption."""

import random

import pytest
import torch
from attention_loom.toyworld import latent, vocabulary, world


@pytest.mark.parametrize("motion", world.MOTIONS)
def test_native_clips_stay_clear_of_the_walls(motion):
    rng = random.Random(1)
    for _ in range(50):
        scene = world.random_scene(rng, world.random_caption(rng, motion))
        x, y = world.track(scene, world.NATIVE_FRAMES)
        assert x.min() >= scene.radius - 1e-3 and x.max() <= world.SIZE - scene.radius + 1e-3
        assert y.min() >= scene.radius - 1e-3 and y.max() <= world.SIZE - scene.radius + 1e-3
        dx, dy = x[1:] - x[:-1], y[1:] - y[:-1]
        if motion in world.STRAIGHT:
            ex, ey = world.STRAIGHT[motion]
            assert torch.allclose(dx, torch.full_like(dx, ex * world.SPEED), atol=1e-3)
            assert torch.allclose(dy, torch.full_like(dy, ey * world.SPEED), atol=1e-3)
        elif motion == "still":
            assert not dx.any() and not dy.any()
        else:
            assert ((dx[:-1] * dy[1:] - dx[1:] * dy[:-1]) * world.ORBITS[motion] > 0).all()


def test_straight_movers_turn_back_at_walls_in_long_clips():
    scene = world.Scene(world.Caption("red", "circle", "right"), 10.0, 15.0, 30.0)
    x, y = world.track(scene, 81)
    assert x.max() <= 54 and x.min() >= 10 and (x[1:] < x[:-1]).any() and (y == 30).all()


def test_captions_are_read_back():
    rng = random.Random(2)
    for _ in range(40):
        caption = world.random_caption(rng)
        assert world.Caption.parse(str(caption)) == caption


@pytest.mark.parametrize("text", ["", "a red circle", "a pink circle moving right", "a red circle moving still", "a red circle orbiting right", "A red circle moving right"])
def test_other_captions_are_refused_in_one_sentence(text):
    with pytest.raises(ValueError, match="is not a caption of the shapes world") as error:
        world.Caption.parse(text)
    assert "\n" not in str(error.value)


def test_unknown_shape_names_the_shapes():
    with pytest.raises(ValueError, match="circle, square, triangle"):
        world.coverage("star", torch.zeros(1), torch.zeros(1), 5)


def test_rows_of_words():
    rows = vocabulary.rows_of("a red circle moving right")
    assert len(rows) == vocabulary.LENGTH and rows[5] == 0 and rows[6:] == [len(vocabulary.ROWS)] * (vocabulary.LENGTH - 6)
    assert vocabulary.rows_of("")[0] == 0
    with pytest.raises(ValueError, match="no word 'pink'"):
        vocabulary.rows_of("a pink circle")
    with pytest.raises(ValueError, match="at most 23"):
        vocabulary.rows_of("a " * 24)


def test_latent_round_trip_keeps_averages():
    scene = world.random_scene(random.Random(3), world.Caption("blue", "square", "clockwise"))
    frames = world.render(scene)
    z = latent.encode(frames)
    assert z.shape == (16, 6, 8, 8)
    coarse = latent.decode(z)
    assert coarse.shape == (21, 16, 16, 3)
    # Within a latent frame the decode is linear in time, so the mean over its four frames is exact.
    cells = frames.reshape(21, 16, 4, 16, 4, 3).mean((2, 4))
    assert torch.allclose(coarse[0], cells[0], atol=1e-5)
    assert torch.allclose(coarse[1:].reshape(5, 4, 16, 16, 3).mean(1), cells[1:].reshape(5, 4, 16, 16, 3).mean(1), atol=0.02)


def test_latent_refuses_odd_lengths():
    with pytest.raises(ValueError, match="4 n \\+ 1"):
        latent.encode(torch.zeros(20, 64, 64, 3))
    assert latent.latent_frames(latent.pixel_frames(18)) == 18
