"""Verdicts and the differences between any two variants, compared with scipy and with cases made by hand."""

from __future__ import annotations

from math import isnan, nan
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_ind, ttest_rel

from patchword.report import read_runs
from patchword.report.content import make
from patchword.report.frames import by_seed
from patchword.report.names import Column, of_suite
from patchword.report.pairs import Verdict, gain, pair_table, verdict
from patchword.report.pairs import table as rows
from patchword.report.statistics import Difference, discoveries, welch
from tests.report import fake
from tests.report.test_frames import RECALL, results
from tests.report.test_reading import change

COLUMN = Column(RECALL, "R@1")


def test_welch_equals_scipy() -> None:
    """Guards the degrees of freedom of unequal spreads, and the use of all seeds, paired or not."""
    one, other = np.random.default_rng(0).normal(size=(2, 5)) * [[1.0], [3.0]]
    found = welch(dict(enumerate(one)), dict(enumerate(other[:3], 7)))
    expected = ttest_ind(one, other[:3], equal_var=False)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.p == pytest.approx(expected.pvalue)
    assert isnan(welch({0: 1.0}, {0: 2.0, 1: 3.0}).low)
    assert isnan(welch({0: 1.0, 1: 1.0}, {0: 2.0, 1: 2.0}).low)


def test_discoveries_are_those_of_benjamini_and_hochberg() -> None:
    """The k smallest p values hold if the k-th is below k / n of the rate; differences without a test do not count."""
    p = [0.001, 0.012, 0.6, nan, 0.025, 0.03, 0.9, 0.04]
    ranked = sorted(value for value in p if value == value)
    k = max(k for k, value in enumerate(ranked, 1) if value <= 0.05 * k / len(ranked))
    assert discoveries(p) == [value <= ranked[k - 1] for value in p]
    assert discoveries([nan, nan]) == [False, False]


def test_a_verdict_is_about_differences_from_the_best(tmp_path: Path) -> None:
    """The best mean leads, and so does what cannot be distinguished from it; intervals are those of paired tests."""
    folder = fake.comparison(tmp_path / "three", {"low": 0.4, "near": 0.695, "best": 0.7}, baseline="low")
    comparison = read_runs(folder)
    numbers = by_seed(comparison)
    found = verdict(comparison, numbers, "test", COLUMN)
    assert found is not None
    assert (found.best, found.leaders, found.worse) == ("best", ["best", "near"], ["low"])
    own = [[numbers[name, "test", RECALL][seed] for seed in range(3)] for name in ("low", "best")]
    interval = ttest_rel(*own).confidence_interval()
    assert (found.differences["low"].low, found.differences["low"].high) == pytest.approx(tuple(interval))
    lowest = verdict(comparison, numbers, "test", Column(RECALL, "deletion", lower_is_better=True))
    assert lowest is not None
    assert lowest.best == "low"


def test_a_variant_with_one_seed_is_not_the_best_of_several(tmp_path: Path) -> None:
    """One lucky seed does not lead the others; its difference has no interval, and the verdict says so."""
    folder = fake.comparison(tmp_path / "two", {"lucky": 0.9, "other": 0.5})
    for seed in (1, 2):
        results(folder, "lucky", seed).unlink()
    comparison = read_runs(folder)
    found = verdict(comparison, by_seed(comparison), "test", COLUMN)
    assert found is not None
    assert (found.best, found.untested) == ("other", ["lucky"])


def test_any_two_variants_are_compared(tmp_path: Path) -> None:
    """Every pair has the paired interval and Welch's; runs that are no pair have a reason and Welch's interval only."""
    folder = fake.comparison(tmp_path / "three", {"a": 0.5, "b": 0.6, "c": 0.7}, baseline="a")
    change(results(folder, "b", 1), "trained", "data_order", value="ffff")
    comparison = read_runs(folder)
    numbers = by_seed(comparison)
    found = pair_table(comparison, numbers, {"test": [COLUMN]}).set_index(["variant", "other"])
    assert set(found.index) == {("b", "a"), ("c", "a"), ("c", "b")}
    a, b, c = ([numbers[name, "test", RECALL][seed] for seed in range(3)] for name in "abc")
    assert found.loc[("c", "a"), ["low", "high"]].tolist() == pytest.approx(list(ttest_rel(c, a).confidence_interval()))
    assert found.loc[("c", "b"), "why_none"] == "not paired (order of the data differs for seed 1)"
    assert isnan(found.loc[("c", "b"), "low"])
    unpaired = ttest_ind(c, b, equal_var=False).confidence_interval()
    assert found.loc[("c", "b"), ["welch_low", "welch_high"]].tolist() == pytest.approx(list(unpaired))


def test_what_pairing_gains_is_measured(tmp_path: Path) -> None:
    """Seeds that move two variants alike leave a small ratio; without two pairs there is no sentence."""
    folder = fake.comparison(tmp_path / "two", {"a": 0.5, "b": 0.6, "c": 0.7}, baseline="a")
    comparison = read_runs(folder)
    pairs = pair_table(comparison, by_seed(comparison), {"test": [COLUMN]})
    ratios = pairs["sd_ratio"]
    assert ratios.between(0, 1).all()  # all variants gain 0.01 from one seed to the next
    assert f"{ratios.median():.2f} times" in gain(pairs)
    assert gain(pairs.iloc[:0]) == ""


def test_marks_of_the_tables_are_corrected(tmp_path: Path) -> None:
    """A clear difference is marked as better or worse, and the best means are bold in every format."""
    folder = fake.comparison(tmp_path / "two", {"a": 0.5, "b": 0.8, "c": 0.2}, baseline="a")
    report = make(read_runs(folder))
    table = report.splits["test"][0]
    cells = {row.name: row.cells[0] for row in table.rows}
    assert (cells["b"].mark, cells["c"].mark, cells["a"].mark) == ("▲", "▼", "")
    assert [name for name, cell in cells.items() if cell.best] == ["b"]
    assert all("no interval" not in row and row["worse"] for row in rows(report.verdicts["test"]))
    assert [one.best for one in report.verdicts["test"]] == ["b"] * len(report.verdicts["test"])


def test_a_smaller_median_rank_is_better() -> None:
    """Suites define it, and the best variant must not be the one with the largest rank."""
    ranks, recall = of_suite({"retrieval/image_to_text/median_rank": "", "retrieval/image_to_text/r@1": ""})
    assert ranks.lower_is_better
    assert not recall.lower_is_better


def test_an_interval_on_the_better_side_is_not_worse() -> None:
    """The best mean is over all seeds; a variant with fewer seeds can be better on the common ones."""
    better, worse = Difference(0.1, 0.05, 0.15, 2), Difference(-0.1, -0.15, -0.05, 3)
    found = Verdict(COLUMN, "best", 0.7, {"fewer seeds": better, "other": worse})
    assert (found.leaders, found.worse) == (["best", "fewer seeds"], ["other"])
    found = Verdict(Column(RECALL, "deletion", lower_is_better=True), "best", 0.7, {"a": better, "b": worse})
    assert (found.leaders, found.worse) == (["best", "b"], ["a"])
