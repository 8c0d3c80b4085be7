"""Training on rows that can only be read in their order: an endless stream, cut into epochs of a declared length."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count, islice
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from patchword.data.batch import Batch, Sample, Skipped, collate
from patchword.data.loader import own_generator, require_numbers
from patchword.data.rows import BrokenSample, Row, RowReader
from patchword.data.skipping import too_many
from patchword.data.sources import is_downloaded, read_on
from patchword.errors import InputError
from patchword.stop import outlive_signals

if TYPE_CHECKING:
    from datasets import IterableDataset as Rows

Numbered = tuple[int, str, Row]  # position, in which pass of which process, row


class RowStream(IterableDataset[Batch]):
    """Endless batches of rows, shuffled anew in every pass through the data.

    A batch takes as many rows as it has samples, whatever is broken: in a broken sample's place stands the next one
    that is whole, which has its own turn besides. So the place in the stream is known from the number of batches alone.

    Args:
        rows: The rows of this device.
        reader: Makes samples of them.
        place: Names the rows in messages.
        batch_size: Samples in a batch.
        shuffle_buffer: Rows from which the next one is drawn at random; the order of files is random besides.
        seed: Each seed shuffles in another way.
        rank: Which device this is.
        max_broken: So many samples may be broken.

    Attributes:
        origin: Distinguishes streams that begin at different times of a training run.
        start: Batches that each process leaves out.
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
        """This process's rows, pass by pass; `datasets` gives each process of a loader its own files."""
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
                raise InputError(f"{self.place} has no rows for process {part} of device {self.rank}: use fewer")

    def _samples(self, rows: list[Numbered], ahead: Iterator[Numbered]) -> list[Sample]:
        """A sample for each of `rows`; those in the places of broken ones come last."""
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
    """The rows that come next; they stay in `waiting`."""
    for i in count():
        if i == len(waiting):
            waiting.append(next(rows))
        yield waiting[i]


class StreamLoader:
    """Batches of a stream, as many in an epoch as was declared; the next epoch goes on where the last one ended.

    Its state is the number of batches that it has handed out. From it the same numbers of processes and devices go on
    with the very batches that were still to come: they read past the rows before, without decoding images. With other
    numbers only an epoch's end can be gone on from, and a new pass through the data begins.

    Args:
        stream: The stream of this device.
        steps: Batches in an epoch.
        num_workers: Processes that read; 0 reads in the training process.
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
        """End the reading processes at once; the next pass starts others."""
        self._batches = None

    def state_dict(self) -> dict[str, int]:
        """How many batches were handed out, of which stream, and what their content depends on."""
        return self._restored or {
            "handed_out": self._handed_out,
            "step": self._step,
            "origin": self.stream.origin,
            **self._content(),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next pass go on from there; it raises InputError when its first batch is asked for, if it cannot."""
        self._restored = state

    def _restore(self) -> int:
        """The step of the epoch to go on from."""
        state, self._restored = self._restored, None
        if state is None:
            return 0
        self._batches = None
        self._handed_out, self.stream.origin = state["handed_out"], state["origin"]
        for name, now in self._content().items():
            if state[name] != now:
                if state["step"] % self.steps:
                    raise InputError(
                        f"the checkpoint was made in the middle of an epoch (after batch {state['step']}) with {name} "
                        f"{state[name]}, and now it is {now}: give the same, or resume from a checkpoint of an epoch's "
                        "end"
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
        loader = DataLoader(
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
