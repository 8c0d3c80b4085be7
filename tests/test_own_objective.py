"""The objective of another package, as in CONTRIBUTING, can be installed, trained, tested and timed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
LESS = shlex.split("--data.batch_size 8 --data.train_size 32 --data.val_size 8 --data.test_size 8 --data.num_workers 0")
QUIET = shlex.split("--trainer.max_epochs 1 --trainer.enable_progress_bar false --trainer.log_every_n_steps 1")


def block(language: str, starts: str) -> str:
    """Return the first code block of CONTRIBUTING in a language that starts with a text."""
    found = re.findall(rf"^```{language}\n(.*?)^```", CONTRIBUTING, re.MULTILINE | re.DOTALL)
    return next(text for text in found if text.startswith(starts))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build and install the package from CONTRIBUTING outside of the repository, and return the folder."""
    project, site = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site")
    (project / "pyproject.toml").write_text(block("toml", "# pyproject.toml"))
    (project / "top_patches.py").write_text(block("python", "# top_patches.py"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(project)], check=True, capture_output=True)
    return site


def patchword(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run patchword in a new process with the package on its path."""
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "patchword", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_an_installed_objective_trains_and_is_tested_from_its_checkpoint(site: Path, tmp_path: Path) -> None:
    """`fit` and `test` work with the class path in a configuration."""
    (tmp_path / "top.yaml").write_text(block("yaml", "# top.yaml"))
    options = ["--config", "configs/clip.yaml", "--config", "top.yaml", *LESS, "--trainer.logger.name", "top"]
    fit = patchword(site, tmp_path, "fit", *options, *QUIET, "--trainer.logger.version", "fit")
    assert fit.returncode == 0, fit.stderr[-2000:]
    checkpoint = "runs/top/fit/checkpoints/last.ckpt"
    test = patchword(site, tmp_path, "test", *options, "--ckpt_path", checkpoint, "--trainer.logger.version", "test")
    assert test.returncode == 0, test.stderr[-2000:]
    results = json.loads((tmp_path / "runs/top/test/results.json").read_text())
    assert "test/words" in results["metrics"]
    assert "top_patches.TopPatches" in json.dumps(results)


def test_an_installed_objective_keeps_the_contract(site: Path, tmp_path: Path) -> None:
    """`check` accepts the class path, also in the processes that it starts."""
    check = patchword(site, tmp_path, "check", "top_patches.TopPatches")
    assert check.returncode == 0, check.stdout + check.stderr


def test_an_installed_objective_is_timed(site: Path, tmp_path: Path) -> None:
    """`bench` works with the class path."""
    sizes = shlex.split("--batch 4 --patches 9 --tokens 3 --dim 8 --repeats 1")
    run = patchword(site, tmp_path, "bench", "--objectives", "CLIP", "top_patches.TopPatches", *sizes, "--csv", "c.csv")
    assert run.returncode == 0, run.stderr[-2000:]
    assert "top_patches.TopPatches,patchword,train" in (tmp_path / "c.csv").read_text()
