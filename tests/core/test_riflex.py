"""RIFLEx's settings and what it asks of a call."""

import math

import pytest
import torch
from attention_loom.core.call import Span, TokenLayout
from attention_loom.core.errors import LoomError
from attention_loom.core.families.base import RopeAxis
from attention_loom.core.methods.riflex import RIFLEx, frame_times, slowed

N = 8
HUNYUAN = RopeAxis(256.0 ** (-torch.arange(N, dtype=torch.float64) / N), torch.cat([torch.arange(N), torch.full((56,), -1)])[None])


def test_the_intrinsic_frequency_of_hunyuan_is_the_fourth():
    assert RIFLEx(repeat=50.0).index(HUNYUAN) == 3
    assert RIFLEx(k=4).index(HUNYUAN) == 3
    assert 2 * math.pi / HUNYUAN.per_frame[3] == pytest.approx(50.27, abs=0.01)


def test_the_clip_fills_nine_tenths_of_the_new_period():
    change = slowed(HUNYUAN, 3, 99)
    assert change.shape == (1, 1, 64)
    assert change.count_nonzero() == 1
    new = float(HUNYUAN.per_frame[3] + change[0, 0, 3])
    assert 99 * new == pytest.approx(0.9 * 2 * math.pi, rel=1e-6)


def test_text_does_not_move():
    layout = TokenLayout((Span("video", 6, (3, 1, 2)), Span("text", 4)))
    assert frame_times(layout, HUNYUAN, "cpu").flatten().tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 0, 0]


def test_reference_frames_in_line_are_counted():
    wan = RopeAxis(HUNYUAN.per_frame, HUNYUAN.pair_of, references_in_line=True)
    layout = TokenLayout((Span("reference", 2), Span("video", 4, (2, 1, 2)), Span("reference", 4)))
    assert frame_times(layout, wan, "cpu").flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert frame_times(layout, HUNYUAN, "cpu").flatten().tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("settings", [{}, {"k": -1}, {"k": 0, "repeat": 0.0}])
def test_no_frequency_chosen(settings):
    with pytest.raises(LoomError, match=r"give k from 1"):
        RIFLEx(**settings)


def test_strength_zero_is_off():
    assert RIFLEx(k=4, strength=0.0).off
