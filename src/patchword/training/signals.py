"""Handles SIGTERM and Ctrl-C: the signal is recorded at once, and all ranks stop between two steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import torch
from lightning.pytorch import Trainer

from patchword.data.worker_signals import STOP
from patchword.distributed import maximum, world_size


class StopSignals:
    """Records SIGTERM, SIGINT (Ctrl-C) and SLURM's signal to requeue; a SIGINT after a stop signal acts at once.

    Attributes:
        received: The largest signal number received so far (SIGTERM is larger than SIGINT); 0 if there was no signal.
        requeue: Lightning's handler of the requeue signal, which saves a checkpoint and calls `scontrol requeue`.
    """

    def __init__(self, trainer: Trainer) -> None:
        """Replace Lightning's handlers, which call collectives in the middle of other collectives and can hang.

        Call this before Lightning registers its handlers. Lightning restores the previous handlers at the end.
        """
        self.received = 0
        connector = trainer._signal_connector
        self.requeue = connector._slurm_sigusr_handler_fn
        connector._sigterm_notifier_fn = self.note  # type: ignore[method-assign, assignment]
        connector._slurm_sigusr_handler_fn = self.note  # type: ignore[method-assign, assignment]

    def listen_to_sigint(self) -> None:
        """Register the handler of SIGINT; must be called after Lightning has recorded the handlers that it restores."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self.note)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if number == signal.SIGINT and self.received in STOP:
            raise KeyboardInterrupt
        self.received = max(self.received, number)

    def forget(self, number: int) -> None:
        """Mark a signal as handled, unless a larger one has been received since."""
        if self.received == number:
            self.received = 0

    def agreed(self, trainer: Trainer) -> int:
        """The largest number that any rank has received; all ranks must call this at the same place."""
        if world_size() == 1:
            return self.received
        return int(maximum(torch.tensor(self.received, device=trainer.strategy.root_device)))


def obey_at_once(trainer: Trainer) -> None:
    """Let SIGTERM end this process at once, because there is nothing to save. Lightning's own handler can hang."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    trainer._signal_connector._sigterm_notifier_fn = end  # type: ignore[method-assign, assignment]
