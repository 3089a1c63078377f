"""UltraViCo's class tables and settings, against the spec's exact figures and a brute-force reading of the rule."""

import dataclasses
import math

import pytest
import torch
from attention_loom.core.errors import LoomError
from attention_loom.core.methods.ultravico import UltraViCo, class_table, distance_table, frame_rules, harmonic_period
from attention_loom.kernels.plan import MASKED

HUNYUAN = UltraViCo(train_frames=33, alpha=0.9, beta=0.6, period=50.0, gamma=4)
WAN = UltraViCo(train_frames=21, alpha=0.9, first_frame=True)


def by_distance(classes):
    """Class of each frame distance; fails where it is not a function of the distance."""
    n = len(classes)
    rows = [set(torch.diagonal(classes, d).tolist()) | set(torch.diagonal(classes, -d).tolist()) for d in range(n)]
    assert all(len(r) == 1 for r in rows)
    return [r.pop() for r in rows]


def test_hunyuan_at_three_times_its_length():
    classes, factors = class_table(HUNYUAN, 99, "cpu")
    found = by_distance(classes)
    assert factors.tolist() == pytest.approx([1.0, 0.9, 0.6])
    assert [d for d in range(99) if found[d] == 0] == list(range(17))
    assert [d for d in range(99) if found[d] == 2] == [*range(46, 55), 96, 97, 98]
    assert set(found) == {0, 1, 2}
    assert torch.equal(classes, classes.T)


def test_wan_at_three_times_its_length():
    classes, _ = class_table(WAN, 63, "cpu")
    assert (classes == MASKED).nonzero().tolist() == [[0, f] for f in range(21, 63)]
    plain = classes.clone()
    plain[0] = plain[:, 0]
    assert by_distance(plain) == [0] * 11 + [1] * 52


def test_four_times_hunyuan_has_the_released_bands():
    found = by_distance(class_table(HUNYUAN, 220, "cpu")[0])
    bands = [d for d in range(220) if found[d] == 2]
    assert bands == [*range(46, 55), *range(96, 105), *range(146, 155), *range(196, 205)]


def test_sink_frames_are_never_decayed():
    classes, _ = class_table(dataclasses.replace(HUNYUAN, sink_frames=2), 99, "cpu")
    assert classes[:, :2].max() == 0
    assert classes[98, 2] == 2


@pytest.mark.parametrize(("period", "gamma"), [(None, 0), (7.0, 1)])
def test_token_granularity_is_the_rule_of_the_paper(period, gamma):
    grid, train = (8, 2, 3), 5
    cfg = UltraViCo(train_frames=train, alpha=0.9, beta=0.5, period=period, gamma=gamma, granularity="token")
    classes, _ = distance_table(cfg, grid, "cpu")
    per_frame = 6
    for d in range(8 * per_frame):
        expected = 0 if d <= per_frame * train / 2 else 1
        if expected and period and any((m * period - gamma) * per_frame <= d <= (m * period + gamma) * per_frame for m in range(1, 10)):
            expected = 2
        assert classes[d] == expected, d


def test_token_granularity_keeps_the_first_frame_rule():
    assert (frame_rules(WAN, 63, "cpu") == MASKED).sum() == 42
    assert frame_rules(HUNYUAN, 99, "cpu").max() == 0


def test_harmonic_period_of_known_models():
    octaves = 256.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
    assert harmonic_period(octaves, 33, 99) == 50.0 == float(round(16 * math.pi))
    wan = 10000.0 ** (-torch.arange(22, dtype=torch.float64) / 22)
    assert harmonic_period(wan, 21, 84) is None
    assert harmonic_period(octaves, 33, 45) is None, "no repetition within the clip"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train_frames": 1}, "at least 2"),
        ({"alpha": 0.0}, "alpha 0 was given"),
        ({"sink_frames": 2, "granularity": "token"}, "sink_frames 2 was given with granularity token"),
        ({"alpha": 1.2}, "alpha 1.2 was given"),
        ({"beta": -0.1}, "beta -0.1 was given"),
        ({"beta": 0.95, "period": 50.0}, "beta 0.95 is above alpha 0.9"),
        ({"period": 12.0, "gamma": 4}, "starts at 8 frames, inside the window of 10.5"),
    ],
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(LoomError, match=words):
        UltraViCo(**{"train_frames": 21} | settings)


def test_riflex_beside_repetition_bands_is_said():
    from attention_loom.core.methods.riflex import RIFLEx

    said = []
    UltraViCo(train_frames=33, period=50.0).check_company((RIFLEx(k=4),), said.append)
    UltraViCo(train_frames=33).check_company((RIFLEx(k=4),), said.append)
    assert len(said) == 1 and "set repetition to off" in said[0]


def test_off():
    assert UltraViCo(train_frames=21, alpha=1.0).off
    assert UltraViCo(train_frames=21, alpha=1.0, beta=1.0, period=50.0).off
    assert not UltraViCo(train_frames=21, alpha=1.0, first_frame=True).off
    assert not UltraViCo(train_frames=21).off


def test_cached_tables_can_take_part_in_a_gradient():
    with torch.inference_mode():
        classes, factors = class_table(UltraViCo(train_frames=4), 9, "cpu")
    assert not classes.is_inference()
    assert not factors.is_inference()
