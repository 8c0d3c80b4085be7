"""The rows of a table that can be read in any order, as samples."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Dataset

from patchword.data.batch import Sample, Skipped
from patchword.data.rows import BrokenSample, RowReader
from patchword.data.skipping import all_broken, too_many

if TYPE_CHECKING:
    from datasets import Dataset as Rows


class TableSamples(Dataset[Sample]):
    """Rows as samples of evaluation.

    A sample's id is the number of its row in the table. In the place of a broken sample stands another, drawn at
    random; metrics count it once, so that the broken one is left out.

    Args:
        rows: The table.
        numbers: The rows to take.
        reader: Makes samples of them.
        place: Names the table in messages.
        seed: Each seed draws in another way.
        max_broken: So many samples may be broken.
    """

    def __init__(
        self, rows: Rows, numbers: Int64[np.ndarray, " N"], reader: RowReader, place: str, seed: int, max_broken: int
    ) -> None:
        self.rows = rows
        self.numbers = numbers
        self.reader = reader
        self.place = place
        self.seed = seed
        self.max_broken = max_broken

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Sample:
        return self._read(index, 0)

    def _read(self, index: int, epoch: int) -> Sample:
        """The sample at `index`, or another one if it is broken; chance depends on seed, epoch and index alone."""
        random = Random(f"{self.seed} {epoch} {index}")
        skipped: dict[str, Skipped] = {}
        while True:
            number = int(self.numbers[index])
            row = self.rows[number]
            name = self.reader.name(row)
            key = f"{self.place}, row {number}" + (f" ({name})" if name else "")
            try:
                sample = self._sample(row, number, key, random)
            except BrokenSample as error:
                skipped[key] = Skipped(key, str(error))
                if len(skipped) > self.max_broken:
                    raise too_many([*skipped.values()], self.max_broken) from None
                if len(skipped) == len(self):
                    raise all_broken([*skipped.values()]) from None
                index = random.randrange(len(self))
            else:
                return replace(sample, skipped=[*skipped.values()]) if skipped else sample

    def _sample(self, row: Any, number: int, key: str, random: Random) -> Sample:
        return self.reader.evaluate(row, number, key)


class TrainingTableSamples(TableSamples):
    """Rows as samples of training: captions and crops differ from epoch to epoch, whatever the number of processes."""

    def __getitem__(self, index: Any) -> Sample:
        return self.at(*index) if isinstance(index, tuple) else self.at(index, 0)

    def at(self, index: int, epoch: int) -> Sample:
        """The sample at `index` as an epoch shows it."""
        return self._read(index, epoch)

    def _sample(self, row: Any, number: int, key: str, random: Random) -> Sample:
        return self.reader.train(row, number, key, random)
