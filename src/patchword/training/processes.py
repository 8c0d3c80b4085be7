"""Ends all processes of a run together, and lets the process that failed report the error.

Lightning starts the other processes of a machine from the first one. When one of them fails, Lightning kills all of
them, including the first, up to five seconds later. If the first process has finished by then, it exits with code 0. If
the first process is killed, the others wait in a collective, on GPUs for minutes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

PATIENCE = 10.0  # seconds that a process waits for the failed process to report its error or to end this one
ENOUGH = 60.0  # maximum seconds between the ends of two successful processes
ORDERLY = (0, 128 + signal.SIGTERM, 128 + signal.SIGINT)  # exit codes that all processes agree on

_children: list[subprocess.Popen[bytes]] = []  # running ranks that this process has started
_lock = threading.Lock()


def end_with_launcher() -> None:
    """If a launcher (Lightning's or torchrun) started this process, end it within a second of the launcher's death."""
    if "LOCAL_RANK" in os.environ:
        threading.Thread(target=_watch_launcher, args=(os.getppid(),), daemon=True).start()


def watch_children(trainer: Trainer) -> None:
    """If a process that the trainer's strategy starts fails, end all processes with its exit code."""
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

    if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        threading.Thread(target=_watch_children, args=(trainer.strategy.launcher,), daemon=True).start()


def kill_children() -> None:
    """Kill the processes that this one has started. This process reports the error that caused theirs."""
    with _lock:
        for child in _children:
            child.kill()
        _children.clear()


def wait_for_children() -> None:
    """Wait for the processes that this one has started. If one does not end, kill it and exit with an error."""
    end = time.monotonic() + ENOUGH
    while _children and time.monotonic() < end:
        time.sleep(0.05)
    if _children:
        kill_children()
        sys.stderr.write(
            f"patchword: error: another rank still runs {ENOUGH:.0f} s after this one has ended; it was killed\n"
        )
        _exit(1)


def has_lost_another(error: BaseException) -> bool:
    """Whether `error` only says that another process of the run does not respond."""
    if not isinstance(error, RuntimeError):  # importing torch for other errors takes seconds
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo/transport" in str(error)


def let_others_speak() -> None:
    """Wait until the failed process ends this one."""
    time.sleep(PATIENCE)


def let_the_first_speak() -> None:
    """On other ranks than 0, wait until rank 0 ends this one, so that an error on all ranks is reported once."""
    if any(int(os.environ.get(name) or 0) > 0 for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        time.sleep(PATIENCE)


def _watch_launcher(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(0.5)
    _exit(1)


def _watch_children(launcher: _SubprocessScriptLauncher) -> None:
    while len(launcher.procs) < launcher.num_processes - 1:
        time.sleep(0.1)
    _children.extend(launcher.procs)
    launcher.procs.clear()  # so that Lightning's own observer has nothing to do
    local_rank = {child.pid: number for number, child in enumerate(_children, 1)}
    while _children:
        time.sleep(0.1)
        with _lock:
            for child in [child for child in _children if child.poll() is not None]:
                _children.remove(child)
                if child.returncode not in ORDERLY:
                    _end_all(local_rank[child.pid], child.returncode)


def _end_all(rank: int, code: int) -> NoReturn:
    """Exit with a child's exit code, and report a child that was killed and could not report it itself."""
    for child in _children:
        child.kill()
    if code < 0:
        hint = "; out of memory?" if -code == signal.SIGKILL else ""
        sys.stderr.write(f"patchword: error: local rank {rank} was killed by {signal.Signals(-code).name}{hint}\n")
    _exit(code if code > 0 else 128 - code)


def _exit(code: int) -> NoReturn:
    """End this process and the workers of its data loaders at once, whatever its main thread does."""
    for worker in multiprocessing.active_children():
        worker.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
