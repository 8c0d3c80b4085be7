"""Processes that load data: limits on their number, on shared memory for their batches, and on waiting times."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from patchword.errors import UserError

SHARED_MEMORY = Path("/dev/shm")
PATIENCE = 600  # seconds for one batch of a map-style data set, after which a worker counts as hanging
QUEUES = 2**18  # bytes for the locks of a worker's queues and its first messages
AHEAD = 2  # number of batches that each worker prepares in advance; torch's default


class WorkerLoader(DataLoader[Any]):
    """A DataLoader whose workers raise a clear error if their batches do not fit into shared memory.

    Workers pass tensors through `/dev/shm`, which is small in containers. If it is full, torch's workers wait
    forever or die without an explanation.
    """

    def _get_iterator(self) -> Any:
        if self.num_workers == 0:
            return super()._get_iterator()
        require_shared_memory(self.num_workers * QUEUES, self.num_workers)
        if not callable(signal.getsignal(signal.SIGCHLD)):
            # torch sets its handler, which notices that a worker has died, only once in a process, and a Lightning
            # trainer resets all handlers when it ends. Without it, a dead worker is noticed after `PATIENCE`.
            signal_handling._SIGCHLD_handler_set = False
        collate = self.collate_fn
        self.collate_fn = _Fitting(collate, self.num_workers)
        try:
            return super()._get_iterator()
        finally:
            self.collate_fn = collate


def most_workers() -> int:
    """Return the largest allowed `num_workers`: 4 per CPU core, but at least 32."""
    return max(4 * (os.cpu_count() or 1), 32)


@dataclass
class _Fitting:
    """Make a batch with `collate` in a worker, if the batches of all `workers` fit into the free shared memory."""

    collate: Callable[[Any], Any]
    workers: int
    _first: bool = True

    def __call__(self, samples: Any) -> Any:
        batch = self.collate(samples)
        size = bytes_of(batch)
        # All workers start at the same time. Later, the batches that they have prepared already occupy memory.
        require_shared_memory(size * self.workers * AHEAD if self._first else size, self.workers)
        self._first = False
        return batch


def require_shared_memory(needed: int, workers: int) -> None:
    """Check that the batches of the workers, which need `needed` bytes, fit into shared memory.

    Raises:
        UserError: If they do not fit; the message states how much is needed and free, and what to do.
    """
    if SHARED_MEMORY.is_dir() and (free := shutil.disk_usage(SHARED_MEMORY).free) < needed:
        raise UserError(
            f"the batches of {workers} process(es) that load data need {needed / 1e6:.1f} MB of shared memory, and "
            f"{SHARED_MEMORY} has {free / 1e6:.1f} MB free: set data.num_workers to 0, lower data.batch_size, or give "
            "the container more (docker run --shm-size)"
        )


def bytes_of(value: Any) -> int:
    """Return the bytes of all tensors in a batch, in dataclasses, dictionaries, lists and tuples of any depth."""
    if isinstance(value, Tensor):
        return value.nbytes
    if is_dataclass(value):
        return bytes_of(vars(value))
    if isinstance(value, dict):
        return sum(map(bytes_of, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(bytes_of, value))
    return 0
