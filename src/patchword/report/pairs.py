"""The differences between any two variants, and the variants that are best in a metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite, nan, sqrt
from statistics import quantiles
from typing import TYPE_CHECKING

import numpy as np

from patchword.report.comparison import Comparison
from patchword.report.names import Column
from patchword.report.pairing import why_not_paired
from patchword.report.statistics import Difference, not_paired, paired, signed, spread, welch

if TYPE_CHECKING:
    import pandas as pd

Numbers = Mapping[tuple[str, str, str], Mapping[int, float]]  # by variant, split and metric; then by seed


@dataclass(frozen=True)
class Verdict:
    """How all variants compare with the best one in a metric.

    Attributes:
        column: The metric.
        best: The variant with the best mean over seeds. If some variants have several seeds, it is one of these.
        mean: The mean of the best variant.
        differences: The paired difference of each other variant from the best one.
    """

    column: Column
    best: str
    mean: float
    differences: dict[str, Difference]

    @property
    def leaders(self) -> list[str]:
        """The best variant, and those that cannot be distinguished from it: they have an interval and are not worse."""
        others = {*self.worse, *self.untested}
        return [self.best, *(name for name in self.differences if name not in others)]

    @property
    def worse(self) -> list[str]:
        """The variants whose difference from the best one has an interval on the worse side of 0.

        The best mean is over all seeds and the interval over common ones, so an interval can lie on the better side.
        """
        lower = self.column.lower_is_better
        return [name for name, each in self.differences.items() if (each.low > 0 if lower else each.high < 0)]

    @property
    def untested(self) -> list[str]:
        """The variants whose difference from the best one has no interval."""
        return [name for name, each in self.differences.items() if not isfinite(each.low)]


def in_words(verdict: Verdict) -> dict[str, str]:
    """Return a verdict as text: the metric, the best variant, and the others with their differences from it."""

    def each(names: Sequence[str]) -> str:
        return "; ".join(f"{name} {interval(verdict.differences[name])}".strip() for name in names)

    return {
        "metric": f"{verdict.column.title} {verdict.column.subtitle}".strip(),
        "best": f"{verdict.best} {verdict.mean:.3f}",
        "cannot be distinguished": each(verdict.leaders[1:]),
        "worse": each(verdict.worse),
        "no interval": each(verdict.untested),
    }


def table(verdicts: Sequence[Verdict]) -> list[dict[str, str]]:
    """Return verdicts as the rows of a table, without columns that are empty."""
    rows = [in_words(verdict) for verdict in verdicts]
    return [{name: text for name, text in row.items() if any(each[name] for each in rows)} for row in rows]


def interval(found: Difference) -> str:
    """Format a difference and its interval, such as `−0.030 [−0.073, +0.013]`."""
    bounds = f" [{signed(found.low)}, {signed(found.high)}]" if isfinite(found.low) else ""
    return signed(found.mean) + bounds if isfinite(found.mean) else ""


def verdict(comparison: Comparison, numbers: Numbers, split: str, column: Column) -> Verdict | None:
    """Return how all variants compare with the best one in a metric; None if fewer than two variants have numbers."""
    own = {name: numbers.get((name, split, column.metric), {}) for name in comparison.variants}
    means = {name: spread(list(values.values())).mean for name, values in own.items() if values}
    means = {name: mean for name, mean in means.items() if isfinite(mean)}
    if len(means) < 2:
        return None
    several = max(len(own[name]) for name in means) > 1
    candidates = [name for name in means if len(own[name]) > several]
    best = (min if column.lower_is_better else max)(candidates, key=means.__getitem__)
    differences = {name: difference(comparison, own, name, best) for name in means if name != best}
    return Verdict(column, best, means[best], differences)


def difference(comparison: Comparison, own: Mapping[str, Mapping[int, float]], one: str, other: str) -> Difference:
    """Return the difference of a variant from another one, given the numbers of each variant by seed."""
    why = why_not_paired(comparison.of(one), comparison.of(other))
    return not_paired(own[one], own[other], why) if why else paired(own[one], own[other])


def pair_table(comparison: Comparison, numbers: Numbers, columns: Mapping[str, Sequence[Column]]) -> pd.DataFrame:
    """Return one row for any two variants in each split and metric; `columns` has the metrics of each split.

    The columns are `split`, `metric`, `variant`, `other`, `difference` (variant minus other), `low` and `high` (its
    interval over paired seeds), `welch_low` and `welch_high` (its interval without pairs), `pairs` (of seeds),
    `why_none` (the reason for a missing interval), and `sd_ratio`: the standard deviation of the paired differences,
    divided by the one that independent seeds with the same spreads have.
    """
    import pandas as pd

    rows = []
    for split, own_columns in columns.items():
        for column in own_columns:
            own = {name: numbers.get((name, split, column.metric), {}) for name in comparison.variants}
            for other, one in combinations([name for name in comparison.variants if own[name]], 2):
                found, unpaired = difference(comparison, own, one, other), welch(own[one], own[other])
                rows.append(
                    {
                        "split": split,
                        "metric": column.metric,
                        "variant": one,
                        "other": other,
                        "difference": found.mean,
                        "low": found.low,
                        "high": found.high,
                        "welch_low": unpaired.low,
                        "welch_high": unpaired.high,
                        "pairs": found.pairs,
                        "why_none": found.why_none,
                        "sd_ratio": _sd_ratio(own[one], own[other]) if isfinite(found.low) else nan,
                    }
                )
    names = "split metric variant other difference low high welch_low welch_high pairs why_none sd_ratio"
    return pd.DataFrame(rows, columns=names.split())


def gain(pairs: pd.DataFrame) -> str:
    """Return a sentence about what pairing by seed gained; empty if no two variants have paired seeds."""
    ratios = [ratio for ratio in pairs["sd_ratio"] if isfinite(ratio)]
    if len(ratios) < 2:
        return ""
    low, middle, high = quantiles(ratios, n=4)
    return (
        "Pairing: the standard deviation of the differences between the paired seeds of two variants is "
        f"{middle:.2f} times (quartiles {low:.2f} to {high:.2f}) that of independent seeds, over {len(ratios):,} pairs "
        "of variants in the metrics of the first tables. At 1, pairing gains nothing. report_pairs.csv has Welch's "
        "intervals, which do not use pairs, beside the paired ones."
    )


def _sd_ratio(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    seeds = sorted(one.keys() & other.keys())
    a, b = (np.array([each[seed] for seed in seeds]) for each in (one, other))
    alone = sqrt(a.var(ddof=1) + b.var(ddof=1))
    return float((a - b).std(ddof=1) / alone) if alone else nan
