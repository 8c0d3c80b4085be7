"""Means over seeds, and paired differences with their confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

LEVEL = 0.95
MINUS = "−"


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
        p: The p value of the two-sided test that belongs to the interval; NaN if there is no interval.
    """

    mean: float
    low: float
    high: float
    pairs: int
    why_none: str = ""
    p: float = nan

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
    test = ttest_rel(own, other)
    interval = test.confidence_interval(LEVEL)
    return Difference(mean, float(interval.low), float(interval.high), len(seeds), p=float(test.pvalue))


def welch(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Return the difference of the means of all seeds, with Welch's interval, which does not use pairs."""
    from scipy.stats import ttest_ind

    own, other = (np.array(list(each.values()), dtype=float) for each in (values, baseline))
    mean = float(own.mean() - other.mean())
    if min(len(own), len(other)) < 2 or not np.isfinite([*own, *other]).all() or not np.ptp(own) + np.ptp(other):
        return Difference(mean, nan, nan, 0, "Welch's interval needs two seeds of each variant that differ")
    test = ttest_ind(own, other, equal_var=False)
    interval = test.confidence_interval(LEVEL)
    return Difference(mean, float(interval.low), float(interval.high), 0, p=float(test.pvalue))


def discoveries(p: Sequence[float], rate: float = 0.05) -> list[bool]:
    """Return which p values hold at a false discovery rate (Benjamini and Hochberg, 1995). NaN does not hold."""
    from scipy.stats import false_discovery_control

    values = np.asarray(p, dtype=float)
    tested = np.isfinite(values)
    held = np.zeros(len(values), dtype=bool)
    if tested.any():
        held[tested] = false_discovery_control(values[tested]) < rate
    return held.tolist()


def not_paired(values: Mapping[int, float], baseline: Mapping[int, float], why: str) -> Difference:
    """Return the difference of the means, without an interval, and why the runs are not paired."""
    of_values, of_baseline = (spread(list(each.values())).mean for each in (values, baseline))
    return Difference(of_values - of_baseline, nan, nan, 0, why)


def signed(number: float) -> str:
    """Format a number with a sign and three decimal places; zero has no sign."""
    shown = f"{number:+.3f}"
    return "0.000" if float(shown) == 0 else shown.replace("-", MINUS)
