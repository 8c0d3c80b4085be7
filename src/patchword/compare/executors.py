"""A comparison on a cluster: each run is a job of an executor, such as those of submitit and `concurrent.futures`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import yaml

from patchword.compare.grid import Grid, Outcome, bar
from patchword.compare.run import Run
from patchword.errors import UserError


@runtime_checkable
class Job(Protocol):
    """What an executor returns for a function that it will call."""

    def result(self) -> Any:
        """Wait for the end of the function, and return its result."""


@runtime_checkable
class Executor(Protocol):
    """What calls functions elsewhere, such as `concurrent.futures.ProcessPoolExecutor`."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Job:
        """Call `function(*arguments)` elsewhere."""


def execute(run: Run) -> Outcome:
    """Train and test one run on this machine; a finished run is skipped, and an interrupted one resumes."""
    with bar() as progress:
        (outcome,) = Grid([run]).carry_out(progress)
    return outcome


def execute_all(runs: Sequence[Run], executor: Executor) -> list[Outcome]:
    """Submit every unfinished run as a job, and wait for all of them.

    Jobs must see the same files under the same paths. A job that is lost counts as failed; its run resumes if it is
    submitted again. A run that another process or host is using is not started a second time.
    """
    jobs = {run.name: executor.submit(execute, run) for run in runs if not run.finished}
    return [_outcome(run, jobs.get(run.name)) for run in runs]


def submitit_executor(parameters: Sequence[str], folder: Path, name: str) -> Executor:
    """An executor of submitit, which writes the logs of jobs to `folder`.

    Args:
        parameters: Parameters of `submitit.AutoExecutor` as KEY=VALUE, such as `slurm_partition=gpu`. The parameter
            `cluster` chooses `slurm`, which is the default where it is installed, or `local`.
        folder: The folder of the logs.
        name: The name of the jobs.

    Raises:
        UserError: If submitit is not installed, or does not accept a parameter.
    """
    try:
        from submitit import AutoExecutor
    except ImportError as error:
        raise UserError("--submitit needs submitit: pip install 'patchword[slurm]'") from error
    options: dict[str, Any] = {}
    for parameter in parameters:
        key, equals, value = parameter.partition("=")
        if not equals:
            raise UserError(f"--submitit {parameter}: write KEY=VALUE, such as slurm_partition=gpu")
        options[key] = yaml.safe_load(value)
    try:
        executor = AutoExecutor(folder, cluster=options.pop("cluster", None))
        executor.update_parameters(name=name, **options)
    except Exception as error:  # submitit raises errors of many kinds
        raise UserError(f"--submitit: {' '.join(str(error).split())}") from error
    return executor


def _outcome(run: Run, job: Job | None) -> Outcome:
    if job is None:
        return Outcome(run, "already finished")
    try:
        return job.result()
    except Exception as error:  # a job can be lost in many ways
        return Outcome(run, "failed", " ".join(f"{type(error).__name__}: {error}".split())[:500])
