"""Keep data workers alive when all processes of a job receive a signal."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

STOP = (signal.SIGTERM, signal.SIGINT)


def outlive_signals(worker: int) -> None:
    """Make a worker end only when its loader stops it; a `worker_init_fn`.

    SLURM and terminals send signals to all processes of a job. A worker that dies from such a signal would end the
    training before it can save a checkpoint.

    Args:
        worker: The worker's number; it is not used.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_obey, args=(parent.pid,), daemon=True).start()


def _obey(parent: int | None) -> None:
    while signal.sigwaitinfo(STOP).si_pid != parent:
        pass
    os._exit(0)
