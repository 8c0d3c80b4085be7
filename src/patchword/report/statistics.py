"""Means over seeds, and paired differences with their confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """The mean and the standard deviation of a metric over the seeds of a variant.

    Attributes:
        mean: The mean over seeds; NaN if the number of any seed is not finite.
        sd: The standard deviation over seeds (n - 1); NaN for one seed.
        count: The number of seeds.
    """

    mean: float
    sd: float
    count: int


@dataclass(frozen=True)
class Difference:
    """The difference of a variant from the baseline.

    Attributes:
        mean: The difference of the means over the common seeds, or over all seeds if the runs are not paired.
        low: The lower end of the interval; NaN if there is no interval.
        high: The upper end of the interval; NaN if there is no interval.
        pairs: The number of paired seeds.
        why_none: The reason why there is no interval; empty if there is one.
    """

    mean: float
    low: float
    high: float
    pairs: int
    why_none: str = ""

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and 0 is outside of it."""
        return self.low > 0 or self.high < 0


def spread(values: Sequence[float]) -> Spread:
    """Return the mean and the standard deviation of the numbers of at least one seed."""
    numbers = np.asarray(values, dtype=float)
    if not np.isfinite(numbers).all():
        return Spread(nan, nan, len(numbers))
    return Spread(float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else nan, len(numbers))


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Return the mean difference over the common seeds, with its Student's t interval; numbers are given by seed."""
    from scipy.stats import ttest_rel

    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return not_paired(values, baseline, "not paired (no common seed)")
    own, other = (np.array([each[seed] for seed in seeds]) for each in (values, baseline))
    if not np.isfinite([own, other]).all():
        return Difference(nan, nan, nan, len(seeds), "a number is not finite")
    differences = own - other
    mean = float(differences.mean())
    if len(seeds) == 1:
        return Difference(mean, nan, nan, 1, f"one common seed ({seeds[0]})")
    if np.ptp(differences) <= 1e-12 * max(1.0, float(np.abs(differences).max())):
        return Difference(mean, nan, nan, len(seeds), "the difference is the same for every seed")
    interval = ttest_rel(own, other).confidence_interval(LEVEL)
    return Difference(mean, float(interval.low), float(interval.high), len(seeds))


def not_paired(values: Mapping[int, float], baseline: Mapping[int, float], why: str) -> Difference:
    """Return the difference of the means, without an interval, and why the runs are not paired."""
    of_values, of_baseline = (spread(list(each.values())).mean for each in (values, baseline))
    return Difference(of_values - of_baseline, nan, nan, 0, why)
