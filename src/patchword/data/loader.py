"""A data loader that goes on in the middle of an epoch, with the very batches that were still to come."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from patchword.data.batch import Sample, collate
from patchword.errors import InputError
from patchword.stop import outlive_signals


@runtime_checkable
class Ordered(Protocol):
    """A data set that says in which order an epoch shows its samples."""

    def order(self, generator: torch.Generator) -> Int64[Tensor, " N"]:
        """All N indices, shuffled with random numbers of `generator` alone."""
        ...


@runtime_checkable
class PerEpoch(Protocol):
    """A data set whose samples differ from epoch to epoch; a tuple of index and epoch is an index, too."""

    def at(self, index: int, epoch: int) -> Sample:
        """The sample at `index` as an epoch shows it."""
        ...


class ResumableSampler(DistributedSampler[Sample]):
    """A DistributedSampler that can leave out the beginning of an epoch.

    The order depends on (seed, epoch) alone, and is the data set's own if it is `Ordered`. Ranks take turns, so that
    N ranks see in a step what one rank would see with N times the batch. It is a DistributedSampler even on one device,
    because Lightning tells such a sampler the epoch, and leaves it in place on several devices.

    Attributes:
        start: Number of this rank's samples to leave out.
    """

    start: int = 0

    def __iter__(self) -> Iterator[Any]:
        own = self.order()[self.rank : self.total_size : self.num_replicas]
        indices = map(int, own[self.start :].numpy())
        return ((index, self.epoch) for index in indices) if isinstance(self.dataset, PerEpoch) else indices

    def order(self) -> Int64[Tensor, " N"]:
        """The order of all ranks' samples in the present epoch."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if isinstance(self.dataset, Ordered):
            return self.dataset.order(generator)
        return torch.randperm(len(self.dataset), generator=generator)  # type: ignore[arg-type]


class ResumableLoader(DataLoader[Sample]):
    """A DataLoader whose state is a place in an epoch: Lightning stores and restores it with its checkpoints.

    It counts the batches that it has handed out, not those that workers have prepared. The first batch of a pass
    is prepared when it is asked for, since Lightning calls `iter` before it tells the sampler the epoch.

    The place is one in the epoch of all ranks. Other numbers of workers, and other numbers of ranks with the same batch
    over all of them, go on from it with the same batches; what cannot go on from it is refused.
    """

    _handed_out: int = 0
    _restored: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        restored, self._restored = self._restored, None
        same_epoch = restored is not None and restored["epoch"] == self._epoch
        self._handed_out = self._place(restored) if restored and same_epoch else 0
        if isinstance(self.sampler, ResumableSampler):
            self.sampler.start = self._handed_out * (self.batch_size or 1)
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The present epoch, the number of its batches that were handed out, and what their content depends on."""
        return self._restored or {"epoch": self._epoch, "batches": self._handed_out, **self._content()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next pass leave out the batches that were handed out, if it is a pass through the same epoch.

        Such a pass raises InputError when its first batch is asked for, if its batches are not those of the state.
        """
        self._restored = state
        if isinstance(self.sampler, ResumableSampler):
            self.sampler.set_epoch(state["epoch"])

    def order_checksum(self) -> int | None:
        """Of the order in which all ranks see the samples of the present epoch; None where `Trainer` replaced it."""
        if not isinstance(self.sampler, ResumableSampler):
            return None
        return zlib.crc32(self.sampler.order().numpy().tobytes())

    @property
    def _epoch(self) -> int:
        # `Trainer(overfit_batches=...)` puts a sampler without epochs into the loader.
        return self.sampler.epoch if isinstance(self.sampler, ResumableSampler) else 0

    def _content(self) -> dict[str, int]:
        """Pairs in a batch of all ranks, number of samples, and a checksum of the present epoch's order."""
        order = self.order_checksum()
        if order is None:
            return {}
        return {
            "total_batch": (self.batch_size or 1) * self.sampler.num_replicas,  # type: ignore[attr-defined]
            "samples": len(self.dataset),  # type: ignore[arg-type]
            "order": order,
        }

    def _place(self, state: dict[str, int]) -> int:
        """How many batches of this epoch to leave out; states of earlier versions lack what is compared here."""
        content = self._content()
        had = content | state
        place = state["batches"] % (had["samples"] // had["total_batch"] if content else len(self))
        for name, now in content.items():
            if place and had[name] != now:
                raise InputError(
                    f"the checkpoint was made in the middle of an epoch (after batch {place}), with "
                    f"{self._difference(name, had[name])}, or resume from a checkpoint of an epoch's end"
                )
        return place

    def _difference(self, name: str, had: int) -> str:
        """What keeps this loader from going on in the middle of an epoch, and what to do."""
        now = self._content()[name]
        if name == "samples":
            return f"{had} samples, and now there are {now}: give the same data"
        if name == "order":
            return "the samples in another order: give the same seed and the same options of the data"
        size = self.batch_size or 1
        ranks = now // size
        remedy = (
            f"set data.batch_size to {had // ranks}"
            if had % ranks == 0
            else f"use a number of devices that divides {had}"
        )
        return f"{had} pairs in a batch of all devices, and now there are {size} on each of {ranks} device(s): {remedy}"


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
    require_numbers(batch_size, num_workers)
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
        worker_init_fn=outlive_signals,
        pin_memory=torch.cuda.is_available(),
        drop_last=True,
        persistent_workers=num_workers > 0,
        generator=own_generator(),
    )


def evaluation_loader(
    dataset: Dataset[Any], batch_size: int, num_workers: int, collate_fn: Callable[[list[Any]], Any] = collate
) -> DataLoader[Any]:
    """All samples in their order; on several devices Lightning shares them out.

    Args:
        dataset: A map-style data set.
        batch_size: Samples per batch on each device.
        num_workers: Processes that prepare batches; 0 prepares them in the calling process.
        collate_fn: Makes a batch of samples.
    """
    require_numbers(batch_size, num_workers)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate_fn,
        worker_init_fn=outlive_signals,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        generator=own_generator(),
    )


def require_numbers(batch_size: int, num_workers: int) -> None:
    """Refuse a size of batches or a number of processes that means nothing.

    Raises:
        InputError: If one is too small.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, not {batch_size}")
    if num_workers < 0:
        raise InputError(f"num_workers must be 0 (no extra processes) or more, not {num_workers}")


def own_generator() -> torch.Generator:
    """Keeps a loader from drawing its workers' seeds, which nothing here uses, from torch's global generator."""
    return torch.Generator().manual_seed(0)
