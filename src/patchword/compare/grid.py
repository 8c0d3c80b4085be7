"""Run a grid: finished runs are left out, interrupted ones go on, failed ones do not stop the rest."""

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
from subprocess import Popen
from types import FrameType
from typing import Literal

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from patchword.compare.run import Run

End = Literal["finished", "was finished", "failed", "interrupted", "not begun", "at work elsewhere"]


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        run: The run.
        end: How: finished now or before, failed, interrupted or not begun; or another process is at work on it.
        reason: Why it failed.
    """

    run: Run
    end: End
    reason: str = ""


@dataclass
class Grid:
    """Runs, and how they are carried out.

    Attributes:
        runs: The runs, in their order.
        jobs: How many at a time.
        threads: Of each run's computations; None for torch's default.
    """

    runs: Sequence[Run]
    jobs: int = 1
    threads: int | None = None
    _processes: set[Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: int = 0

    def carry_out(self, progress: Progress) -> list[Outcome]:
        """Run what is not finished. SIGINT and SIGTERM are passed on to the runs, which save their state and end.

        Args:
            progress: Shows how far the grid is.
        """
        remaining = [run for run in self.runs if not run.finished]
        outcomes = [Outcome(run, "was finished") for run in self.runs if run.finished]
        clock = Clock(progress, len(self.runs), len(outcomes), self.jobs)
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with ThreadPoolExecutor(self.jobs) as pool:
                futures = [pool.submit(self._carry_out_one, run, clock) for run in remaining]
                outcomes += [future.result() for future in futures]
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return outcomes

    @property
    def stopped(self) -> int:
        """The signal that stopped the grid; 0 where none did."""
        return self._stopped

    def _carry_out_one(self, run: Run, clock: Clock) -> Outcome:
        if self._stopped:
            return Outcome(run, "not begun")
        with run.claimed() as lock:
            if lock is None:
                clock.say(f"[yellow]{escape(run.name)}: another process is at work in {escape(str(run.folder))}")
                return Outcome(run, "at work elsewhere")
            run.note()
            clock.begin(run)
            for stage in run.stages:
                with self._lock:
                    process = None if self._stopped else run.start(stage, lock, self.threads)
                    if process:
                        self._processes.add(process)
                code = process.wait() if process else 0
                with self._lock:
                    self._processes -= {process}
                if self._stopped and (process is None or code):
                    clock.end(run, "interrupted", counts=False)
                    return Outcome(run, "interrupted")
                if code or (stage == "test" and not run.finished):
                    reason = f"{stage} ended with {code}: {run.last_words(stage)}"
                    clock.end(run, f"[red]failed:[/] {escape(reason)} (see {escape(str(run.log(stage)))})")
                    return Outcome(run, "failed", reason)
                run.note_end(stage)
            clock.end(run, "finished")
            return Outcome(run, "finished")

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Pass the signal on; a second Ctrl-C makes runs stop without saving."""
        with self._lock:
            self._stopped = number
            processes = list(self._processes)
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number) if number == signal.SIGTERM else process.send_signal(number)


class Clock:
    """The progress of the grid: a bar with the time that is left, and a line for each run.

    Args:
        progress: Draws it.
        runs: All runs.
        done: Those that are finished already.
        jobs: How many run at a time.
    """

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
        """A run begins."""
        self.began[run.name] = time.monotonic()
        self.say(f"{escape(run.name)}: {'goes on from its checkpoint' if run.begun else 'begins'}")
        self._show()

    def end(self, run: Run, how: str, counts: bool = True) -> None:
        """A run has ended."""
        took = time.monotonic() - self.began.pop(run.name)
        self.say(f"{escape(run.name)}: {how} after {duration(took)}")
        if counts:
            self.took.append(took)
            self.left -= 1
            self.progress.advance(self.task)
        self._show()
        task = self.progress.tasks[0]
        if counts and self.left and not self.progress.console.is_terminal:
            self.say(f"{self.left} of {task.total:.0f} runs to go, {task.fields['left']}")

    def _show(self) -> None:
        """The time left, from the mean of the runs so far; the present runs' time is part of it."""
        if self.took and self.left:
            now = time.monotonic()
            at_work = sum(min(now - began, self._mean) for began in self.began.values())
            seconds = max(self._mean * self.left - at_work, 0) / min(self.jobs, self.left)
            text = f"about {duration(seconds)} left"
        else:
            text = "" if self.left else "done"
        self.progress.update(self.task, left=text)

    @property
    def _mean(self) -> float:
        return sum(self.took) / len(self.took)


def bar() -> Progress:
    """How far the grid is, on a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))
