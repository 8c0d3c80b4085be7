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


class StopSignals:
    """Notes the first SIGTERM or SIGINT (Ctrl-C); a second SIGINT is a KeyboardInterrupt at once.

    Attributes:
        received: The signal's number; 0 where there was none.
    """

    def __init__(self) -> None:
        self.received = 0

    def listen_to_sigterm(self, trainer: Trainer) -> None:
        """Take the place of Lightning's handler, which calls a collective in the midst of others and can hang.

        To be called before Lightning registers it. Lightning restores the handlers it has found.
        """
        trainer._signal_connector._sigterm_notifier_fn = self.note  # type: ignore[method-assign, assignment]

    def listen_to_sigint(self) -> None:
        """To be called after Lightning has recorded the handlers that it restores."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self.note)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler."""
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number

    def agreed(self, trainer: Trainer) -> int:
        """The largest number that any rank has received; all ranks must ask at the same place."""
        if world_size() == 1:
            return self.received
        return int(maximum(torch.tensor(self.received, device=trainer.strategy.root_device)))


def outlive_signals(worker: int) -> None:
    """A `worker_init_fn`: the loader's worker ends when its loader tells it to, not when everybody is signalled.

    SLURM and terminals signal all processes of a job. A worker that dies of it ends the training that wanted to save
    first.

    Args:
        worker: The worker's number, which does not matter.
    """
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_obey, args=(parent.pid, signals), daemon=True).start()


def _obey(parent: int | None, signals: set[signal.Signals]) -> None:
    while signal.sigwaitinfo(signals).si_pid != parent:
        pass
    os._exit(0)
