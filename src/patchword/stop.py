"""SIGTERM and Ctrl-C as a wish to stop: noted at once, obeyed by all ranks between two steps."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from types import FrameType

import torch
from lightning.pytorch import Trainer

from patchword.distributed import maximum, world_size

STOP = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Notes SIGTERM, SIGINT (Ctrl-C) and SLURM's signal to requeue; a SIGINT after one to stop acts at once.

    Attributes:
        received: The largest number so far (SIGTERM before SIGINT); 0 where there was none.
        requeue: Lightning's handler of the signal to requeue, which saves and calls `scontrol requeue`.
    """

    def __init__(self, trainer: Trainer) -> None:
        """Take the place of Lightning's handlers, which call collectives in the midst of others and can hang.

        To be called before Lightning registers them. Lightning restores the handlers that it has found.
        """
        self.received = 0
        connector = trainer._signal_connector
        self.requeue = connector._slurm_sigusr_handler_fn
        connector._sigterm_notifier_fn = self.note  # type: ignore[method-assign, assignment]
        connector._slurm_sigusr_handler_fn = self.note  # type: ignore[method-assign, assignment]

    def listen_to_sigint(self) -> None:
        """To be called after Lightning has recorded the handlers that it restores."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self.note)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler."""
        if number == signal.SIGINT and self.received in STOP:
            raise KeyboardInterrupt
        self.received = max(self.received, number)

    def forget(self, number: int) -> None:
        """This signal has been dealt with; a larger one that came since has not."""
        if self.received == number:
            self.received = 0

    def agreed(self, trainer: Trainer) -> int:
        """The largest number that any rank has received; all ranks must ask at the same place."""
        if world_size() == 1:
            return self.received
        return int(maximum(torch.tensor(self.received, device=trainer.strategy.root_device)))


def obey_at_once(trainer: Trainer) -> None:
    """Let SIGTERM end this process where nothing is to be saved; Lightning's handler can hang, see `StopSignals`."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    trainer._signal_connector._sigterm_notifier_fn = end  # type: ignore[method-assign, assignment]


def outlive_signals(worker: int) -> None:
    """A `worker_init_fn`: the loader's worker ends when its loader tells it to, not when everybody is signalled.

    SLURM and terminals signal all processes of a job. A worker that dies of it ends the training that wanted to save
    first.

    Args:
        worker: The worker's number, which does not matter.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_obey, args=(parent.pid,), daemon=True).start()


def _obey(parent: int | None) -> None:
    while signal.sigwaitinfo(STOP).si_pid != parent:
        pass
    os._exit(0)
