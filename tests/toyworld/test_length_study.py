"""The statistics of the length study, on numbers whose answer is known."""

import numpy
from attention_loom.toyworld.length_study import held_out, table
from attention_loom.toyworld.statistics import interval


def test_interval_covers_a_known_mean():
    values = numpy.random.default_rng(3).normal(0.4, 0.1, 64)
    mean, low, high = interval(values)
    assert low < mean < high
    assert abs((high - low) / 2 - 1.96 * 0.1 / 8) < 0.006


def test_paired_gain_is_free_of_the_spread_between_clips():
    rng = numpy.random.default_rng(0)
    hard = rng.uniform(0, 1, 64)

    def rows(gain):
        return [{k: float(h + gain) for k in ("iou", "broken", "motion_kept", "identity", "freeze", "repetition", "sharpness")} for h in hard]

    text = table({"clips": 64, "rows": {"4x stock": rows(0.0), "4x RIFLEx k=1": rows(0.02), "4x UltraViCo 0.6": rows(0.05)}})
    ours = next(line for line in text.splitlines() if "UltraViCo" in line)
    assert "+0.050 [+0.050, +0.050]" in ours
    assert "+0.030 [+0.030, +0.030]" in ours


def test_prompts_are_held_out_and_cover_every_motion():
    work = held_out(64)
    assert len({seed for _, seed in work}) == 64
    assert len({caption.split(maxsplit=3)[3] for caption, _ in work}) == 7
