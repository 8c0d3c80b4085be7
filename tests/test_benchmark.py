"""The recorded benchmark: its pages are made of its runs, and its runs can be had again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from benchmarks.table import headlines, place, step_ratios, tables

from patchword.cli import main
from patchword.objectives import __all__ as objectives
from patchword.report import Comparison, read_runs

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "docs/benchmark/runs"
COMPARED = (
    "val/retrieval/image_to_text/r@1",
    "val/retrieval/text_to_image/r@1",
    "val/hard_negatives/per_negative",
    *(f"val/grounding/content/{source}/average_precision" for source in ("align", "cosine", "dot")),
)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return read_runs(RECORD)


def test_all_objectives_have_three_seeds_of_one_code(comparison: Comparison) -> None:
    """Every objective, trained by one commit without changes, in pairs; reading fails where definitions differ."""
    trained = {
        run.measured["model"]["objective"]["class_path"].rpartition(".")[2]: run.variant for run in comparison.runs
    }
    assert set(trained) == set(objectives)
    commits = {run.measured["trained"]["commit"] for run in comparison.runs}
    assert len(commits) == 1
    assert re.fullmatch("[0-9a-f]{40}", *commits)
    for seed in (0, 1, 2):
        of_seed = [run for run in comparison.runs if run.seed == seed]
        assert {run.variant for run in of_seed} == set(comparison.variants)
        assert len({run.measured["trained"]["encoder_at_start"] for run in of_seed}) == 1
        assert len({run.measured["trained"]["data_order"] for run in of_seed}) == 1


@pytest.mark.parametrize(
    ("folder", "page"),
    [("runs", "README.md"), ("runs", "docs/benchmark.md"), ("sparc_threshold", "docs/benchmark.md")],
)
def test_tables_are_those_of_the_recorded_runs(folder: str, page: str) -> None:
    """No number of the tables was typed."""
    record = RECORD.parent / folder
    found = place(record).search((ROOT / page).read_text())
    assert found
    assert found[3] == tables(record)[bool(found[2])]


def test_the_report_is_that_of_the_recorded_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    main(["report", "docs/benchmark/runs", "--out", str(tmp_path)])
    assert (tmp_path / "report.md").read_text() == (ROOT / "docs/benchmark/report.md").read_text()
    for picture in re.findall(r"\]\((\S+\.png)\)", (tmp_path / "report.md").read_text()):
        assert (ROOT / "docs/benchmark" / picture).is_file(), picture
    capsys.readouterr()


def test_a_headline_is_the_mean_of_what_was_measured(comparison: Comparison) -> None:
    """R@1 of one run by hand, from its file."""
    run = comparison.of("CLIP")[0]
    ways = [run.metrics[f"test/retrieval/{way}/r@1"] for way in ("image_to_text", "text_to_image")]
    assert headlines(comparison).loc[("CLIP", run.seed), "R@1"] == pytest.approx(sum(ways) / 2)


@pytest.mark.slow
def test_steps_of_all_objectives_are_timed(tmp_path: Path) -> None:
    """The file that the tables take costs from: every objective, CLIP's ratio 1."""
    command = [sys.executable, "benchmarks/training_step.py", "--towers", "scenes", "--batch", "4", "--repeats", "1"]
    subprocess.run(
        [*command, "--device", "cpu", "--csv", str(tmp_path / "step.csv")], cwd=ROOT, check=True, timeout=600
    )
    ratios = step_ratios(tmp_path / "step.csv")
    assert ratios["CLIP"] == 1
    assert set(ratios.index) == set(step_ratios(RECORD.parent / "step.csv").index)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["clip", "sparc"])
def test_a_new_run_reaches_what_was_recorded(name: str, tmp_path: Path) -> None:
    """The first of three epochs again: validation within the spread of the recorded seeds.

    Other machines and numbers of threads sum in another order; a wrong gradient, other data or another metric would
    be farther away than seeds are from each other.
    """
    command = [sys.executable, "-m", "patchword", "fit", "--config", str(ROOT / f"configs/{name}.yaml")]
    place = ["--trainer.logger.save_dir", str(tmp_path), "--trainer.logger.version", "one", "--loggers", "null"]
    quiet = ["--trainer.enable_progress_bar", "false", "--maps.samples", "0", "--trainer.accelerator", "cpu"]
    stop = ["--trainer.callbacks+=tests.first_epoch.StopAfterFirstEpoch"]
    subprocess.run([*command, *place, *quiet, *stop], cwd=ROOT, check=True, timeout=1500, env=dict(os.environ))
    new = pd.read_csv(tmp_path / name / "one/metrics.csv").dropna(subset="val/loss").iloc[0]
    recorded = pd.DataFrame(
        [pd.read_csv(RECORD / name.upper() / f"seed_{seed}/fit/metrics.csv").iloc[0] for seed in (0, 1, 2)]
    )
    assert new["step"] == recorded["step"].iloc[0]
    for metric in COMPARED:
        spread = max(4 * recorded[metric].std(), 0.03)
        assert abs(new[metric] - recorded[metric].mean()) < spread, metric
