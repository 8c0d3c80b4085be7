"""All commands, plans and code on docs/comparing.md run in the order of the page, on less data."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch  # noqa: F401 - its log handler keeps the stderr of its first import
import pandas as pd
import pytest
import yaml
from benchmarks import record
from PIL import Image

from patchword.cli import main
from patchword.compare.plan import Plan
from patchword.report import read_runs, summary

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/comparing.md").read_text()
LESS = [
    *("--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"),
    *("--data.batch_size", "16", "--data.train_size", "64", "--data.val_size", "16", "--data.test_size", "16"),
    *("--maps.samples", "1", "--data.num_workers", "0"),
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write the plans and the photo of the page, and run its first commands."""
    before, here = dict(os.environ), Path.cwd()
    place = tmp_path_factory.mktemp("page")
    shutil.copytree(ROOT / "configs", place / "configs")
    for block in blocks("yaml"):
        name = block.partition("\n")[0].removeprefix("# ")
        (place / name).write_text(block)
    Image.new("RGB", (300, 200), "red").save(place / "photo.jpg")
    os.chdir(place)
    os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    run(blocks("bash")[0])
    yield place
    os.chdir(here)
    os.environ.clear()
    os.environ.update(before)


def run(block: str) -> None:
    for line in block.splitlines():
        _, *command = shlex.split(line)
        main([*command, *(LESS if command[0] in ("compare", "fit") else [])])


def test_from_a_plan_to_a_page(folder: Path) -> None:
    """The first plan of the page leads to a report."""
    for variant in ("CLIP", "SPARC"):
        for seed in (0, 1):
            assert (folder / f"runs/compare/{variant}/seed_{seed}/test/results.json").is_file()
    for name in ("report.html", "report.md", "report.csv", "report.tex"):
        assert (folder / "runs/compare" / name).is_file()
    assert "<script" in (folder / "inspect.html").read_text()


def test_what_is_recorded_makes_the_same_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`benchmarks/record.py` copies the numbers with six digits, the curves and the gallery, and no large file."""
    monkeypatch.setattr("sys.argv", ["record.py", "runs/compare", "recorded"])
    record.main()
    columns = ["variant", "split", "metric", "mean", "sd", "count", "difference", "pairs"]
    before, after = (summary(read_runs(place))[columns] for place in ("runs/compare", "recorded"))
    pd.testing.assert_frame_equal(before, after, rtol=1e-4, atol=1e-5)
    assert sum(path.stat().st_size for path in Path("recorded").rglob("*") if path.is_file()) < 200_000
    main(["report", "recorded"])
    for name in ("curves", "cost", "gallery"):
        assert list(Path("recorded").glob(f"report_{name}*.png")), name


def test_plans(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every plan on the page is valid."""
    run(blocks("bash")[1])
    assert len(list(folder.glob("runs/my_plan/*/seed_0/test/results.json"))) == 3
    assert len(capsys.readouterr().out.strip().splitlines()[-12:]) == 12  # four variants of the grid, three seeds
    assert next(iter(Plan.read(folder / "my_grid.yaml").variants)) == "threshold=null, local_weight=0.1"


def test_ablations(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page lists all plans in configs/ablations, and its command starts 15 runs."""
    listed = set(re.findall(r"configs/ablations/(\w+)\.yaml\)", PAGE))
    assert listed == {path.stem for path in (ROOT / "configs/ablations").glob("*.yaml")}
    (line,) = blocks("bash")[2].splitlines()
    main([*shlex.split(line)[1:], "--dry-run"])
    assert len(capsys.readouterr().out.splitlines()) == 15


def test_viewer_commands(folder: Path) -> None:
    """The commands of the viewer write pages."""
    (folder / "inspect.html").unlink()
    run(blocks("bash")[3])
    assert "a red apple next to a snail" in (folder / "inspect.html").read_text()


def test_loggers(folder: Path) -> None:
    """The commands with loggers run."""
    for line in blocks("bash")[4].splitlines():  # processes of their own: W&B's service keeps its first folder
        command = [sys.executable, "-m", *shlex.split(line), *LESS]
        subprocess.run(command, check=True, timeout=300)
    without, with_wandb = (folder / "runs/sparc" / f"version_{n}" for n in (0, 1))
    assert not list(without.glob("events*"))
    assert list(with_wandb.glob("events*"))
    assert list(with_wandb.rglob("*.wandb"))


def test_python(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The Python code of the page runs."""
    for code in blocks("python"):
        exec(compile(code, "comparing.md", "exec"), {})
    assert "CLIP" in capsys.readouterr().out
    assert (folder / "viewer.html").stat().st_size > 10_000


def test_the_folders_are_as_the_page_draws_them(folder: Path) -> None:
    """Every file on the page exists after the comparison."""
    run_folder = folder / "runs/my_plan/half/seed_0"
    for name in ("fit/config.yaml", "fit/metrics.csv", "fit/checkpoints", "test/results.json", "fit.log", "test.log"):
        assert (run_folder / name).exists(), name
    assert list(run_folder.glob("fit/events*"))
    assert {path.suffix for path in (run_folder / "test/maps").iterdir()} == {".png", ".npz"}
    assert yaml.safe_load((folder / "runs/my_plan/compare.yaml").read_text())["baseline"] == "1 over P"
