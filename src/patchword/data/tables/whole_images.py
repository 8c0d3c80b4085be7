"""The images of a training table, each with all texts that training chooses from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from patchword.data.batch import Sample, Skipped
from patchword.data.skipping import BrokenSample
from patchword.data.tables.table import TableSamples
from patchword.data.tables.texts import CaptionText


class WholeImages(TableSamples):
    """Each image of the rows once, with all texts that the reader makes for training. Nothing depends on the epoch.

    If several rows show the same image, the captions of all rows are read once in advance.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._own: dict[int, tuple[int, range]] = {}
        if self._further:
            for image, first in enumerate(self.numbers.tolist()):
                end = 0
                for number in self._numbers_of(first):
                    start, end = end, end + len(self._texts(number)[0])
                    self._own[number] = image, range(start, end)

    def image_of(self, index: int, number: int, captions: Sequence[int]) -> tuple[int, range]:
        """Return the index of a row's image, and which of the image's captions are the row's own.

        Args:
            index: The index of the row in the training data.
            number: The number of the row in the table.
            captions: The number of captions of each image.
        """
        return self._own[number] if self._own else (index, range(captions[index]))

    def _numbers_of(self, first: int) -> list[int]:
        """Return the numbers of all rows of the image whose first row is `first`."""
        return [first, *self._further.get(first, [])]

    def _texts(self, number: int) -> tuple[list[CaptionText], list[Skipped]]:
        """Return the texts of a row; if the row is broken, return no texts and the reason."""
        row = self.rows[number]
        key = self._key(row, number)
        try:
            return self.reader.training_texts(row, key), []
        except BrokenSample as error:
            return [], [Skipped(key, str(error))]

    def _sample(self, row: Any, number: int, key: str, random: Random) -> Sample:
        """Return the image with the captions of all its rows; a broken row is listed in `skipped`."""
        found = [self._texts(one) for one in self._numbers_of(number)]
        texts = [text for of_row, _ in found for text in of_row]
        skipped = [broken for _, of_row in found for broken in of_row]
        if not texts:
            raise BrokenSample(skipped[0].reason)
        return replace(self.reader.whole(row, texts, number, key), skipped=skipped)
