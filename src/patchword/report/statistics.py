"""Means over seeds, and paired differences with their confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan, sqrt

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """What a variant reached.

    Attributes:
        mean: The mean over seeds; NaN if a seed's number is NaN.
        sd: The standard deviation over seeds (n - 1); NaN for one seed.
        count: How many seeds.
    """

    mean: float
    sd: float
    count: int


@dataclass(frozen=True)
class Difference:
    """How much a variant reached more than the baseline.

    Attributes:
        mean: The difference of the means over the same seeds; over all seeds of each where they are not paired.
        low: The lower end of the interval; NaN where there is none.
        high: The upper end.
        pairs: How many seeds are paired.
        why_none: Why there is no interval; empty where there is one.
    """

    mean: float
    low: float
    high: float
    pairs: int
    why_none: str = ""

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval."""
        return isfinite(self.low)

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval, and 0 is outside of it."""
        return self.low > 0 or self.high < 0


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of the numbers of at least one seed."""
    numbers = np.asarray(values, dtype=float)
    if not np.isfinite(numbers).all():
        return Spread(nan, nan, len(numbers))
    return Spread(float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else nan, len(numbers))


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """The mean difference over the seeds that both have, with Student's t interval of its mean.

    Args:
        values: Numbers by seed.
        baseline: Likewise.
    """
    from scipy.stats import t

    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return not_paired(values, baseline, "not paired (no common seed)")
    differences = np.array([values[seed] - baseline[seed] for seed in seeds])
    if not np.isfinite(differences).all():
        return Difference(nan, nan, nan, len(seeds), "a number is not finite")
    mean = float(differences.mean())
    if len(seeds) == 1:
        return Difference(mean, nan, nan, 1, f"one common seed ({seeds[0]})")
    if np.ptp(differences) <= 1e-12 * max(1.0, float(np.abs(differences).max())):
        return Difference(mean, nan, nan, len(seeds), "the same difference for every seed")
    error = float(differences.std(ddof=1)) / sqrt(len(seeds))
    reach = float(t.ppf((1 + LEVEL) / 2, len(seeds) - 1)) * error
    return Difference(mean, mean - reach, mean + reach, len(seeds))


def not_paired(values: Mapping[int, float], baseline: Mapping[int, float], why: str) -> Difference:
    """The difference of the means, without an interval.

    Args:
        values: Numbers by seed.
        baseline: Likewise.
        why: Why they are not paired.
    """
    of_values, of_baseline = (spread(list(each.values())).mean for each in (values, baseline))
    return Difference(of_values - of_baseline, nan, nan, 0, why)
