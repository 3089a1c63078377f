"""The ground of long clips: rendered truth is steady; drift and flicker are each seen by their own measure alone."""

import math
import random

import pytest
import torch
from attention_loom.toyworld import world
from attention_loom.toyworld.steady import steadiness


@pytest.fixture(scope="module")
def clip():
    return world.render(world.random_scene(random.Random(5), world.Caption.parse("a red circle orbiting clockwise")), 85)


def test_truth_is_steady(clip):
    found = steadiness(clip)
    assert found["ground_drift"] < 1e-6
    assert found["ground_flicker"] < 1e-6


def test_a_clip_that_grows_lighter_drifts_and_does_not_flicker(clip):
    ramp = torch.linspace(0, 0.1, len(clip))[:, None, None, None]
    found = steadiness((clip + ramp).clamp(0, 1))
    assert found["ground_drift"] == pytest.approx(0.08, abs=0.015)
    assert found["ground_flicker"] < 1e-3


def test_every_other_frame_lighter_flickers_and_hardly_drifts(clip):
    found = steadiness((clip + 0.04 * (torch.arange(len(clip)) % 2)[:, None, None, None]).clamp(0, 1))
    assert found["ground_flicker"] == pytest.approx(0.02, abs=0.002)
    assert found["ground_drift"] < 0.003


def test_short_clips_have_no_drift(clip):
    assert math.isnan(steadiness(clip[:30])["ground_drift"])
