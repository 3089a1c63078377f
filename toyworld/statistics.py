"""Statistics of paired clips: means with bootstrap intervals, and what a method gains on the same prompts and seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy

DRAWS = 4000
LEVEL = 0.95


def interval(values: numpy.ndarray, draws: int = DRAWS) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval (percentiles of resampled means) of values [n] over clips.

    The resampling has a fixed seed: the same values give the same interval. Percentile intervals of few clips are too narrow
    (``covers`` says by how much).
    """
    rng = numpy.random.default_rng(0)
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
    tail = (1 - LEVEL) / 2
    return float(values.mean()), float(numpy.quantile(means, tail)), float(numpy.quantile(means, 1 - tail))


def covers(clips: int, trials: int = 1000, draws: int = 400) -> float:
    """Share of trials in which `interval` of that many normal draws holds the true mean; 0.95 is what it promises."""
    rng = numpy.random.default_rng(1)
    values = rng.normal(size=(trials, clips))
    means = numpy.take_along_axis(values[:, None], rng.integers(0, clips, (trials, draws, clips)), 2).mean(2)
    low, high = numpy.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    return float(((low <= 0) & (high >= 0)).mean())


def share_interval(values: numpy.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % Wilson interval of values [n] in 0..1, for shares near 0 or 1: there resampling gives an interval without width.

    Exact in spirit for values 0 and 1, too wide for values between them. Example: 64 ones give (1.0, 0.943, 1.0).
    """
    if len(values) == 0 or values.min() < 0 or values.max() > 1:
        raise ValueError("A share needs at least one value, all of them in 0..1.")
    n, share, z = len(values), float(values.mean()), 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(numpy.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return share, max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Gain:
    """Mean of paired differences with its 95 % interval, over ``clips`` clips."""

    mean: float
    low: float
    high: float
    clips: int

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies on that side of zero, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def paired_gain(values: numpy.ndarray, base: numpy.ndarray) -> Gain | None:
    """What ``values`` [n] gain over ``base`` [n], clip by clip; clips where either is nan do not count. None if none is left.

    Example: ``paired_gain(array([2.0, 5.0]), array([1.0, 4.0]))`` is +1 with an interval of no width.
    """
    if len(values) != len(base):
        raise ValueError(f"{len(values)} and {len(base)} values are no pairs.")
    difference = values - base
    difference = difference[~numpy.isnan(difference)]
    return Gain(*interval(difference), len(difference)) if len(difference) else None
