"""The numbers of a comparison as pandas tables."""

from __future__ import annotations

import json
from math import isnan
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from patchword.report import long_table, read_runs, summary
from tests.report import fake
from tests.report.test_reading import change

RECALL = "retrieval/image_to_text/r@1"


def row(folder: Path, variant: str, metric: str = RECALL, split: str = "test") -> dict:
    """One row of the summary."""
    found = summary(read_runs(folder))
    (one,) = found[(found.variant == variant) & (found.metric == metric) & (found.split == split)].to_dict("records")
    return one


def results(folder: Path, variant: str, seed: int) -> Path:
    return folder / variant / f"seed_{seed}" / "test" / "results.json"


def test_summary_is_made_from_the_numbers_of_the_files(tmp_path: Path) -> None:
    """Guards every step from the files to the interval."""
    folder = fake.comparison(tmp_path / "two", {"one": 0.5, "two": 0.6}, baseline="one")
    values = {
        name: [json.loads(results(folder, name, seed).read_text())["metrics"][f"test/{RECALL}"] for seed in range(3)]
        for name in ("one", "two")
    }
    found = row(folder, "two")
    interval = ttest_rel(values["two"], values["one"]).confidence_interval()
    assert found["mean"] == pytest.approx(sum(values["two"]) / 3)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    assert (found["count"], found["pairs"], found["why_none"]) == (3, 3, "")
    assert isnan(row(folder, "one")["difference"])


def test_long_table_has_every_number_with_its_provenance(tmp_path: Path) -> None:
    """Every number has its provenance."""
    folder = fake.comparison(tmp_path / "two", {"one": 0.5}, seeds=(3,))
    table = long_table(read_runs(folder))
    assert len(table) == len(fake.metrics(0.5)) + 3
    assert set(table.seed) == {3}
    assert set(table.split) == {"test", "unseen_concepts", "training"}
    for column in ("config_hash", "commit", "checkpoint", "hardware", "versions"):
        assert table[column].str.len().gt(0).all()
    assert table.hardware[0] == "cpu A CPU, cores 2, threads 1, memory_gib 24, devices 1, system Linux"


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("encoder_at_start", "ffff", "not paired (initial encoder differs for seed 1)"),
        ("data_order", "ffff", "not paired (order of the data differs for seed 1)"),
        ("data_order", ..., "not paired (order of the data not recorded)"),
    ],
)
def test_runs_of_a_seed_that_are_no_pair_have_no_interval(tmp_path: Path, key: str, value: str, why: str) -> None:
    """Runs are paired only if the seed, the initial weights and the data are the same."""
    folder = fake.comparison(tmp_path / "two", {"one": 0.5, "two": 0.6}, baseline="one")
    change(results(folder, "two", 1), "trained", key, value=value)
    found = row(folder, "two")
    assert found["why_none"] == why
    assert isnan(found["low"])
    assert found["difference"] == pytest.approx(0.1, abs=0.02)


def test_unequal_seeds_are_paired_where_both_exist(tmp_path: Path) -> None:
    """The mean is over all seeds, but the difference is over the common seeds."""
    folder = fake.comparison(tmp_path / "two", {"one": 0.5, "two": 0.6}, baseline="one")
    results(folder, "one", 0).unlink()
    assert (row(folder, "two")["count"], row(folder, "two")["pairs"]) == (3, 2)
    results(folder, "one", 1).unlink()
    assert row(folder, "two")["why_none"] == "one common seed (2)"


def test_a_metric_that_one_run_lacks_and_one_that_is_nan(tmp_path: Path) -> None:
    """A missing number lowers the count of seeds, and a NaN makes the mean NaN."""
    folder = fake.comparison(tmp_path / "two", {"one": 0.5, "two": 0.6}, baseline="one")
    path = results(folder, "two", 1)
    found = json.loads(path.read_text())
    del found["metrics"][f"test/{RECALL}"]
    found["metrics"]["test/hard_negatives/per_negative"] = float("nan")
    path.write_text(json.dumps(found))
    assert (row(folder, "two")["count"], row(folder, "two")["pairs"]) == (2, 2)
    spoiled = row(folder, "two", "hard_negatives/per_negative")
    assert isnan(spoiled["mean"])
    assert not spoiled["excludes_zero"]


def test_losses_counts_and_chance_are_not_compared(tmp_path: Path) -> None:
    """Losses of two objectives are not compared."""
    folder = fake.comparison(tmp_path / "two", {"one": 0.5, "two": 0.6}, baseline="one")
    names = [
        "loss",
        "retrieval/images",
        "retrieval/image_to_text/chance_r@1",
        "grounding/content/center_prior/pointing_game",
    ]
    for name in [*names, "grounding/content/align/phrases", "hard_negatives/chance_per_negative"]:
        assert isnan(row(folder, "two", name)["difference"]), name
    assert not isnan(row(folder, "two", "grounding/content/dot/object_choice")["difference"])
    assert not isnan(row(folder, "two", "step_seconds", "training")["difference"])


def test_one_run_alone_can_be_reported(tmp_path: Path) -> None:
    """The smallest comparison has one variant with one seed."""
    folder = fake.comparison(tmp_path / "two", {"one": 0.5}, seeds=(0,), baseline="one")
    found = row(folder, "one")
    assert found["mean"] == pytest.approx(0.5, abs=0.02)
    assert isnan(found["sd"])
