"""`patchword compare` as a user runs it: everything is run once, goes on where it was, and says what failed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PLAN = {
    "name": "tiny",
    "claim": "Nothing: this is a test.",
    "baseline": "CLIP",
    "seeds": [0],
    "variants": {"CLIP": {"config": "configs/clip.yaml"}, "SPARC": {"config": "configs/sparc.yaml"}},
}
SMALL = [
    *("--data.batch_size", "16", "--data.train_size", "96", "--data.val_size", "16", "--data.test_size", "16"),
    *(
        "--data.num_workers",
        "0",
        "--trainer.max_epochs",
        "1",
        "--maps.samples",
        "1",
        "--trainer.log_every_n_steps",
        "1",
    ),
    *("--trainer.accelerator", "cpu", "--trainer.enable_model_summary", "false"),
]


def start(folder: Path, *arguments: str, plan: dict[str, Any] = PLAN) -> subprocess.Popen[str]:
    """Start a comparison in `folder`."""
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    command = [sys.executable, "-m", "patchword", "compare", "--config", "plan.yaml", *arguments, *SMALL]
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """What a comparison that ends with this code has printed."""
    out, error = process.communicate(timeout=900)
    assert process.returncode == code, out + error
    assert "Traceback" not in error
    return out + error


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "test" / "results.json").read_text())


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    for _ in range(6000):
        if condition():
            return
        assert process.poll() is None, finish(process)
        time.sleep(0.05)
    process.kill()
    raise AssertionError("five minutes have passed")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a comparison has come to its end without a disturbance."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "printed.txt").write_text(finish(start(folder)))
    return folder


@pytest.mark.slow
def test_every_run_leaves_what_an_ordinary_run_leaves(whole: Path) -> None:
    """Resolved configuration, metrics, checkpoint, results, maps; runs of a seed are pairs; then the report."""
    runs = [whole / "runs/tiny" / variant / "seed_0" for variant in PLAN["variants"]]
    for run in runs:
        for name in ("fit/config.yaml", "fit/metrics.csv", "fit/checkpoints/last.ckpt", "test/results.json"):
            assert (run / name).is_file(), name
        assert list((run / "test/maps").glob("test_*.npz"))
        assert "written:" in (run / "test.log").read_text()
    clip, sparc = (results(run)["measured"] for run in runs)
    assert clip["definition"] == sparc["definition"]
    assert clip["definition"]["splits"]["test"]["samples"] == 16
    for key in ("encoder_at_start", "data_order"):
        assert clip["trained"][key] == sparc["trained"][key], key
    assert clip["model"]["objective"] != sparc["model"]["objective"]
    assert yaml.safe_load((whole / "runs/tiny/compare.yaml").read_text())["baseline"] == "CLIP"
    printed = (whole / "printed.txt").read_text()
    assert "Nothing: this is a test." in printed
    assert "2 finished" in printed
    assert (whole / "runs/tiny/report.html").is_file()


@pytest.mark.slow
def test_finished_runs_are_left_out(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("results.json")}
    began = time.monotonic()
    assert "2 was finished" in finish(start(whole))
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("results.json")}
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_other_settings_in_the_same_folder_are_refused(whole: Path) -> None:
    """Nothing old is taken for a result of what is asked for now."""
    printed = finish(start(whole, "--model.tokens", "all"), code=2)
    assert "holds a run with --model.tokens not given, and now it is all" in printed
    assert "delete" in printed


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_ends_in_the_same_numbers(whole: Path, tmp_path: Path) -> None:
    """Interrupted in its training, then in its test, a run ends as if nothing had happened; so do its curves."""
    checkpoint = tmp_path / "runs/tiny/CLIP/seed_0/fit/checkpoints/last.ckpt"
    only = ("--only", "CLIP", "--checkpoint.every_n_train_steps", "2")
    process = start(tmp_path, *only)
    wait_for(checkpoint.exists, process)
    process.send_signal(signal.SIGINT)
    printed = finish(process, code=130)
    assert "1 interrupted" in printed
    assert "the same command goes on" in printed
    assert not (tmp_path / "runs/tiny/CLIP/seed_0/test/results.json").exists()

    process = start(tmp_path, *only)
    wait_for((tmp_path / "runs/tiny/CLIP/seed_0/test.log").exists, process)
    process.send_signal(signal.SIGINT)
    assert "goes on from its checkpoint" in finish(process, code=130)

    log = tmp_path / "runs/tiny/CLIP/seed_0/fit.log"
    fits = log.read_text().count("$ patchword fit")
    finish(start(tmp_path, *only))
    assert log.read_text().count("$ patchword fit") == fits, "a training that has ended is not begun again"
    resumed, plain = (folder / "runs/tiny/CLIP/seed_0" for folder in (tmp_path, whole))
    assert results(resumed)["metrics"] == results(plain)["metrics"]
    curves = [(run / "fit/metrics.csv").read_text() for run in (resumed, plain)]
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_a_failed_run_is_told_and_does_not_stop_the_rest(tmp_path: Path) -> None:
    """Its reason stands on the terminal; the others finish; the exit code says that something is missing."""
    variants = {
        "broken": {"config": "configs/clip.yaml", "model.objective.temperture": 1},
        "CLIP": PLAN["variants"]["CLIP"],
    }
    process = start(tmp_path, "--jobs", "2", plan={**PLAN, "variants": variants})
    printed = finish(process, code=1)
    assert (
        "broken, seed 0: failed: fit ended with 2: CLIP has no option 'temperture'; did you mean temperature?"
        in printed
    )
    assert "1 failed" in printed
    assert "1 finished" in printed
    assert (tmp_path / "runs/tiny/CLIP/seed_0/test/results.json").is_file()


def test_a_run_that_another_process_works_on_is_left_to_it(tmp_path: Path) -> None:
    """Two comparisons can share a grid; nobody writes into a folder that is in use."""
    folder = tmp_path / "runs/tiny/CLIP/seed_0"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        printed = finish(start(tmp_path, "--only", "CLIP"))
    assert "another process is at work in runs/tiny/CLIP/seed_0" in printed
    assert "1 at work elsewhere" in printed
    assert not (folder / "fit").exists()


def test_a_broken_note_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "runs/tiny/CLIP/seed_0"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{")
    assert "run.json is broken: delete" in finish(start(tmp_path), code=2)
    shutil.rmtree(folder)
