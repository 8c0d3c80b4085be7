"""A data loader that can resume in the middle of an epoch with exactly the remaining batches."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler

from patchword.data.batch import Sample, collate
from patchword.data.worker_signals import outlive_signals
from patchword.data.workers import PATIENCE, WorkerLoader, most_workers
from patchword.errors import UserError


@runtime_checkable
class Ordered(Protocol):
    """A data set that defines the order of its samples in an epoch."""

    def order(self, generator: torch.Generator, batch: int) -> Int64[Tensor, " N"]:
        """Return all N indices, shuffled only with random numbers from `generator`, for batches of `batch` samples."""
        ...


@runtime_checkable
class PerEpoch(Protocol):
    """A data set whose samples differ between epochs; it also accepts a tuple (index, epoch) as an index."""

    def at(self, index: int, epoch: int) -> Sample:
        """Return the sample at `index` for the given epoch."""
        ...


class ResumableSampler(DistributedSampler[Sample]):
    """A DistributedSampler that can skip the beginning of an epoch.

    The order depends only on (seed, epoch); an `Ordered` data set defines it itself. Samples are dealt to the ranks in
    turn, so that in one step N ranks see the same samples as one rank with N times the batch size. This is a
    DistributedSampler even on one device, because Lightning sets the epoch of such a sampler and does not replace it
    on several devices.

    Attributes:
        start: Number of this rank's samples to skip.
        batch: Number of samples in a batch over all ranks.
    """

    start: int = 0
    batch: int = 1

    def __iter__(self) -> Iterator[Any]:
        own = self.order()[self.rank : self.total_size : self.num_replicas]
        indices = map(int, own[self.start :].numpy())
        return ((index, self.epoch) for index in indices) if isinstance(self.dataset, PerEpoch) else indices

    def order(self) -> Int64[Tensor, " N"]:
        """Return the order of all ranks' samples in the current epoch."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if isinstance(self.dataset, Ordered):
            return self.dataset.order(generator, self.batch)
        return torch.randperm(len(self.dataset), generator=generator)  # type: ignore[arg-type]


class SameOrder(SequentialSampler):
    """A SequentialSampler that knows the epoch, which Lightning sets."""

    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Store the epoch; the order does not depend on it."""
        self.epoch = epoch


class ResumableLoader(WorkerLoader):
    """A DataLoader whose state is a position in an epoch; Lightning saves and restores it with its checkpoints.

    The loader counts the batches that it has returned, not the batches that workers have prepared. It prepares the
    first batch of a pass only when that batch is requested, because Lightning calls `iter` before it sets the sampler's
    epoch.

    The position is global, over all ranks. A run can resume from it with the same batches if the number of workers
    changes, or if the number of ranks changes and the total batch does not. Other changes raise an error.
    """

    _handed_out: int = 0
    _restored: dict[str, int] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # `Trainer(overfit_batches=...)` recreates this loader with a sampler that does not know the epoch.
        if type(kwargs.get("sampler")) is SequentialSampler:
            kwargs["sampler"] = SameOrder(kwargs["sampler"].data_source)
        super().__init__(*args, **kwargs)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        restored, self._restored = self._restored, None
        same_epoch = restored is not None and restored["epoch"] == self._epoch
        self._handed_out = self._place(restored) if restored and same_epoch else 0
        left_out = self._handed_out
        if isinstance(self.sampler, ResumableSampler):
            self.sampler.start = self._handed_out * (self.batch_size or 1)
            left_out = 0
        for batch in islice(super().__iter__(), left_out, None):
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the current epoch, the number of batches returned in it, and what batches depend on."""
        return self._restored or {"epoch": self._epoch, "batches": self._handed_out, **self._content()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next pass skip the batches that were already returned, if it is a pass through the same epoch.

        If the batches of such a pass differ from those of the state, requesting its first batch raises UserError.
        """
        self._restored = state
        if isinstance(self.sampler, (ResumableSampler, SameOrder)):
            self.sampler.set_epoch(state["epoch"])

    def order_checksum(self) -> int | None:
        """Return a checksum of the current epoch's order over all ranks; None if `Trainer` replaced the sampler."""
        if not isinstance(self.sampler, ResumableSampler):
            return None
        return zlib.crc32(self.sampler.order().numpy().tobytes())

    @property
    def _epoch(self) -> int:
        return getattr(self.sampler, "epoch", 0)

    def _content(self) -> dict[str, int]:
        """Return the total batch size, the number of samples, and a checksum of the current epoch's order."""
        order = self.order_checksum()
        if order is None:
            return {}
        return {
            "total_batch": (self.batch_size or 1) * self.sampler.num_replicas,  # type: ignore[attr-defined]
            "samples": len(self.dataset),  # type: ignore[arg-type]
            "order": order,
        }

    def _place(self, state: dict[str, int]) -> int:
        """Return how many batches of this epoch to skip; states of earlier versions lack the compared entries."""
        content = self._content()
        had = content | state
        place = state["batches"] % (had["samples"] // had["total_batch"] if content else len(self))
        for name, now in content.items():
            if place and had[name] != now:
                raise UserError(
                    f"the checkpoint was made in the middle of an epoch (after batch {place}), with "
                    f"{self._difference(name, had[name])}, or resume from a checkpoint that was made at the end of an "
                    "epoch"
                )
        return place

    def _difference(self, name: str, had: int) -> str:
        """Describe why this loader cannot resume in the middle of an epoch, and what to do."""
        now = self._content()[name]
        if name == "samples":
            return f"{had} samples, but now there are {now}: use the same data"
        if name == "order":
            return "the samples in another order: use the same seed and the same data options"
        size = self.batch_size or 1
        ranks = now // size
        remedy = f"use a number of devices that divides {had}"
        if had % ranks == 0:
            remedy = f"set data.batch_size to {had // ranks}"
        present = f"now there are {size} on each of {ranks} device(s)"
        return f"{had} pairs per batch over all devices, but {present}: {remedy}"


def training_loader(
    dataset: Dataset[Sample], batch_size: int, seed: int, num_workers: int, world_size: int, rank: int
) -> ResumableLoader:
    """Create a loader of shuffled, resumable batches of `batch_size` samples on each device.

    An incomplete last batch is dropped. With 0 workers, the training process prepares the batches.

    Raises:
        UserError: If the data set does not fill one batch on every device.
    """
    require_numbers(batch_size, num_workers)
    size = len(dataset)  # type: ignore[arg-type]
    if size < batch_size * world_size:
        raise UserError(
            f"{size} training samples do not fill a batch of {batch_size} on {world_size} device(s): "
            "lower batch_size or add training samples"
        )
    sampler = ResumableSampler(dataset, world_size, rank, shuffle=True, seed=seed, drop_last=True)
    sampler.batch = batch_size * world_size
    return ResumableLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=outlive_signals,
        pin_memory=torch.cuda.is_available(),
        drop_last=True,
        persistent_workers=num_workers > 0,
        timeout=PATIENCE if num_workers else 0,
        generator=own_generator(),
    )


def evaluation_loader(
    dataset: Dataset[Any], batch_size: int, num_workers: int, collate_fn: Callable[[list[Any]], Any] = collate
) -> DataLoader[Any]:
    """Create a loader of all samples in order; on several devices Lightning distributes them."""
    require_numbers(batch_size, num_workers)
    return WorkerLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate_fn,
        worker_init_fn=outlive_signals,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        timeout=PATIENCE if num_workers else 0,
        generator=own_generator(),
    )


def require_numbers(batch_size: int, num_workers: int) -> None:
    """Check the batch size and the number of worker processes.

    Raises:
        UserError: If one of them is too small, or if there are more processes than this machine can use.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be 1 or more, not {batch_size}")
    if num_workers < 0:
        raise UserError(f"num_workers must be 0 (no extra processes) or more, not {num_workers}")
    if num_workers > most_workers():
        most = f"{most_workers()} or less on this machine with {os.cpu_count()} CPU core(s)"
        raise UserError(f"num_workers must be {most}, not {num_workers}")


def own_generator() -> torch.Generator:
    """Return a generator for a loader, so that it does not draw unused seeds from torch's global generator."""
    return torch.Generator().manual_seed(0)
