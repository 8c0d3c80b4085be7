"""Train on rows that can only be read in order: an endless stream, divided into epochs of a fixed length."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count, islice
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from patchword.data.batch import Batch, Sample, Skipped, collate
from patchword.data.loader import own_generator, require_numbers
from patchword.data.skipping import BrokenSample, too_many
from patchword.data.tables.rows import Row, RowReader
from patchword.data.tables.sources import is_downloaded, read_on
from patchword.data.worker_signals import outlive_signals
from patchword.data.workers import WorkerLoader
from patchword.errors import UserError

if TYPE_CHECKING:
    from datasets import IterableDataset as Rows

Numbered = tuple[int, str, Row]  # position, in which pass of which process, row


class RowStream(IterableDataset[Batch]):
    """Endless batches of rows, shuffled again in every pass through the data.

    A batch consumes as many rows as it has samples, even if some are broken: the next intact row replaces a broken one
    and also keeps its own later turn. So the number of batches alone determines the position in the stream.

    Args:
        rows: The rows of this device.
        reader: Makes samples from the rows.
        place: The name of the rows in messages.
        batch_size: Number of samples in a batch.
        shuffle_buffer: Number of rows from which the next one is drawn; the order of files is also random.
        seed: Seed of the shuffling.
        rank: Index of this device.
        max_broken: The largest number of broken samples.

    Attributes:
        origin: Number that distinguishes streams that begin at different times of a training run.
        start: Number of batches that each process skips.
    """

    origin: int = 0
    start: int = 0

    def __init__(
        self,
        rows: Rows,
        reader: RowReader,
        place: str,
        batch_size: int,
        shuffle_buffer: int,
        seed: int,
        rank: int,
        max_broken: int,
    ) -> None:
        self.rows = rows
        self.reader = reader
        self.place = place
        self.batch_size = batch_size
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        self.rank = rank
        self.max_broken = max_broken

    def __iter__(self) -> Iterator[Batch]:
        rows = self._endless()
        waiting: deque[Numbered] = deque()
        for number in count():
            of_batch = [waiting.popleft() if waiting else next(rows) for _ in range(self.batch_size)]
            if number >= self.start:
                yield collate(self._samples(of_batch, _ahead(waiting, rows)))

    def _endless(self) -> Iterator[Numbered]:
        """Yield this process's rows, pass by pass; `datasets` gives each worker process its own files."""
        worker = get_worker_info()
        part = worker.id if worker else 0
        for number in count():
            generator = np.random.default_rng([self.seed, self.origin, number])
            position = 0
            rows = self.rows.shuffle(generator=generator, buffer_size=self.shuffle_buffer)
            for row in read_on(rows, self.place):
                if is_downloaded(row):
                    yield position, f"pass {number} of process {part} on device {self.rank}", row
                    position += 1
            if not position:
                raise UserError(
                    f"{self.place} has no rows for process {part} of device {self.rank}: use fewer workers or devices"
                )

    def _samples(self, rows: list[Numbered], ahead: Iterator[Numbered]) -> list[Sample]:
        """Return one sample per row of `rows`; replacements of broken samples come last."""
        skipped: list[Skipped] = []
        samples = [*self._read(rows, skipped)]
        samples += islice(self._read(ahead, []), len(rows) - len(samples))
        samples[0] = replace(samples[0], skipped=skipped)
        return samples

    def _read(self, rows: Iterable[Numbered], skipped: list[Skipped]) -> Iterator[Sample]:
        for position, where, row in rows:
            key = f"{self.place}, {self.reader.name(row) or f'row {position} in {where}'}"
            try:
                yield self.reader.train(row, position, key, Random(f"{self.seed} {self.origin} {where} {position}"))
            except BrokenSample as error:
                skipped.append(Skipped(key, str(error)))
                if len(skipped) > self.max_broken:
                    raise too_many(skipped, self.max_broken) from None


def _ahead(waiting: deque[Numbered], rows: Iterator[Numbered]) -> Iterator[Numbered]:
    """Yield the next rows without removing them from `waiting`."""
    for i in count():
        if i == len(waiting):
            waiting.append(next(rows))
        yield waiting[i]


class StreamLoader:
    """A loader with a fixed number of batches per epoch; each epoch continues where the previous one ended.

    The state is the number of batches that were returned. With the same numbers of processes and devices, a run resumes
    with exactly the remaining batches: it reads past the earlier rows without decoding images. With other numbers, it
    can resume only from the end of an epoch, and a new pass through the data begins.

    Args:
        stream: The stream of this device.
        steps: Number of batches in an epoch.
        num_workers: Number of processes that read; 0 reads in the training process.
        world_size: Number of devices.
    """

    def __init__(self, stream: RowStream, steps: int, num_workers: int, world_size: int) -> None:
        require_numbers(stream.batch_size, num_workers)
        self.stream = stream
        self.steps = steps
        self.num_workers = num_workers
        self.world_size = world_size
        self._batches: Iterator[Batch] | None = None
        self._handed_out = 0
        self._step = 0
        self._restored: dict[str, int] | None = None

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        self._step = self._restore() % self.steps
        while self._step < self.steps:
            if self._batches is None:
                self._batches = self._open()
            batch = next(self._batches)
            self._step += 1
            self._handed_out += 1
            yield batch

    def close(self) -> None:
        """Stop the reading processes immediately; the next pass starts new ones."""
        self._batches = None

    def state_dict(self) -> dict[str, int]:
        """Return the number of returned batches, the stream's origin, and what the content of batches depends on."""
        return self._restored or {
            "handed_out": self._handed_out,
            "step": self._step,
            "origin": self.stream.origin,
            **self._content(),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next pass resume from `state`; if it cannot, requesting its first batch raises UserError."""
        self._restored = state

    def _restore(self) -> int:
        """Apply the restored state and return the step of the epoch to resume from."""
        state, self._restored = self._restored, None
        if state is None:
            return 0
        self._batches = None
        self._handed_out, self.stream.origin = state["handed_out"], state["origin"]
        for name, now in self._content().items():
            if state[name] != now:
                if state["step"] % self.steps:
                    raise UserError(
                        f"the checkpoint was made in the middle of an epoch (after batch {state['step']}) with {name} "
                        f"{state[name]}, but now it is {now}: use the same value, or resume from a checkpoint that was "
                        "made at the end of an epoch"
                    )
                self.stream.origin = self._handed_out
        return state["step"]

    def _content(self) -> dict[str, int]:
        stream = self.stream
        return {
            "data.num_workers": self.num_workers,
            "number of devices": self.world_size,
            "data.batch_size": stream.batch_size,
            "data.shuffle_buffer": stream.shuffle_buffer,
            "data.seed": stream.seed,
        }

    def _open(self) -> Iterator[Batch]:
        processes = max(self.num_workers, 1)
        rounds, rest = divmod(self._handed_out - self.stream.origin, processes)
        self.stream.start = rounds  # the processes take turns
        loader = WorkerLoader(
            self.stream,
            batch_size=None,
            num_workers=self.num_workers,
            worker_init_fn=outlive_signals,
            pin_memory=torch.cuda.is_available(),
            generator=own_generator(),
        )
        batches: Iterator[Any] = iter(loader)
        for _ in range(rest):
            next(batches)
        return batches
