"""One run at a time computes the features of a folder; runs that start together do not compute them twice."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from patchword.errors import UserError


@contextmanager
def one_run(folder: Path, trainer: Any) -> Iterator[None]:
    """Hold a lock on `folder` for all devices of a run, and wait until other runs have released theirs.

    The system releases the lock if the process is killed. On a file system without locks, runs do not wait.

    Args:
        folder: The folder. It is created if it does not exist.
        trainer: The `Trainer`; its first device holds the lock.

    Raises:
        UserError: If the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot write the features to {folder}: {error.strerror}") from error
    try:
        waiting = False
        # Short broadcasts, because a collective operation fails if it waits for many minutes.
        while not trainer.strategy.broadcast(trainer.global_rank > 0 or _is_locked(held)):
            if not waiting:
                rank_zero_info(f"another run computes the features in {folder}: waiting for it")
            waiting = True
            time.sleep(1)
        yield
    finally:
        os.close(held)


def _is_locked(held: int) -> bool:
    """Try to get the lock, and return whether this process has it; True on a file system without locks."""
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True
