"""A training process that is killed leaves a whole checkpoint, from which the run ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_module import assert_same_bits, state

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
FIT = [
    *(sys.executable, "-m", "patchword", "fit", "--config", str(ROOT / "configs" / "sparc.yaml")),
    *("--data.batch_size", "16", "--data.train_size", "96", "--data.val_size", "16", "--trainer.max_epochs", "6"),
    *("--checkpoint.every_n_train_steps", "2", "--maps.samples", "0", "--trainer.enable_progress_bar", "false"),
    *("--trainer.log_every_n_steps", "1"),
]


def fit(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a training that logs into `folder`."""
    place = ["--trainer.logger.save_dir", str(folder), "--checkpoint.dirpath", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*FIT, *place, *arguments], stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a training that must succeed."""
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error[-2000:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How the run ends when nobody kills it."""
    folder = tmp_path_factory.mktemp("whole")
    finish(fit(folder))
    return state(folder / "last.ckpt")


@pytest.mark.parametrize("after", [4, 15])
def test_killed_and_resumed_equals_uninterrupted(whole: dict[str, Any], tmp_path: Path, after: int) -> None:
    """SIGKILL at whatever moment it hits, once `after` steps are saved: the resumed run ends in the same bits."""
    killed, path = fit(tmp_path / "killed"), tmp_path / "killed" / "last.ckpt"
    for _ in range(6000):
        if path.exists() and torch.load(path, weights_only=True)["global_step"] >= after:
            break
        assert killed.poll() is None, killed.communicate()[1][-2000:]
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert state(path)["global_step"] < 36, "it was killed before the end"
    finish(fit(tmp_path / "killed", "--ckpt_path", str(path)))
    assert_same_bits(state(path), whole)
