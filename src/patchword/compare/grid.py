"""Running a grid: finished runs are skipped, interrupted runs resume, and failed runs do not stop the others."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from statistics import fmean
from subprocess import Popen, TimeoutExpired
from types import FrameType
from typing import Literal

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from patchword.compare.run import Run

INTERVAL = 5  # seconds between two looks at the progress of a run

End = Literal["finished", "already finished", "failed", "interrupted", "not started", "active in another process"]


@dataclass
class Outcome:
    """How a run ended, and why it failed; the reason is empty if it did not fail."""

    run: Run
    end: End
    reason: str = ""


@dataclass
class Grid:
    """Several runs and how to execute them.

    Attributes:
        runs: The runs, in order of execution.
        jobs: The number of runs at a time.
        threads: The number of CPU threads of each run; None for torch's default.
        stopped: The signal that stopped the grid; 0 if there was none.
    """

    runs: Sequence[Run]
    jobs: int = 1
    threads: int | None = None
    stopped: int = 0
    _processes: set[Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def carry_out(self, progress: Progress) -> list[Outcome]:
        """Execute all unfinished runs. SIGINT and SIGTERM are passed to the runs, which save their state and end."""
        remaining = [run for run in self.runs if not run.finished]
        outcomes = [Outcome(run, "already finished") for run in self.runs if run.finished]
        clock = Clock(progress, len(self.runs), len(outcomes), self.jobs)
        numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, self._stop) for number in numbers}
        try:
            with ThreadPoolExecutor(self.jobs) as pool:
                futures = [pool.submit(self._carry_out_one, run, clock) for run in remaining]
                outcomes += [future.result() for future in futures]
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return outcomes

    def _carry_out_one(self, run: Run, clock: Clock) -> Outcome:
        if self.stopped:
            return Outcome(run, "not started")
        with run.claimed() as lock:
            if lock is None:
                clock.say(f"[yellow]{escape(run.name)}: another process is using {escape(str(run.folder))}")
                return Outcome(run, "active in another process")
            if run.finished:  # Another process has finished it in the meantime.
                clock.say(f"{escape(run.name)}: finished by another process")
                return Outcome(run, "already finished")
            run.note()
            clock.begin(run)
            for stage in run.stages:
                with self._lock:
                    process = None if self.stopped else run.start(stage, lock, self.threads)
                    if process:
                        self._processes.add(process)
                code = clock.wait(run, stage, process) if process else 0
                with self._lock:
                    self._processes -= {process}
                if self.stopped and (process is None or code):
                    clock.end(run, "interrupted", counts=False)
                    return Outcome(run, "interrupted")
                if code or (stage == "test" and not run.finished):
                    reason = run.failure(stage, code)
                    clock.end(run, f"[red]failed:[/] {escape(reason)} (see {escape(str(run.log(stage)))})")
                    return Outcome(run, "failed", reason)
                run.note_end(stage)
            clock.end(run, "finished")
            return Outcome(run, "finished")

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Pass the signal to the runs; a second Ctrl-C stops them without saving."""
        with self._lock:
            self.stopped = number
            processes = list(self._processes)
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number) if number == signal.SIGTERM else process.send_signal(number)


class Clock:
    """The progress of a grid with `jobs` runs at a time: a bar for all runs, and a bar and a line for each run."""

    def __init__(self, progress: Progress, runs: int, done: int, jobs: int) -> None:
        self.progress = progress
        self.jobs = jobs
        self.task: TaskID = progress.add_task("runs", total=runs, completed=done, left="")
        self.left = runs - done
        self.took: list[float] = []
        self.began: dict[str, float] = {}

    def say(self, line: str) -> None:
        """Print a line."""
        self.progress.console.print(line, highlight=False, soft_wrap=True)

    def begin(self, run: Run) -> None:
        """Print that a run starts."""
        self.began[run.name] = time.monotonic()
        self.say(f"{escape(run.name)}: {'resumes from its checkpoint' if run.begun else 'starts'}")
        self._show()

    def wait(self, run: Run, stage: str, process: Popen[bytes]) -> int:
        """Show how far a run is until its process ends, and return the exit code."""
        task = self.progress.add_task(f"{escape(run.name)}: {stage}", total=None, left="")
        if stage == "test":
            self.say(f"{escape(run.name)} is trained; its test starts")
        try:
            while True:
                if stage == "fit":
                    steps, epoch, epochs = run.progress()
                    self.progress.update(task, completed=epoch, total=epochs, left=f"epochs, step {steps}")
                with suppress(TimeoutExpired):
                    return process.wait(timeout=INTERVAL)
        finally:
            self.progress.remove_task(task)

    def end(self, run: Run, how: str, counts: bool = True) -> None:
        """Print that a run has ended, and update the bar; `counts` is False for an interrupted run."""
        took = time.monotonic() - self.began.pop(run.name)
        self.say(f"{escape(run.name)}: {how} after {duration(took)}")
        if counts:
            self.took.append(took)
            self.left -= 1
            self.progress.advance(self.task)
        self._show()
        task = self.progress.tasks[0]
        if counts and self.left and not self.progress.console.is_terminal:
            self.say(f"{self.left} of {task.total:.0f} runs remaining, {task.fields['left']}")

    def _show(self) -> None:
        """Estimate the remaining time from the mean duration of the runs so far."""
        if self.took and self.left:
            now, mean = time.monotonic(), fmean(self.took)
            at_work = sum(min(now - began, mean) for began in self.began.values())
            seconds = max(mean * self.left - at_work, 0) / min(self.jobs, self.left)
            text = f"about {duration(seconds)} left"
        else:
            text = "" if self.left else "done"
        self.progress.update(self.task, left=text)


def bar() -> Progress:
    """Create the progress bar of the grid."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )


def duration(seconds: float) -> str:
    """Format a duration as hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))
