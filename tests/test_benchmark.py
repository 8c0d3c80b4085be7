"""The pages of the recorded benchmark are generated from its runs, and the runs can be reproduced."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from itertools import permutations
from pathlib import Path
from statistics import fmean

import pandas as pd
import pytest
from benchmarks.table import by_seed, headlines, leaders, place, step_ratios, table

from patchword.cli import main
from patchword.objectives import __all__ as objectives
from patchword.report import Comparison, long_table, read_runs
from patchword.report.statistics import paired

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


# newer than the runs
UNRECORDED = {
    "BetaCLIP",
    "COSMOS",
    "DreamLIP",
    "FGCLIP",
    "FGCLIP2",
    "LongCLIP",
    "NegCLIP",
    "PowerCLIP",
    "SmartCLIP",
    "SuperCLIP",
}


def test_all_objectives_have_three_seeds_of_one_code(comparison: Comparison) -> None:
    """The runs of all objectives come from one commit without changes and are paired by seed."""
    trained = {
        run.measured["model"]["objective"]["class_path"].rpartition(".")[2]: run.variant for run in comparison.runs
    }
    assert set(trained) == set(objectives) - UNRECORDED
    commits = {run.measured["trained"]["commit"] for run in comparison.runs}
    assert len(commits) == 1
    assert re.fullmatch("[0-9a-f]{40}", *commits)
    for seed in (0, 1, 2):
        of_seed = [run for run in comparison.runs if run.seed == seed]
        assert {run.variant for run in of_seed} == set(comparison.variants)
        assert len({run.measured["trained"]["encoder_at_start"] for run in of_seed}) == 1
        assert len({run.measured["trained"]["data_order"] for run in of_seed}) == 1


def test_photographs_are_measured_by_paired_runs_of_commits_that_the_page_names() -> None:
    """For one seed, all variants start from the same heads and see the same data in the same order."""
    runs, page = read_runs(RECORD.parent / "natural").runs, (ROOT / "docs" / "benchmark.md").read_text()
    for commit in {run.measured["trained"]["commit"] for run in runs}:
        assert re.fullmatch("[0-9a-f]{40}", commit)  # without changes
        assert commit[:7] in page
    for seed in {run.seed for run in runs}:
        trained = [run.measured["trained"] for run in runs if run.seed == seed]
        assert len({(one["encoder_at_start"], one["data_order"]) for one in trained}) == 1


def test_newer_objectives_on_scenes_are_paired_with_the_older_ones(comparison: Comparison) -> None:
    """They start from the same encoders, see the same data in the same order, and come from a commit that is named."""
    pairs = {run.seed: run.measured["trained"] for run in comparison.runs}
    newer = read_runs(RECORD.parent / "scenes_new")
    page = (ROOT / "docs" / "benchmark.md").read_text()
    for run in newer.runs:
        trained = run.measured["trained"]
        assert re.fullmatch("[0-9a-f]{40}", trained["commit"])  # without changes
        assert trained["commit"][:7] in page
        for key in ("encoder_at_start", "data_order"):
            assert trained[key] == pairs[run.seed][key]
    assert all({run.seed for run in newer.of(variant)} == {0, 1, 2} for variant in newer.variants)


@pytest.mark.parametrize(
    ("folder", "page"),
    [
        *((name, "docs/benchmark.md") for name in ("runs", "scenes_new", "sparc_threshold")),
        *(("natural", "README.md"), ("natural", "docs/benchmark.md"), ("natural_sweep", "docs/benchmark.md")),
        ("natural_claims", "docs/claims.md"),
    ],
)
def test_tables_are_those_of_the_recorded_runs(folder: str, page: str) -> None:
    """All numbers in the tables are generated."""
    record = RECORD.parent / folder
    found = [*place(record).finditer((ROOT / page).read_text())]
    assert found
    for each in found:
        assert each[3] == table(record, each[2] or "")


def test_agreement_of_loupe_s_games_is_the_recorded_one() -> None:
    """All figures of the table come from the file that the benchmark wrote."""
    with (RECORD.parent / "loupe_games.csv").open(newline="") as file:
        _, *rows = csv.reader(file)
    page = (ROOT / "docs/objectives/loupe.md").read_text()
    written = page.partition("<!-- loupe_games -->")[2].partition("<!-- /loupe_games -->")[0].split("\n")[3:-1]
    assert written == [f"| {name} | {mean} | {low} to {high} |".replace("-", "−") for name, mean, low, high in rows]


def signed(number: float) -> str:
    return f"{number:+.3f}".replace("-", "−")


def test_intervals_on_the_page_are_those_of_the_recorded_runs() -> None:
    """Every interval in the text is a paired difference of two variants or of two of their maps."""
    text = "".join((ROOT / page).read_text() for page in ("README.md", "docs/benchmark.md", "docs/claims.md"))
    prose = re.sub(r"<!-- (\w+)(?: \w+)? -->.*?<!-- /\1 -->", "", text, flags=re.DOTALL)
    written = re.findall(r"([+−]\d\.\d+)\s+\(([+−]\d\.\d+)\s+to\s+([+−]\d\.\d+)\)", prose)
    assert len(written) > 20
    means, found = {mean for mean, _, _ in written}, set()
    folders = ("runs", "scenes_new", "sparc_threshold", "natural")
    for runs in (read_runs(RECORD.parent / name) for name in folders):
        numbers = long_table(runs)
        numbers["metric"] = numbers.split.str.cat(numbers.metric, "/")
        shown = "test/.*/(?:average_precision|pointing_game|swap_accuracy)$|test/.*/average_precision_small$"
        shown += "|test/grounding/content/align/average_precision_(?:people|animals|vehicles|instruments|scene)$"
        wanted = numbers.metric.str.contains(f"{shown}|test/.*per_negative$|coco/.*_(?:accuracy|precision)$|/miou")
        of = dict(iter(numbers[wanted & ~numbers.metric.str.contains("prior|chance")].groupby(["variant", "metric"])))
        columns = {key: by_seed(rows.set_index("seed").value) for key, rows in of.items()}
        views = ("", "transfer") if runs.name == "natural" else ("",)
        columns |= {
            (variant, f"R@1 {view}"): by_seed(rows.droplevel(0))
            for view in views
            for variant, rows in headlines(runs, view)["R@1"].groupby("variant")
        }
        for one, other in permutations(columns, 2):
            seeds = columns[one].keys() & columns[other].keys()
            if not seeds or (one[0] != other[0] and one[1] != other[1]):
                continue
            mean = fmean(columns[one][seed] - columns[other][seed] for seed in seeds)
            if signed(mean) in means:  # an interval takes longer
                difference = paired(columns[one], columns[other])
                found.add(tuple(map(signed, (difference.mean, difference.low, difference.high))))
    assert [each for each in written if each not in found] == []


def test_the_report_is_that_of_the_recorded_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/benchmark/report.md equals the report of the recorded runs."""
    monkeypatch.chdir(ROOT)
    main(["report", "docs/benchmark/runs", "--out", str(tmp_path)])
    assert (tmp_path / "report.md").read_text() == (ROOT / "docs/benchmark/report.md").read_text()
    for picture in re.findall(r"\]\((\S+\.png)\)", (tmp_path / "report.md").read_text()):
        assert (ROOT / "docs/benchmark" / picture).is_file(), picture
    capsys.readouterr()


def test_a_headline_is_the_mean_of_what_was_measured(comparison: Comparison) -> None:
    """R@1 in the headline table is the mean of both directions in the result file."""
    run = comparison.of("CLIP")[0]
    ways = [run.metrics[f"test/retrieval/{way}/r@1"] for way in ("image_to_text", "text_to_image")]
    assert headlines(comparison).loc[("CLIP", run.seed), "R@1"] == pytest.approx(sum(ways) / 2)


def test_bold_marks_the_best_and_what_cannot_be_distinguished_from_it() -> None:
    """Paired by seed, b is always below a, c is at times above it, and d is far below with a wide spread."""
    values = {"a": (0.50, 0.60, 0.70), "b": (0.48, 0.585, 0.682), "c": (0.52, 0.57, 0.70), "d": (0.1, 0.2, 0.1)}
    found = pd.Series({(variant, seed): x for variant, row in values.items() for seed, x in enumerate(row)})
    found = found.rename_axis(["variant", "seed"])
    assert leaders(found) == {"a", "c"}
    assert leaders(pd.concat([found, pd.Series({("one seed", 0): 0.9})]).rename_axis(found.index.names)) == {"a", "c"}
    assert leaders(found.xs(0, level="seed", drop_level=False)) == {"c"}


@pytest.mark.slow
def test_steps_of_all_objectives_are_timed(tmp_path: Path) -> None:
    """The file of step times contains every objective, and CLIP's ratio is 1."""
    command = [sys.executable, "benchmarks/training_step.py", "--towers", "scenes", "--batch", "4", "--repeats", "1"]
    subprocess.run(
        [*command, "--device", "cpu", "--csv", str(tmp_path / "step.csv")], cwd=ROOT, check=True, timeout=600
    )
    ratios = step_ratios(tmp_path / "step.csv")
    assert (ratios.loc["CLIP"] == 1).all()
    assert (ratios.low <= ratios.ratio).all()
    assert (ratios.ratio <= ratios.high).all()
    assert set(ratios.index) == set(step_ratios(RECORD.parent / "step_scenes.csv").index)


@pytest.mark.slow
def test_fit_is_compared_with_a_bare_loop() -> None:
    """Both take a step in each turn, and the ratio is between the bounds of its interval."""
    command = [sys.executable, "benchmarks/fit_step.py", "--batch", "4", "--steps", "3", "--objectives", "CLIP"]
    run = subprocess.run(
        [*command, "--device", "cpu"], cwd=ROOT, check=True, timeout=600, capture_output=True, text=True
    )
    found = re.search(r"CLIP +fit +(\S+) ms, bare +(\S+) ms, ratio (\S+) \((\S+) to (\S+)\)", run.stdout)
    assert found
    fit, bare, ratio, low, high = map(float, found.groups())
    assert fit > 0
    assert bare > 0
    assert low <= ratio <= high
    memory = re.search(r"memory (\d+) MiB after a tenth of the steps, (\d+) MiB at the end", run.stdout)
    assert memory
    assert all(int(each) > 100 for each in memory.groups())


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["clip", "sparc"])
def test_a_new_run_reaches_what_was_recorded(name: str, tmp_path: Path) -> None:
    """The first of three epochs, trained again, has validation metrics within the spread of the recorded seeds.

    Results differ by rounding on other machines and numbers of threads. A wrong gradient, other data or another metric
    would differ by more than seeds do.
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
