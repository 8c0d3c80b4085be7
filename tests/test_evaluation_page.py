"""docs/evaluation.md says what the suites say, and its commands and files are ones that work."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401 - its log handler keeps the stderr of its first import
import pytest

import patchword.suites
from patchword.cli import main
from patchword.errors import UserError
from patchword.suites import CocoRetrieval, Suite, SuiteList
from tests.suites import published_captions as published

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "evaluation.md"


@pytest.fixture(scope="module")
def maker() -> dict[str, Any]:
    """The names of docs/make_evaluation.py."""
    return runpy.run_path(str(ROOT / "docs" / "make_evaluation.py"))


def test_tables_are_those_of_the_code(maker: dict[str, Any]) -> None:
    """`python docs/make_evaluation.py` would change nothing."""
    assert maker["page"]() == PAGE.read_text(encoding="utf-8")


def test_every_suite_has_a_configuration_and_defines_its_numbers(maker: dict[str, Any]) -> None:
    """No class without its YAML fragment; each definition is a sentence."""
    suites = maker["suites"]()
    classes = {getattr(patchword.suites, name) for name in patchword.suites.__all__}
    concrete = {cls for cls in classes if issubclass(cls, Suite) and not cls.__abstractmethods__}
    assert concrete == {type(suite) for suite in suites.values()}
    for name, suite in suites.items():
        assert re.fullmatch(r"[a-z0-9_+]+", suite.key), name
        for metric, text in suite.definitions.items():
            assert text[0].isupper(), (name, metric)
            assert text.endswith("."), (name, metric)


def test_each_configuration_says_its_command(maker: dict[str, Any]) -> None:
    """The comment of each configuration contains a command that uses it."""
    for name in maker["suites"]():
        text = (ROOT / "configs" / "suites" / f"{name}.yaml").read_text(encoding="utf-8")
        assert f"--config configs/suites/{name}.yaml --data.root FOLDER" in text


def test_links_lead_somewhere() -> None:
    """All relative links on the pages exist."""
    for page in (PAGE, *(PAGE.parent / "evaluation").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), (page.name, target)


def test_several_suites_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's list of suites is measured with one model, and a report takes what it leaves."""
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "suites.yaml").write_text(example)
    published.karpathy_coco(tmp_path / "data" / "coco")
    published.sugarcrepe(tmp_path / "data" / "sugarcrepe")
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.logger.save_dir", "runs"]
    main(["test", "--config", "configs/clip.yaml", "--config", "suites.yaml", *quiet])
    (path,) = Path("runs").rglob("results.json")
    results = json.loads(path.read_text())
    assert [*results["measured"]["definition"]["suites"]] == ["coco_1k", "sugarcrepe"]
    assert 0 <= results["metrics"]["coco_1k/retrieval/image_to_text/r@1"] <= 1
    main(["report", "runs"])
    report = next(Path("runs").rglob("report.md")).read_text()
    assert "## Results: coco\\_1k" in report
    assert "## Results: sugarcrepe" in report
    assert "- sugarcrepe/mean/accuracy: Mean of the accuracies of the seven categories." in report
    assert "*chance*" in report


def test_two_suites_of_one_name_are_refused() -> None:
    """Metrics of two suites with the same key would overwrite each other."""
    with pytest.raises(UserError, match="different keys"):
        SuiteList([CocoRetrieval("."), CocoRetrieval("elsewhere")])


def test_a_suite_in_your_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example on the page runs without a change of patchword, and its metrics have definitions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (example,) = re.findall(r"^```python\n# my_suite.py\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "my_suite.py").write_text(example)
    for number in range(3):
        published.draw(Path(f"my_data/{number}.jpg"), number)
    Path("my_data/captions.txt").write_text("".join(f"{n}.jpg: A caption: {n}.\n" for n in range(3)))
    options = ["--data", "my_suite.MySuite", "--data.root", "my_data", "--trainer.enable_progress_bar", "false"]
    main(["test", "--config", "configs/clip.yaml", *options])
    (path,) = Path("runs").rglob("results.json")
    results = json.loads(path.read_text())
    assert results["metrics"]["my_data/retrieval/images"] == 3
    assert "retrieval/rsum" in results["measured"]["definition"]["suites"]["my_data"]["definitions"]
