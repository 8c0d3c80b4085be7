"""A killed or stopped run leaves a complete checkpoint, and resuming from it gives the same result as one whole run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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
    *("--trainer.log_every_n_steps", "1", "--trainer.accelerator", "cpu"),
]
TWO = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--data.batch_size", "8", "--trainer.max_epochs", "3"]


def fit(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a training run that logs to `folder`, in its own process group."""
    place = ["--trainer.logger.save_dir", str(folder), "--checkpoint.dirpath", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*FIT, *place, *arguments], stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def finish(process: subprocess.Popen[str], code: int = 0, seconds: float = 600) -> str:
    """Wait until a training run ends with this exit code, and return what it wrote to stderr."""
    try:
        _, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == code, error[-3000:]
    return error


def wait_for_step(process: subprocess.Popen[str], path: Path, step: int) -> None:
    """Wait for a checkpoint of this step or a later one."""
    for _ in range(12000):
        if path.exists() and torch.load(path, weights_only=True)["global_step"] >= step:
            return
        assert process.poll() is None, finish(process)
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError("no checkpoint after four minutes")


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill all ranks and their data workers at the same moment with SIGKILL."""
    os.killpg(process.pid, signal.SIGKILL)
    finish(process, -signal.SIGKILL)


def rank_one(process: subprocess.Popen[str]) -> int:
    """Return the id of the process that rank 0 started."""
    children = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True)
    (rank,) = [line.split()[0] for line in children.stdout.splitlines() if "patchword" in line and _rank(line) == "1"]
    return int(rank)


def stop_one_rank(process: subprocess.Popen[str]) -> None:
    """Send SIGTERM to rank 1 only, and check that all ranks stop and that rank 0 says how to resume."""
    os.kill(rank_one(process), signal.SIGTERM)
    error = finish(process, 128 + signal.SIGTERM, 60)
    assert error.count("stopped by SIGTERM at step") == 1
    assert "resume with --ckpt_path" in error.splitlines()[-1]


def _rank(line: str) -> str | None:
    """Return the LOCAL_RANK of a process, given its line in the output of `ps`."""
    environment = Path(f"/proc/{line.split()[0]}/environ").read_bytes().split(b"\0")
    return next((entry[11:].decode() for entry in environment if entry.startswith(b"LOCAL_RANK=")), None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the final state of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    finish(fit(folder))
    return state(folder / "last.ckpt")


@pytest.mark.parametrize("after", [4, pytest.param(15, marks=pytest.mark.thorough)])
def test_killed_and_resumed_equals_uninterrupted(whole: dict[str, Any], tmp_path: Path, after: int) -> None:
    """A run that is killed at any moment after `after` steps and then resumed ends with the same bits."""
    path = tmp_path / "last.ckpt"
    killed = fit(tmp_path)
    wait_for_step(killed, path, after)
    kill_all(killed)
    assert state(path)["global_step"] < 36, "it was killed before the end"
    finish(fit(tmp_path, "--ckpt_path", str(path)))
    assert_same_bits(state(path), whole)


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the final state of an uninterrupted run on two processes."""
    folder = tmp_path_factory.mktemp("two")
    finish(fit(folder, *TWO))
    return state(folder / "last.ckpt")


@pytest.mark.parametrize("end", [pytest.param(kill_all, marks=pytest.mark.thorough), stop_one_rank])
def test_two_ranks_ended_and_resumed_equal_uninterrupted(
    whole_of_two: dict[str, Any], tmp_path: Path, end: Callable[[subprocess.Popen[str]], None]
) -> None:
    """After resuming, weights, buffers, optimizer and the random states of both ranks equal the uninterrupted run."""
    path = tmp_path / "last.ckpt"
    ended = fit(tmp_path, *TWO)
    wait_for_step(ended, path, 8)
    end(ended)
    assert 8 <= state(path)["global_step"] < 18, "it was ended before the end, in the middle of an epoch"
    assert len(state(path)["rng_states"]) == 2
    finish(fit(tmp_path, *TWO, "--ckpt_path", str(path)))
    assert_same_bits(state(path), whole_of_two)


def test_a_rank_that_dies_ends_the_launching_command(tmp_path: Path) -> None:
    """If a rank dies, the command ends within a minute, its exit code and last line say so, and no process is left."""
    process = fit(tmp_path, *TWO)
    wait_for_step(process, tmp_path / "last.ckpt", 2)
    os.kill(rank_one(process), signal.SIGKILL)
    error = finish(process, 128 + signal.SIGKILL, 60)  # this waits for all processes that hold the pipe
    assert "local rank 1 was killed by SIGKILL" in error.splitlines()[-1]
