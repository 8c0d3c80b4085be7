"""Tests that caption suites run from the command line with a real model, and that two ranks equal one rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401 - its log handler keeps the stderr of its first import
import pytest
import yaml

from patchword.cli import main
from patchword.objectives import CLIP, FILIP
from patchword.suites import CocoRetrieval, Winoground, sharegpt4v
from tests.ranks import on_ranks
from tests.suites import published_captions as published
from tests.suites.table_model import FRAMING, measure, measure_share
from tests.tiny import module

ROOT = Path(__file__).parents[2]


def test_every_configuration_is_one_of_these() -> None:
    """Every file in configs/suites/ for a caption suite has a fixture."""
    page = "docs/evaluation/captions.md"
    files = (ROOT / "configs/suites").glob("*.yaml")
    assert set(published.RUNS) == {path.stem for path in files if page in path.read_text()}


@pytest.mark.parametrize("name", ["sugarcrepe", "coco_1k"])
def test_patchword_test(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """results.json has the data set, the protocol, a definition of each metric, and the number of samples."""
    monkeypatch.chdir(tmp_path)
    write, options, samples = published.RUNS[name]
    write(tmp_path / "data")
    quiet = ("--trainer.enable_progress_bar", "false", "--trainer.logger.save_dir", "runs")
    files = ("--config", "configs/clip.yaml", "--config", f"configs/suites/{name}.yaml")
    main(["test", *files, "--data.root", "data", *options, *quiet])
    (path,) = Path("runs").rglob("results.json")
    results = json.loads(path.read_text())
    (suite,) = results["measured"]["definition"]["suites"].values()
    (split,) = results["measured"]["definition"]["splits"].values()
    assert split["samples"] == samples
    assert suite["data_set"] in ("COCO, Karpathy's test split", "SugarCrepe")
    assert "root" not in suite["protocol"]
    measured = {key.partition("/")[2] for key in results["metrics"]}
    assert set(suite["definitions"]) <= measured
    assert all(text.endswith(".") for text in suite["definitions"].values())
    assert suite["data_set"] in capsys.readouterr().out
    if name == "coco_1k":
        assert suite["protocol"]["split"] == "1k"
        assert "five folds" in suite["definitions"]["retrieval/rsum"]


def test_every_configuration_measures(tmp_path: Path) -> None:
    """Each configuration runs on its fixture with a real, untrained model."""
    for name, (write, _, samples) in published.RUNS.items():
        suite = configured(name, str(write(tmp_path / name)))
        found = measure(suite, module(CLIP()).eval(), batch=16)
        assert len(suite.read(FRAMING)) == samples
        assert set(suite.definitions) <= {*found, "k_precision_na"}
        assert all(0 <= found[key] <= 600 for key in suite.definitions if key in found)


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    """Each rank sees every second sample; the shorter share repeats one, as Lightning's sampler does."""
    for name, (write, _, _) in published.RUNS.items():
        root = str(write(tmp_path / name))
        alone = measure(configured(name, root), module(CLIP()).eval(), 2)
        for found in on_ranks(_measure_share, name, root):
            assert found == pytest.approx(alone, abs=1e-6), name


def configured(name: str, root: str) -> Any:
    """The suite of a configuration, on its fixture in `root`."""
    import patchword.suites

    sharegpt4v.NUMBERS.update({"1k": 4, "10k": 5})
    options = published.RUNS[name][1]
    data = yaml.safe_load((ROOT / f"configs/suites/{name}.yaml").read_text())["data"]
    given = dict(zip([o.removeprefix("--data.") for o in options[::2]], options[1::2], strict=True))
    given = {k: v.replace("data/", f"{root}/", 1) if v.startswith("data/") else v for k, v in given.items()}
    return getattr(patchword.suites, data["class_path"])(**{"root": root} | data.get("init_args", {}) | given)


def _measure_share(rank: int, name: str, root: str) -> dict[str, float]:
    return measure_share(configured(name, root), module(CLIP()).eval(), 2, rank)


def test_a_local_score_does_not_see_the_batch(tmp_path: Path) -> None:
    """FILIP scores with tokens and has two matrices; the lengths of other captions in the batch do not matter."""
    objective = module(FILIP(), token_selection="all").eval()
    for suite in (
        CocoRetrieval(str(published.karpathy_coco(tmp_path / "coco", 6))),
        Winoground(str(published.winoground(tmp_path / "winoground"))),
    ):
        once = measure(suite, objective, 1)
        assert measure(suite, objective, 16) == pytest.approx(once)
