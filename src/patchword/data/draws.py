"""Training samples as choices among the captions of images, which makes features of images and captions reusable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch.utils.data import Dataset

from patchword.data.batch import Sample


@dataclass(frozen=True)
class Draw:
    """A training sample as a choice among the captions of an image.

    Attributes:
        id: The id of the training sample.
        image: The index of its image in `DrawsCaptions.texts`.
        captions: The indices of its captions among the captions of the image, in order; an index can be repeated.
    """

    id: int
    image: int
    captions: list[int]


@runtime_checkable
class DrawsCaptions(Protocol):
    """A training data set whose samples differ between epochs only in the choice of captions."""

    @property
    def whole(self) -> Dataset[Sample]:
        """All images once, each with all its captions."""
        ...

    @property
    def texts(self) -> Dataset[Sample]:
        """The samples of `whole` with all texts that training can see, and with their hard negatives and boxes."""
        ...

    @property
    def makes_texts(self) -> bool:
        """Whether the captions of `texts` are not those of `whole`."""
        ...

    def draw(self, index: int, epoch: int, ids: Sequence[int], captions: Sequence[int]) -> Draw:
        """Return the choice that makes the sample at `index` in the given epoch from the samples of `texts`.

        Args:
            index: The index of a training sample.
            epoch: The epoch.
            ids: The id of each sample of `texts`, which tells whether it is the replacement of a broken sample.
            captions: The number of captions of each sample of `texts`.
        """
        ...
