"""The two ways in which papers treat the background of a segmentation: it is no class, or it is one."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import UInt8

from patchword.errors import InputError
from patchword.metrics.segmentation import IGNORED, NO_CLASS
from patchword.suites.segmentation import Labelling, Segmentation, label_table


class Foreground(Segmentation):
    """Segmentation into objects alone; in label maps 0 is background and 1, 2, ... are the classes.

    Args:
        root: The folder of the data set.
        background: What pixels of the background are: they do not count (`ignore`), or every prediction on them is
            wrong (`count`).
        labelling: How patches become labels of pixels.
        image_size: Height and width of a window in pixels; null for what the encoder takes.
        batch_size: Windows that are encoded at a time.
        num_workers: Processes that read images; 0 reads them in the main process.
    """

    def __init__(
        self,
        root: str,
        background: Literal["ignore", "count"] = "ignore",
        labelling: Labelling = Labelling(),  # noqa: B008 - never modified
        image_size: int | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
    ) -> None:
        super().__init__(root, labelling, image_size, batch_size, num_workers)
        self.background = background

    def labels(self) -> UInt8[np.ndarray, " 256"]:
        """Background as `background` says."""
        return _from_one(len(self.names), IGNORED if self.background == "ignore" else NO_CLASS)


class WithBackground(Segmentation):
    """Segmentation into objects and background: what looks like none of the objects.

    Args:
        root: The folder of the data set.
        threshold: A pixel whose best score is below it is background.
        temperature: The threshold compares with the softmax over the objects of scores / temperature; null for the best
            score itself.
        labelling: How patches become labels of pixels.
        image_size: Height and width of a window in pixels; null for what the encoder takes.
        batch_size: Windows that are encoded at a time.
        num_workers: Processes that read images; 0 reads them in the main process.

    Raises:
        InputError: If the temperature is not above 0.
    """

    def __init__(
        self,
        root: str,
        threshold: float,
        temperature: float | None = None,
        labelling: Labelling = Labelling(),  # noqa: B008 - never modified
        image_size: int | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
    ) -> None:
        super().__init__(root, labelling, image_size, batch_size, num_workers)
        if temperature is not None and temperature <= 0:
            raise InputError(f"data.temperature must be above 0, or null, not {temperature}")
        self.background = "threshold"
        self.threshold = threshold
        self.temperature = temperature

    def labels(self) -> UInt8[np.ndarray, " 256"]:
        """Background is the last class."""
        return _from_one(len(self.names), len(self.names))


def _from_one(classes: int, background: int) -> UInt8[np.ndarray, " 256"]:
    return label_table({i + 1: i for i in range(classes)}, {0: background, 255: IGNORED})
