"""The two ways in which papers treat the background of a segmentation: it is no class, or it is one.

Both are of Pascal: a list of images, and label maps in which 0 is background and 1, 2, ... are the classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import UInt8

from patchword.errors import InputError
from patchword.metrics.segmentation import IGNORED, NO_CLASS
from patchword.suites.files import require_file
from patchword.suites.prompts import read_lines
from patchword.suites.segmentation import Segmentation, label_table


class Listed(Segmentation):
    """Segmentation of the images of a list; see `Segmentation` for the options.

    Attributes:
        listing: The list in `root`, and where it comes from.
        label_folder: The folder of the label maps.
    """

    listing: ClassVar[tuple[str, str]]
    label_folder: ClassVar[str]

    def files(self) -> list[tuple[Path, Path]]:
        """The images of the list.

        Raises:
            InputError: If the list is missing, or a line is no plain name.
        """
        path = require_file(self.root, *self.listing)
        names = read_lines(path)
        for number, name in names:
            if Path(name).name != name:
                raise InputError(f"{path}, line {number}: must be the name of an image, not {name!r}")
        return [
            (self.root / f"JPEGImages/{name}.jpg", self.root / f"{self.label_folder}/{name}.png") for _, name in names
        ]


class Foreground(Segmentation):
    """Segmentation into objects alone.

    Args:
        root: The folder of the data set.
        background: What pixels of the background are: they do not count (`ignore`), or every prediction on them is
            wrong (`count`).
        options: What every segmentation takes; see `Segmentation`.
    """

    def __init__(self, root: str, background: Literal["ignore", "count"] = "ignore", **options: Any) -> None:
        super().__init__(root, **options)
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
        options: What every segmentation takes; see `Segmentation`.

    Raises:
        InputError: If the temperature is not above 0.
    """

    def __init__(self, root: str, threshold: float, temperature: float | None = None, **options: Any) -> None:
        super().__init__(root, **options)
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
