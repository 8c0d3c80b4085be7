"""Means over seeds and paired differences, compared with scipy."""

from __future__ import annotations

from math import isnan, nan

import numpy as np
import pytest
from scipy.stats import ttest_rel

from patchword.report.statistics import not_paired, paired, spread


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_interval_is_that_of_a_paired_t_test(count: int) -> None:
    """Guards the degrees of freedom, the quantile and the sign of the difference."""
    values, baseline = np.random.default_rng(count).normal(size=(2, count))
    found = paired(dict(enumerate(values)), dict(enumerate(baseline)))
    expected = ttest_rel(values, baseline).confidence_interval(0.95)
    assert found.mean == pytest.approx(values.mean() - baseline.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.pairs == count
    assert found.excludes_zero == (ttest_rel(values, baseline).pvalue < 0.05)


def test_pairs_are_made_by_seed_and_not_by_position() -> None:
    """Guards against pairing different seeds."""
    found = paired({0: 0.5, 1: 0.7, 2: 0.9}, {2: 0.8, 0: 0.45, 7: 0.0})
    expected = ttest_rel([0.5, 0.9], [0.45, 0.8]).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.pairs == 2


def test_one_common_seed_has_a_difference_and_no_interval() -> None:
    """Guards against a standard deviation of one number."""
    found = paired({0: 0.5, 1: 0.7}, {1: 0.6, 2: 0.1})
    assert found.mean == pytest.approx(0.1)
    assert isnan(found.low)
    assert isnan(found.low)
    assert not found.excludes_zero
    assert "one common seed (1)" in found.why_none


def test_no_common_seed_is_not_paired() -> None:
    """Without common seeds the result is the difference of the means, with the reason for the missing interval."""
    found = paired({0: 0.5, 1: 0.7}, {2: 0.1})
    assert found.mean == pytest.approx(0.5)
    assert found.pairs == 0
    assert found.why_none == "not paired (no common seed)"


def test_equal_differences_have_no_interval() -> None:
    """Two seeds with the same difference of 1/1024 have no spread; an interval of width zero would exclude 0."""
    found = paired({0: 0.5, 1: 0.7}, {0: 0.4, 1: 0.6})
    assert found.mean == pytest.approx(0.1)
    assert not found.excludes_zero
    assert found.why_none == "the difference is the same for every seed"


def test_a_number_that_is_not_finite_spoils_its_mean() -> None:
    """A diverged seed makes the mean NaN; it is not silently ignored."""
    assert isnan(spread([0.5, nan, 0.6]).mean)
    assert spread([0.5, nan]).count == 2
    found = paired({0: 0.5, 1: nan, 2: 0.1}, {0: 0.4, 1: 0.2, 2: 0.3})
    assert isnan(found.mean)
    assert not found.excludes_zero
    assert found.why_none == "a number is not finite"


def test_spread_is_that_of_a_sample() -> None:
    """Guards the divisor n - 1 and the case of one seed."""
    assert spread([1.0, 2.0, 4.0]).sd == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert isnan(spread([1.0]).sd)


def test_unpaired_means_have_no_interval() -> None:
    """Runs that are not paired have no interval."""
    found = not_paired({0: 1.0, 1: 2.0}, {0: 1.0}, "why")
    assert found.mean == 0.5
    assert isnan(found.low)
    assert found.why_none == "why"
