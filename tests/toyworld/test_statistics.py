"""Intervals and paired gains on numbers whose answer is known; fidelity of clips that differ in a known way."""

import math

import numpy
import pytest
import torch
from attention_loom.toyworld.fidelity import fidelity
from attention_loom.toyworld.statistics import covers, interval, paired_gain


def test_a_paired_gain_does_not_see_the_spread_between_clips():
    hard = numpy.random.default_rng(0).uniform(0, 1, 32)
    gain = paired_gain(hard + 0.05, hard)
    assert str(gain) == "+0.050 [+0.050, +0.050]"
    assert gain.clips == 32


@pytest.mark.parametrize(("shift", "sign"), [(1.0, 1), (-1.0, -1), (0.0, 0)])
def test_the_sign_is_clear_only_when_zero_lies_outside(shift, sign):
    noise = numpy.random.default_rng(1).normal(0, 1, 40)
    noise -= noise.mean()
    assert paired_gain(noise + shift, numpy.zeros(40)).sign == sign


def test_clips_without_a_value_leave_the_pair():
    gain = paired_gain(numpy.array([1.0, math.nan, 3.0]), numpy.array([0.0, 0.0, math.nan]))
    assert (gain.mean, gain.clips) == (1.0, 1)
    assert paired_gain(numpy.array([math.nan]), numpy.array([0.0])) is None


def test_unpaired_values_are_refused():
    with pytest.raises(ValueError, match="no pairs"):
        paired_gain(numpy.zeros(3), numpy.zeros(4))


def test_few_clips_cover_less_than_promised_and_many_as_promised():
    assert covers(4) < 0.87
    assert 0.92 < covers(64) < 0.97


def test_the_same_values_give_the_same_interval():
    values = numpy.random.default_rng(2).normal(size=9)
    assert interval(values) == interval(values)


def test_fidelity_of_a_known_error():
    clip = torch.rand(3, 16, 16, 3, generator=torch.manual_seed(0)) * 0.8
    assert fidelity(clip, clip) == {"psnr": 99.0, "ssim": pytest.approx(1.0)}
    off = fidelity(clip + 0.1, clip)
    assert off["psnr"] == pytest.approx(20.0, abs=1e-3)
    assert 0.5 < off["ssim"] < 1.0
    with pytest.raises(ValueError, match="cannot be compared"):
        fidelity(clip[:2], clip)
