"""Samples from the rows of a table with random access."""

from __future__ import annotations

from dataclasses import replace
from os.path import normpath
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import Dataset

from patchword.data.batch import Sample, Skipped
from patchword.data.skipping import BrokenSample, all_broken, too_many
from patchword.data.tables.rows import RowReader
from patchword.data.tars.tar_index import TarRows

if TYPE_CHECKING:
    from datasets import Dataset as Rows


class TableSamples(Dataset[Sample]):
    """Rows as evaluation samples.

    A sample's id is the number of its row in the table. A random other sample replaces a broken one. Metrics count each
    id once, so the broken sample is left out.

    Args:
        rows: The table.
        numbers: The numbers of the rows to use. Shape [N].
        images: The image of each row, as numbers from 0; None if unknown, or if no image has two rows. Rows with the
            same image become one evaluation sample with all their captions. Shape [N].
        reader: Makes samples from rows.
        place: The name of the table in messages.
        seed: Seed of random choices.
        max_broken: The largest number of broken samples.
        mix: The number of tars whose samples are shuffled together in training.
    """

    def __init__(
        self,
        rows: Rows | TarRows,
        numbers: Int64[np.ndarray, " N"],
        images: Int64[np.ndarray, " N"] | None,
        reader: RowReader,
        place: str,
        seed: int,
        max_broken: int,
        mix: int = 8,
    ) -> None:
        self.rows = rows
        self.images = images
        self.reader = reader
        self.place = place
        self.seed = seed
        self.max_broken = max_broken
        self.mix = mix
        self._further: dict[int, list[int]] = {}
        self.numbers = self._merged(numbers, images)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Sample:
        return self._read(index, 0)

    def _merged(self, numbers: Int64[np.ndarray, " N"], images: Int64[np.ndarray, " N"] | None) -> Any:
        """Return the first row of each image and store the other rows of the image separately."""
        if images is None:
            return numbers
        first = np.sort(np.unique(images, return_index=True)[1])
        row_of = dict(zip(images[first].tolist(), numbers[first].tolist(), strict=True))
        for image, number in zip(images.tolist(), numbers.tolist(), strict=True):
            if number != row_of[image]:
                self._further.setdefault(row_of[image], []).append(number)
        rank_zero_info(
            f"{self.place}: {len(numbers)} rows show {len(first)} images; each is one sample with all captions"
        )
        return numbers[first]

    def _read(self, index: int, epoch: int) -> Sample:
        """Return the sample at `index` or a replacement; random choices depend only on seed, epoch and index."""
        index = range(len(self))[index]
        random = self._random(index, epoch)
        skipped: dict[str, Skipped] = {}
        while True:
            number = int(self.numbers[index])
            row = self.rows[number]
            key = self._key(row, number)
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

    def _random(self, index: int, epoch: int) -> Random:
        return Random(f"{self.seed} {epoch} {index}")

    def _key(self, row: Any, number: int) -> str:
        """Return the name of a row in messages."""
        name = self.reader.name(row)
        return f"{self.place}, row {number}" + (f" ({name})" if name else "")

    def _sample(self, row: Any, number: int, key: str, random: Random) -> Sample:
        return self.reader.evaluate([row, *(self.rows[i] for i in self._further.get(number, []))], number, key)


def shared_images(
    rows: Rows | TarRows, numbers: Int64[np.ndarray, " N"], reader: RowReader, place: str
) -> Int64[np.ndarray, " N"] | None:
    """Return the image of each row, as numbers from 0; None if rows do not name image files, or all images differ."""
    first = int(numbers[0]) if len(numbers) else 0
    if isinstance(rows, TarRows) or reader.path(rows[first], f"{place}, row {first}") is None:
        return None
    image = reader.columns.image
    of_image = rows if "{" in image or image not in rows.column_names else rows.select_columns([image])
    paths = [normpath(reader.address(of_image[i]) or f"{i}") for i in numbers.tolist()]
    found, images = np.unique(paths, return_inverse=True)
    return None if len(found) == len(paths) else images.astype(np.int64)
