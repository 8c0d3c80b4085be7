"""Runs every part in its own process, within the time that is left for it."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch

from gpu_parts.rows import Row, Setup
from patchword.bench.measure import explain

# The share of the budget after which a part must end; what it leaves goes to the next. Each is imported in its own
# process only, so that a missing package ends one part.
ENDS = {
    "gpu_parts.memory": 0.16,
    "gpu_parts.jpeg": 0.20,
    "gpu_parts.agreement": 0.35,
    "gpu_parts.two_processes": 0.50,
    "gpu_parts.steps": 1.0,
}
GRACE = 10  # seconds that a part gets to finish a case that began in time


def all_rows(setup: Setup, budget: float) -> Iterator[Row]:
    """Yield the rows of all parts as they are measured, during about `budget` seconds."""
    context = multiprocessing.get_context("forkserver")
    # The fork server imports the packages once and does not start CUDA, so every part can start it.
    context.set_forkserver_preload(["patchword", "patchword.bench.measure", "patchword.verify.modes"])
    start = time.monotonic()
    for module, share in ENDS.items():
        end = start + share * budget
        if time.monotonic() < end:
            yield from _rows(context, module, setup, end)
        else:
            yield Row(part_of(module), "all cases", note="SKIPPED: the time budget is used up")


def measured(module: str, setup: Setup, end: float) -> Iterator[Row]:
    """Yield the row of each case of a part. A failure is a row, and so is a case for which no time is left."""
    part = part_of(module)
    try:
        for case, measure in importlib.import_module(module).cases(setup):
            if time.monotonic() > end:
                yield Row(part, case, note="SKIPPED: the time budget is used up")
                continue
            try:
                row = Row(part, case, **measure())
            except Exception as error:
                row = Row(part, case, note=f"FAILED: {explain(error)}")
            yield row
            gc.collect()
            if setup.device == "cuda":
                torch.cuda.empty_cache()
    except Exception as error:
        yield Row(part, "the rest", note=f"FAILED: {explain(error)}")


def part_of(module: str) -> str:
    """Return the name of a part in the table."""
    return module.rpartition(".")[2]


def _rows(context: Any, module: str, setup: Setup, end: float) -> Iterator[Row]:
    """Yield the rows of one part, and a row that says so if its process had to be ended or died."""
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(there, module, setup, end))
    process.start()
    there.close()
    try:
        while here.poll(max(end + GRACE - time.monotonic(), 0)):
            yield here.recv()
        yield Row(part_of(module), "the rest", note="ENDED: the time budget is used up")
    except EOFError:
        process.join()
        if process.exitcode:
            yield Row(part_of(module), "the rest", note=f"FAILED: it died with exit code {process.exitcode}")
    finally:
        if process.is_alive():
            _kill(process.pid)
        process.join()
        here.close()


def _run(parent: Connection, module: str, setup: Setup, end: float) -> None:
    """Send the rows of one part; this runs in its own process."""
    os.setpgrp()
    for row in measured(module, setup, end):
        parent.send(row)


def _kill(leader: int) -> None:
    """End the process of a part and the processes that it has started."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:  # it has not yet become the leader of a group
        os.kill(leader, signal.SIGKILL)
