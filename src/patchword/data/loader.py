"""A data loader that goes on in the middle of an epoch, with the very batches that were still to come."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from patchword.data.batch import Sample, collate
from patchword.errors import InputError


class ResumableSampler(DistributedSampler[Sample]):
    """A DistributedSampler that can leave out the beginning of an epoch.

    The order depends on (seed, epoch) alone. It is a DistributedSampler even on one device, because Lightning
    tells such a sampler the epoch, and leaves it in place on several devices.

    Attributes:
        start: Number of this rank's samples to leave out.
    """

    start: int = 0

    def __iter__(self) -> Iterator[Any]:
        return islice(super().__iter__(), self.start, None)


class ResumableLoader(DataLoader[Sample]):
    """A DataLoader whose state is a place in an epoch: Lightning stores and restores it with its checkpoints.

    It counts the batches that it has handed out, not those that workers have prepared. The first batch of a pass
    is prepared when it is asked for, since Lightning calls `iter` before it tells the sampler the epoch.
    """

    _handed_out: int = 0
    _restored: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        restored, self._restored = self._restored, None
        same_epoch = restored is not None and restored["epoch"] == self._epoch
        self._handed_out = restored["batches"] % len(self) if restored and same_epoch else 0
        if isinstance(self.sampler, ResumableSampler):
            self.sampler.start = self._handed_out * (self.batch_size or 1)
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The present epoch and the number of its batches that were handed out."""
        return self._restored or {"epoch": self._epoch, "batches": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next pass leave out the batches that were handed out, if it is a pass through the same epoch."""
        self._restored = state
        if isinstance(self.sampler, ResumableSampler):
            self.sampler.set_epoch(state["epoch"])

    @property
    def _epoch(self) -> int:
        # `Trainer(overfit_batches=...)` puts a sampler without epochs into the loader.
        return self.sampler.epoch if isinstance(self.sampler, ResumableSampler) else 0


def training_loader(
    dataset: Dataset[Sample], batch_size: int, seed: int, num_workers: int, world_size: int, rank: int
) -> ResumableLoader:
    """Shuffled, resumable batches of one size; what remains of an epoch is dropped.

    Args:
        dataset: A map-style data set.
        batch_size: Samples per batch on each device.
        seed: Each seed shuffles in another way.
        num_workers: Processes that prepare batches; 0 prepares them in the training process.
        world_size: Number of devices that share the data set.
        rank: Which of them this is.

    Raises:
        InputError: If the data set does not fill one batch on every device.
    """
    _require_numbers(batch_size, num_workers)
    size = len(dataset)  # type: ignore[arg-type]
    if size < batch_size * world_size:
        raise InputError(
            f"{size} training samples do not fill a batch of {batch_size} on {world_size} device(s): "
            "lower batch_size or add training samples"
        )
    sampler = ResumableSampler(dataset, world_size, rank, shuffle=True, seed=seed, drop_last=True)
    return ResumableLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        drop_last=True,
        persistent_workers=num_workers > 0,
        generator=_own_generator(),
    )


def evaluation_loader(dataset: Dataset[Sample], batch_size: int, num_workers: int) -> DataLoader[Sample]:
    """All samples in their order; on several devices Lightning shares them out.

    Args:
        dataset: A map-style data set.
        batch_size: Samples per batch on each device.
        num_workers: Processes that prepare batches; 0 prepares them in the calling process.
    """
    _require_numbers(batch_size, num_workers)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        generator=_own_generator(),
    )


def _require_numbers(batch_size: int, num_workers: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, not {batch_size}")
    if num_workers < 0:
        raise InputError(f"num_workers must be 0 (no extra processes) or more, not {num_workers}")


def _own_generator() -> torch.Generator:
    """Keeps a loader from drawing its workers' seeds, which nothing here uses, from torch's global generator."""
    return torch.Generator().manual_seed(0)
