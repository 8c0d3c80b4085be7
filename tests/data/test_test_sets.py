"""Guards `test_sets`: other data whose test splits one run of `patchword test` measures as well."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from PIL import Image

from patchword.callbacks.results import Results
from patchword.data.tables.image_text import ImageText
from patchword.errors import UserError
from patchword.files.results_file import read_results
from patchword.objectives import CLIP
from patchword.suites import Winoground
from tests import tiny
from tests.suites import published_captions as published


def test_one_run_measures_its_own_splits_and_the_suites(tmp_path: Path) -> None:
    """The results have the metrics of both, and of both what was measured; validation has no suites."""
    write, _, _ = published.RUNS["winoground"]
    write(tmp_path / "data")
    data = tiny.data(test_sets={"order": Winoground(str(tmp_path / "data")), "more": tiny.data()})
    splits = {"test", "unseen_combinations", "unseen_concepts", "order"}
    splits |= {"more_test", "more_unseen_combinations", "more_unseen_concepts"}
    trainer = tiny.trainer(tmp_path, Results())
    trainer.test(tiny.module(CLIP()), data, verbose=False)
    (path,) = tmp_path.rglob("results.json")
    metrics, measured = read_results(path)
    assert {name.partition("/")[0] for name in metrics} == splits
    assert {*measured["definition"]["splits"]} == splits
    assert {*measured["definition"]["suites"]} == {"order"}
    alone = tiny.trainer(tmp_path / "alone").test(tiny.module(CLIP()), data.test_sets["order"], verbose=False)[0]
    found = {name.replace("order/", "winoground/", 1): x for name, x in metrics.items() if name.startswith("order/")}
    assert found == pytest.approx(alone)
    assert "order/images" not in trainer.validate(tiny.module(CLIP()), data, verbose=False)[0]
    assert [*data.predict_dataloader()] == [*data.test_splits]


def test_suites_beside_image_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of a suite pass through the hook in which ImageText lists the broken samples of its own batches."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write, _, _ = published.RUNS["winoground"]
    write(tmp_path / "data")
    for n in range(2):
        Image.new("RGB", (64, 64), (100 * n, 0, 0)).save(tmp_path / f"{n}.png")
    rows = [{"image": f"{n}.png", "caption": caption} for n, caption in enumerate(("a balloon", "a cupcake"))]
    (tmp_path / "list.json").write_text(json.dumps([*rows, {"image": "gone.png", "caption": "no picture"}]))
    path = str(tmp_path / "list.json")
    sets = {"order": Winoground(str(tmp_path / "data"))}
    data = ImageText("json", path, test=path, image_size=64, resize_mode="stretch", test_sets=sets)
    with pytest.warns(UserWarning, match=r"gone.png"):
        found = tiny.trainer(tmp_path).test(tiny.module(CLIP()), data, verbose=False)[0]
    assert {"order/group_score", "test/retrieval/text_to_image/r@1"} <= {*found}


def test_two_splits_of_one_name_are_refused() -> None:
    data = tiny.data()
    data.test_sets = {"a": tiny.data(), "a_test": SimpleNamespace(test_dataloader=lambda: {"x": None})}
    with pytest.raises(UserError, match="two test splits have the name a_test"):
        data.test_dataloader()
