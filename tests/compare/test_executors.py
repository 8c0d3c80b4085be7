"""A comparison on executors: submitit's local one, a pool of processes, Ray, and executors that lose jobs."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import yaml

from patchword.compare.command import compare, prepare
from patchword.compare.executors import execute_all, submitit_executor
from patchword.errors import UserError
from tests.compare.test_compare import PLAN, SMALL, finish, results, start

PAGE = (Path(__file__).parents[2] / "docs/scaling.md").read_text()


class Here:
    """An executor that calls functions at once, and loses the jobs of some runs."""

    def __init__(self, lost: str = "") -> None:
        self.lost = lost
        self.submitted: list[str] = []

    def submit(self, function: Any, *arguments: Any) -> Future[Any]:
        (run,) = arguments
        self.submitted.append(run.variant)
        future: Future[Any] = Future()
        if run.variant == self.lost:
            future.set_exception(RuntimeError("the node\nfailed"))
        else:
            future.set_result(function(run))
        return future


@pytest.mark.slow
def test_submitit_runs_every_run_as_a_job(tmp_path: Path) -> None:
    """Jobs leave the same files, the report is written, and a second command finds everything finished."""
    jobs = ("--submitit", "cluster=local", "timeout_min=10", "--only", "CLIP")
    printed = finish(start(tmp_path, *jobs))
    assert "submitting 1 jobs; their logs are in runs/tiny/jobs" in printed
    assert "1 finished" in printed
    assert results(tmp_path / "runs/tiny/CLIP/seed_0")["metrics"]
    assert list((tmp_path / "runs/tiny/jobs").glob("*.out"))
    assert (tmp_path / "runs/tiny/report.html").is_file()
    assert "1 already finished" in finish(start(tmp_path, *jobs))


@pytest.mark.slow
def test_a_lost_job_is_a_failed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that does not return, and a run that ends with an error, have a reason and do not stop the others."""
    monkeypatch.chdir(tmp_path)
    plan = PLAN | {"variants": {**PLAN["variants"], "wrong": {"model.objective.no_option": 1}}}
    Path("plan.yaml").write_text(yaml.safe_dump(plan | {"config": "configs/clip.yaml"}))
    _, runs, _ = prepare("plan.yaml", only=["SPARC", "wrong"], further=SMALL)
    executor = Here(lost="SPARC")
    lost, wrong = execute_all(runs, executor)
    assert executor.submitted == ["SPARC", "wrong"]
    assert (lost.end, lost.reason) == ("failed", "RuntimeError: the node failed")
    assert wrong.end == "failed"
    assert "no_option" in wrong.reason


def test_compare_reports_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished runs are not submitted, and without a finished run there is no report."""
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(yaml.safe_dump(PLAN))
    outcomes = compare("plan.yaml", Here(lost="CLIP"), only=["CLIP"])
    assert [(outcome.run.name, outcome.end) for outcome in outcomes] == [("CLIP, seed 0", "failed")]
    assert not Path("runs/tiny/report.html").exists()
    assert yaml.safe_load(Path("runs/tiny/compare.yaml").read_text())["variants"].keys() == {"CLIP"}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (["slurm_partition"], "--submitit slurm_partition: write KEY=VALUE"),
        (["cluster=local", "partition=gpu"], "--submitit: .*partition"),
        (["cluster=nowhere"], "--submitit: .*nowhere"),
    ],
)
def test_mistakes_in_parameters(parameters: list[str], message: str, tmp_path: Path) -> None:
    """A parameter that submitit does not know gets one message."""
    with pytest.raises(UserError, match=message):
        submitit_executor(parameters, tmp_path, "name")


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["cluster.py", "ray_cluster.py"])
def test_programs_on_the_page(name: str, tmp_path: Path) -> None:
    """The programs in docs/scaling.md carry out a plan, on processes and on Ray."""
    (code,) = [block for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S) if f"# {name}\n" in block]
    (tmp_path / name).write_text(code)
    subprocess.run([sys.executable, name], cwd=tmp_path, check=True, timeout=900)
    assert list(tmp_path.glob("runs/*/CLIP/seed_0/test/results.json"))
    assert list(tmp_path.glob("runs/*/report.html"))
