"""The processes of one run end together, and the one at fault has the last word.

Lightning starts the other processes of a machine from the first. When one of them fails, it kills all of them, the
first included, up to five seconds later; a first process that is done by then exits with 0; one that is killed leaves
the others to a collective, which on GPUs waits for minutes.
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

PATIENCE = 10.0  # seconds that a process leaves to the one at fault, to say why or to end it
ENOUGH = 60.0  # seconds between the ends of two processes that have both done their work
ORDERLY = (0, 128 + signal.SIGTERM, 128 + signal.SIGINT)  # exit codes on which all processes have agreed

_children: list[subprocess.Popen[bytes]] = []  # of the ranks that this process has started and that still run
_lock = threading.Lock()


def end_with_launcher() -> None:
    """In a process that a launcher (Lightning's, torchrun) has started: end within a second of the launcher's death."""
    if "LOCAL_RANK" in os.environ:
        threading.Thread(target=_watch_launcher, args=(os.getppid(),), daemon=True).start()


def watch_children(trainer: Trainer) -> None:
    """Once a process that the trainer's strategy will start has failed, end all of them with its exit code."""
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

    if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        threading.Thread(target=_watch_children, args=(trainer.strategy.launcher,), daemon=True).start()


def kill_children() -> None:
    """End the processes that this one has started: it has an error to tell, of which theirs are consequences."""
    with _lock:
        for child in _children:
            child.kill()
        _children.clear()


def wait_for_children() -> None:
    """Let the processes that this one has started end; one that does not is killed, which is an error."""
    end = time.monotonic() + ENOUGH
    while _children and time.monotonic() < end:
        time.sleep(0.05)
    if _children:
        kill_children()
        sys.stderr.write(f"patchword: error: another rank still runs {ENOUGH:.0f} s after this one; it is killed\n")
        _exit(1)


def has_lost_another(error: BaseException) -> bool:
    """Whether `error` only says that another process of the run does not answer."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def let_others_speak() -> None:
    """Wait to be ended by the process that is at fault."""
    time.sleep(PATIENCE)


def let_the_first_speak() -> None:
    """In a rank other than 0, wait to be ended by rank 0, which may have the same to say: errors are said once."""
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
    launcher.procs.clear()  # leaves nothing to do to Lightning's own observer
    local_rank = {child.pid: number for number, child in enumerate(_children, 1)}
    while _children:
        time.sleep(0.1)
        with _lock:
            for child in [child for child in _children if child.poll() is not None]:
                _children.remove(child)
                if child.returncode not in ORDERLY:
                    _end_all(local_rank[child.pid], child.returncode)


def _end_all(rank: int, code: int) -> NoReturn:
    """End with a child's exit code; a child that was killed could not say why."""
    for child in _children:
        child.kill()
    if code < 0:
        hint = "; out of memory?" if -code == signal.SIGKILL else ""
        sys.stderr.write(f"patchword: error: local rank {rank} was killed by {signal.Signals(-code).name}{hint}\n")
    _exit(code if code > 0 else 128 - code)


def _exit(code: int) -> NoReturn:
    """End this process, wherever its main thread is, and the workers of its data loaders."""
    for worker in multiprocessing.active_children():
        worker.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
