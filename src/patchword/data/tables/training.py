"""Training samples from the rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from random import Random
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from patchword.data.batch import Sample
from patchword.data.draws import Draw
from patchword.data.tables.order import apart, by_shard
from patchword.data.tables.rows import RowReader
from patchword.data.tables.table import TableSamples
from patchword.data.tables.whole_images import WholeImages
from patchword.data.tars.tar_index import TarRows


class TrainingTableSamples(TableSamples):
    """Rows as training samples; captions and crops depend on the epoch, but not on the number of processes.

    Two rows of the same image are not in the same batch, where each would be a negative of the other.
    """

    def __getitem__(self, index: Any) -> Sample:
        return self.at(*index) if isinstance(index, tuple) else self.at(index, 0)

    def order(self, generator: torch.Generator, batch: int) -> Int64[Tensor, " N"]:
        """Return all indices, shuffled, for batches of `batch` samples over all devices."""
        if self.images is not None:
            return apart(torch.from_numpy(self.images), batch, generator)
        if isinstance(self.rows, TarRows):
            return by_shard(torch.from_numpy(self.rows.starts), self.mix, generator)
        return torch.randperm(len(self), generator=generator)

    def _merged(self, numbers: Int64[np.ndarray, " N"], images: Int64[np.ndarray, " N"] | None) -> Any:
        return numbers

    def at(self, index: int, epoch: int) -> Sample:
        """Return the sample at `index` for the given epoch."""
        return self._read(index, epoch)

    @cached_property
    def whole(self) -> WholeImages:
        """Each image once, with all its captions or their sentences."""
        return self._images(replace(self.reader, join="none", swaps=None))

    @cached_property
    def texts(self) -> WholeImages:
        """Each image once, with all texts that training can see, and with their hard negatives."""
        return self._images(self.reader)

    @property
    def makes_texts(self) -> bool:
        """Whether training sees long texts that are joined from captions."""
        return self.reader.join != "none"

    def draw(self, index: int, epoch: int, ids: Sequence[int], captions: Sequence[int]) -> Draw:
        """Return the choice that makes the sample at `index` from the samples of `texts`; see `DrawsCaptions`."""
        index = range(len(self))[index]
        random = self._random(index, epoch)
        while True:
            number = int(self.numbers[index])
            image, own = self.texts.image_of(index, number, captions)
            if own and ids[image] == self.texts.numbers[image]:  # otherwise the row or its image is broken
                return Draw(number, image, [own[i] for i in self.reader.chosen(len(own), random)])
            index = random.randrange(len(self))

    def _images(self, reader: RowReader) -> WholeImages:
        return WholeImages(self.rows, self.numbers, self.images, reader, self.place, self.seed, self.max_broken)

    def _sample(self, row: Any, number: int, key: str, random: Random) -> Sample:
        return self.reader.train(row, number, key, random)
