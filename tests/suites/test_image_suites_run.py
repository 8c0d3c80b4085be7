"""Tests that image suites run from the command line, with each configuration, on the published layout."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401 - its log handler keeps the stderr of its first import
import pytest
import yaml
from jsonargparse import ArgumentParser

from patchword.cli import main
from patchword.objectives import CLIP
from patchword.suites import Suite
from tests.ranks import on_ranks
from tests.suites import published_regions as published
from tests.suites.table_model import measure, measure_share
from tests.tiny import module

ROOT = Path(__file__).parents[2]


def test_every_configuration_is_one_of_these() -> None:
    """Every file in configs/suites/ for an image suite has a fixture."""
    page = "docs/evaluation/images.md"
    files = (ROOT / "configs/suites").glob("*.yaml")
    assert set(published.RUNS) == {path.stem for path in files if page in path.read_text()}


def test_every_configuration_measures(tmp_path: Path) -> None:
    """Each configuration runs on its fixture with a real, untrained model."""
    for name, (write, samples, number) in published.RUNS.items():
        suite = configured(name, str(write(tmp_path / name)))
        found = measure(suite, module(CLIP()).eval(), batch=1)
        assert found["images"] == samples, name
        assert 0 <= found[number] <= 1
        assert set(suite.definitions) >= {number}
        assert all(text.endswith(".") for text in suite.definitions.values())
        assert "root" not in suite.protocol()
        assert suite.data_set


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    """Each rank sees every second sample; the shorter share repeats one, as Lightning's sampler does."""
    for name, (write, _, _) in published.RUNS.items():
        root = str(write(tmp_path / name))
        alone = measure(configured(name, root), module(CLIP()).eval(), batch=1)
        for found in on_ranks(_measure_share, name, root):
            assert found == pytest.approx(alone, abs=1e-6, nan_ok=True), name


def configured(name: str, root: str) -> Suite:
    """The suite of a configuration, on its fixture in `root`, with smaller sizes for segmentation."""
    parser = ArgumentParser()
    parser.add_subclass_arguments(Suite, "data")
    data = yaml.safe_load((ROOT / f"configs/suites/{name}.yaml").read_text())["data"]
    data["init_args"]["root"] = root
    labeling = data["init_args"].get("labeling", {})
    if labeling.get("short_side"):
        labeling |= {"short_side": 64, "stride": None, "prompts": "photo"}  # fewer windows and prompts
    if labeling.get("protocol") == "training_free" or labeling.get("short_side"):
        labeling["protocol"] = None  # `test_segmentation_protocols.py` has its sizes and class names
    return parser.instantiate_classes(parser.parse_object({"data": data}))["data"]


def _measure_share(rank: int, name: str, root: str) -> dict[str, float]:
    return measure_share(configured(name, root), module(CLIP()).eval(), 1, rank)


@pytest.mark.parametrize("name", ["imagenet", "voc20_own", "refcoco"])
def test_patchword_test(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """results.json has the data set, the protocol, a definition of each metric, and the number of samples."""
    monkeypatch.chdir(tmp_path)
    write, samples, _ = published.RUNS[name]
    write(tmp_path / "data")
    options = {
        "imagenet": ("--data.prompts", "photo"),
        "voc20_own": ("--data.labeling.short_side", "96", "--data.labeling.prompts", "label"),
        "refcoco": ("--model.phrase_query", "span"),
    }[name]
    quiet = ("--trainer.enable_progress_bar", "false", "--trainer.logger.save_dir", "runs")
    files = ("--config", "configs/clip.yaml", "--config", f"configs/suites/{name}.yaml")
    main(["test", *files, "--data.root", "data", *options, *quiet])
    (path,) = Path("runs").rglob("results.json")
    results = json.loads(path.read_text())
    ((key, suite),) = results["measured"]["definition"]["suites"].items()
    assert results["measured"]["definition"]["splits"][key]["samples"] == samples
    measured = {number.removeprefix(key + "/") for number in results["metrics"]}
    assert set(suite["definitions"]) <= measured
    assert suite["data_set"] in capsys.readouterr().out
    table = path.parent / f"{key}_classes.csv"
    classes = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines())) if table.exists() else []
    assert len(classes) == {"imagenet": 2, "voc20_own": 20, "refcoco": 0}[name]
    column, mean = {"imagenet": ("accuracy@1", "mean_class_recall"), "voc20_own": ("iou", "miou")}.get(name, ("", ""))
    values = [float(row[column]) for row in classes if row[column] != "nan"]
    assert not values or sum(values) / len(values) == pytest.approx(results["metrics"][f"{key}/{mean}"])
    assert not any(row["class"] in metric for row in classes for metric in results["metrics"])
    if name == "imagenet":
        assert (key, suite["protocol"]["prompts"]) == ("imagenet_val", "photo")
        assert results["metrics"][f"{key}/chance_accuracy@1"] == 0.5
    if name == "voc20_own":
        assert suite["protocol"]["background"] == "ignore"
        assert suite["protocol"]["labeling"]["short_side"] == 96
        assert suite["protocol"]["labeling"]["map"] == "pooled"
        assert 0 < results["metrics"][f"{key}/chance_miou"] < 0.1
    if name == "refcoco":
        assert results["metrics"][f"{key}/phrases"] == 6
        assert f"{key}/grounding/span/align/acc@0.5" in results["metrics"]
