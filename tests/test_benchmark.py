"""The pages of the recorded benchmark are generated from its runs, and the runs can be reproduced."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from itertools import combinations, permutations
from pathlib import Path
from statistics import fmean

import pandas as pd
import pytest
from benchmarks import map_sources
from benchmarks.table import (
    OF_SOURCES,
    by_seed,
    gap,
    headlines,
    leaders,
    leading_sources,
    place,
    sources_table,
    step_ratios,
    table,
)

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


def test_sources_of_maps_are_those_of_recorded_commits() -> None:
    """All files are about the same photographs, and both commits, of training and of measuring, had no changes."""
    found = [json.loads(path.read_text()) for path in (RECORD.parent / "map_sources").glob("*.json")]
    assert len({json.dumps(one["samples"]) for one in found}) == 1
    for one in found:
        assert re.fullmatch("[0-9a-f]{40}", one["trained"])
        assert re.fullmatch("[0-9a-f]{40}", one["measured"])
        assert {*map_sources.SOURCES, *map_sources.BASELINES} == one["values"].keys()


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
        ("map_sources", "docs/maps.md"),
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


def test_what_the_page_advises_to_draw_is_what_was_measured() -> None:
    """`dot` fits the boxes best, but better than position priors only without SPARC; `banzhaf` is best in deletion."""
    for path in (RECORD.parent / "map_sources").glob("*.json"):
        found = json.loads(path.read_text())
        for metric in ("average_precision", "pointing_game"):
            assert "dot" in leading_sources(found, metric)
        for prior in ("center_prior", "mean_prior"):
            _, low, high = gap(found, "dot", prior, "average_precision")
            assert high < 0 if path.stem == "SPARC" else low > 0
        assert leading_sources(found, "deletion") == {"banzhaf"}
        assert gap(found, "banzhaf", "center_prior", "average_precision")[2] < 0
        assert gap(found, "dot", "cosine", "average_precision")[1] > 0


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


def sources_file(folder: Path, values: dict[str, float], spread: float, samples: int = 3) -> None:
    """A file of sources whose metrics are all equal; each interval of a difference reaches `spread` to both sides."""

    def of_all_metrics(value: float, spread: float) -> dict[str, list[float]]:
        return {metric: [value, value - spread, value + spread] for metric in OF_SOURCES}

    gaps = {f"{b} - {a}": values[b] - values[a] for a, b in combinations(values, 2)}
    found = {
        "samples": {"samples": samples},
        "values": {source: of_all_metrics(value, 0.1) for source, value in values.items()},
        "differences": {pair: of_all_metrics(gap, spread if gap else 0) for pair, gap in gaps.items()},
    }
    (folder / f"Mine {samples}.json").write_text(json.dumps(found))


def test_the_table_of_sources_marks_the_best_and_what_cannot_be_distinguished_from_it(tmp_path: Path) -> None:
    """`dot` is best where higher is better, `align` where lower is better; `cosine` has the numbers of `align`."""
    sources_file(tmp_path, {"align": 0.4, "cosine": 0.4, "dot": 0.6, "grad_cam": 0.55, "chance": 0.7}, spread=0.1)
    head, _, *rows, _, below = sources_table(tmp_path).splitlines()
    assert head.split(" | ")[2:4] == ["average precision ↑", "pointing game ↑"]
    _, names, precision, _, _, deletion, *_ = zip(*(row.split(" | ") for row in rows), strict=True)
    assert names == ("`align`, `cosine`", "`dot`", "`grad_cam`", "*chance*")
    assert precision[:2] == ("0.400", "**0.600** (+0.100 to +0.300)")
    assert precision[2:] == ("**0.550** (+0.050 to +0.250)", "0.700 (+0.200 to +0.400)")
    assert [cell.startswith("**") for cell in deletion] == [True, False, False, False]
    assert "18 comparisons with `align`" in below
    assert "18 intervals exclude 0" in below
    assert "12 further comparisons" in below
    sources_file(tmp_path, {"align": 0.4, "dot": 0.6}, 0.1, samples=4)
    with pytest.raises(ValueError, match="the same photographs"):
        sources_table(tmp_path)


@pytest.mark.slow
def test_sources_of_maps_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trained run is measured by its checkpoint, and its file makes a table."""
    monkeypatch.chdir(tmp_path)
    less = ["--data.test_size", "8", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    few = ["--data.train_size", "32", "--data.val_size", "8", "--data.batch_size", "32", "--data.num_workers", "0"]
    run = ["--trainer.logger.name", "CLIP/seed_0", "--trainer.logger.version", "fit", "--trainer.max_epochs", "1"]
    config = str(ROOT / "configs/clip.yaml")
    main(["fit", "--config", config, *few, *less, *run, "--trainer.log_every_n_steps", "1", "--loggers", "null"])
    command = [sys.executable, str(ROOT / "benchmarks/map_sources.py"), "runs/CLIP/seed_0", "--photographs", "3"]
    subprocess.run([*command, "--out", "sources", *less], check=True, timeout=600)
    found = json.loads(Path("sources/CLIP.json").read_text())
    assert found["samples"]["samples"] == 3
    assert found["trained"] == found["measured"]
    values, differences = found["values"], found["differences"]
    assert {*values} == {*map_sources.SOURCES, *map_sources.BASELINES}
    assert {*values.pop("mean_prior")} == {*map_sources.GROUNDING}
    for source, own in values.items():
        assert {*own} == {*OF_SOURCES}
        for metric, (value, low, high) in own.items():
            assert low <= value <= high
            if source != "align":
                difference = differences[f"{source} - align"][metric][0]
                assert difference == pytest.approx(value - values["align"][metric][0], abs=1e-5)
    assert values["cosine"] == values["align"]  # CLIP's own maps
    assert values["banzhaf"] != values["grad_cam"] != values["align"]
    rows = sources_table(Path("sources")).splitlines()[2:-2]
    assert len(rows) == 7
    assert rows[0].startswith("| CLIP | `align`, `cosine` | ")


def test_sources_of_a_folder_without_a_checkpoint_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the folder before anything is measured."""
    monkeypatch.setattr(sys, "argv", ["map_sources.py", str(tmp_path), "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        map_sources.main()
    assert f"{tmp_path} is not a run of `patchword compare`" in capsys.readouterr().err


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
