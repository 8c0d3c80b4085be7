"""`patchword compare` on the command line: it runs everything once, resumes, and reports failures."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from patchword.compare.command import main
from patchword.compare.grid import Grid, bar
from patchword.compare.run import Run
from patchword.errors import UserError
from tests.report import fake

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
    """Wait for a comparison to end with this exit code, and return its output."""
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
    """A folder with a comparison that ran without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "printed.txt").write_text(finish(start(folder)))
    return folder


@pytest.mark.slow
def test_every_run_leaves_what_an_ordinary_run_leaves(whole: Path) -> None:
    """Runs have the usual files, runs with the same seed are paired, and the report is written."""
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
    assert "2 already finished" in finish(start(whole))
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("results.json")}
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_other_settings_in_the_same_folder_are_refused(whole: Path) -> None:
    """Results of other settings are not reused."""
    printed = finish(start(whole, "--model.token_selection", "all"), code=2)
    assert "a run with --model.token_selection not given, but now it is all" in printed
    assert "delete" in printed


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_ends_in_the_same_numbers(whole: Path, tmp_path: Path) -> None:
    """A run that is interrupted in training and in its test ends with the same results and curves."""
    checkpoint = tmp_path / "runs/tiny/CLIP/seed_0/fit/checkpoints/last.ckpt"
    only = ("--only", "CLIP", "--checkpoint.every_n_train_steps", "2")
    process = start(tmp_path, *only)
    wait_for(checkpoint.exists, process)
    process.send_signal(signal.SIGINT)
    printed = finish(process, code=130)
    assert "1 interrupted" in printed
    assert not (tmp_path / "runs/tiny/CLIP/seed_0/test/results.json").exists()

    process = start(tmp_path, *only)
    wait_for((tmp_path / "runs/tiny/CLIP/seed_0/test.log").exists, process)
    process.send_signal(signal.SIGINT)
    assert "resumes from its checkpoint" in finish(process, code=130)

    log = tmp_path / "runs/tiny/CLIP/seed_0/fit.log"
    fits = log.read_text().count("$ patchword fit")
    finish(start(tmp_path, *only))
    assert log.read_text().count("$ patchword fit") == fits, "a finished training is not repeated"
    resumed, plain = (folder / "runs/tiny/CLIP/seed_0" for folder in (tmp_path, whole))
    assert results(resumed)["metrics"] == results(plain)["metrics"]
    curves = [(run / "fit/metrics.csv").read_text() for run in (resumed, plain)]
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_a_failed_run_is_told_and_does_not_stop_the_rest(tmp_path: Path) -> None:
    """The reason of the failure is printed, the other runs finish, and the exit code is 1."""
    variants = {
        "broken": {"config": "configs/clip.yaml", "model.objective.temperture": 1},
        "CLIP": PLAN["variants"]["CLIP"],
    }
    process = start(tmp_path, "--jobs", "2", plan={**PLAN, "variants": variants})
    printed = finish(process, code=1)
    assert (
        "broken, seed 0: failed: fit ended with exit code 2: model.objective: CLIP has no option "
        "'temperture'; did you mean temperature?" in printed
    )
    assert "1 failed" in printed
    assert "1 finished" in printed
    assert (tmp_path / "runs/tiny/CLIP/seed_0/test/results.json").is_file()


@pytest.mark.parametrize(("name", "said"), [("KILL", "memory ran out: use fewer --jobs"), ("SEGV", "by SIGSEGV")])
def test_a_killed_run_is_not_explained_by_the_last_line_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    """A killed process writes no error, so the reason is its signal; SIGKILL points at the memory."""

    def start(run: Run, stage: str, *_: Any) -> subprocess.Popen[bytes]:
        run.log(stage).write_text("an innocent line")
        return subprocess.Popen(["sh", "-c", f"kill -{name} $$"])

    monkeypatch.setattr(Run, "start", start)
    with pytest.raises(SystemExit) as ended:
        compare(tmp_path, monkeypatch)
    printed = "".join(capfd.readouterr())
    assert said in printed
    assert "innocent" not in printed
    assert "2 failed" in printed
    assert ended.value.code == 1


def compare(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run a comparison in `folder`, in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    Path("plan.yaml").write_text(yaml.safe_dump(PLAN))
    main(["compare", "--config", "plan.yaml", *arguments])


def test_a_run_that_another_process_works_on_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A folder in use is not written to, and the exit code of the comparison is 1."""
    folder = fake.comparison(tmp_path / "runs/tiny", {"CLIP": 0.5, "SPARC": 0.6}, seeds=(0,)) / "CLIP/seed_0"
    (folder / "test/results.json").unlink()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit) as ended:
            compare(tmp_path, monkeypatch)
    assert ended.value.code == 1
    printed = "".join(capfd.readouterr())
    assert "another process is using runs/tiny/CLIP/seed_0" in printed
    assert "1 already finished, 1 active in another process" in printed
    assert "1 of 2 runs are not finished" in printed
    assert not (folder / "fit.log").exists()
    assert (tmp_path / "runs/tiny/report.html").is_file()


@pytest.mark.parametrize("content", ["", "{", '{"metrics": {}}', "[" * 100_000])
def test_broken_results_are_named_and_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], content: str
) -> None:
    """A run with a truncated `results.json` is not finished."""
    folder = fake.comparison(tmp_path / "runs/tiny", {"CLIP": 0.5, "SPARC": 0.6}, seeds=(0,)) / "CLIP/seed_0"
    (folder / "fit/done").touch()
    (folder / "test/results.json").write_text(content)
    compare(tmp_path, monkeypatch, "--dry-run")
    out, error = capfd.readouterr()
    (line,) = out.splitlines()
    assert line.startswith("patchword test ")
    assert "runs/tiny/CLIP/seed_0/test/results.json" in error
    assert "testing CLIP, seed 0 again" in error


def test_a_run_that_another_process_has_finished_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that another comparison has finished in the meantime is not tested again."""
    folder = fake.comparison(tmp_path / "runs/tiny", {"CLIP": 0.5}, seeds=(0,)) / "CLIP/seed_0"
    run = Run("CLIP", 0, folder, ())
    monkeypatch.setattr(Run, "finished", property(lambda self: (folder / ".lock").exists()))  # once it is claimed
    with bar() as progress:
        assert [outcome.end for outcome in Grid([run]).carry_out(progress)] == ["already finished"]
    assert not (folder / "fit.log").exists()


def test_a_broken_note_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs/tiny/CLIP/seed_0"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json is broken: delete"):
        compare(tmp_path, monkeypatch)
