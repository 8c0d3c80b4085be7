"""Segmentation of Pascal VOC 2012 and Pascal Context, with the two ways in which papers treat the background.

Pascal VOC 2012 (Everingham et al., IJCV 2010) has 1,449 validation images. For Pascal Context (Mottaghi et al., CVPR
2014), MMSegmentation's `tools/dataset_converters/pascal_context.py` creates the list of images and the label maps, with
59 classes in alphabetical order from 1 on, from the published `trainval_merged.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import UInt8

from patchword.errors import UserError
from patchword.files.published import read_lines, require_file
from patchword.metrics.segmentation import IGNORED, NO_CLASS
from patchword.suites.segmentation import Segmentation, label_table


class Pascal(Segmentation):
    """Segmentation of the images in a list; see `Segmentation` for the options.

    In the label maps, 0 is background, and 1, 2, ... are the classes.

    Attributes:
        listing: The path of the list in `root`, and the source of the list.
        label_folder: The folder of the label maps in `root`.
    """

    listing: ClassVar[tuple[str, str]]
    label_folder: ClassVar[str]

    def files(self) -> list[tuple[Path, Path]]:
        """Return the images of the list with their label maps.

        Raises:
            UserError: If the list is missing, or if a line is not the plain name of an image.
        """
        path = require_file(self.root, *self.listing)
        names = read_lines(path)
        for number, name in names:
            if Path(name).name != name:
                raise UserError(f"{path}, line {number}: must be the name of an image, not {name!r}")
        images = self.image_folder("JPEGImages")
        return [(images / f"{name}.jpg", self.root / f"{self.label_folder}/{name}.png") for _, name in names]

    def labels(self) -> UInt8[np.ndarray, " 256"]:
        """Map the values of the label maps to the classes, and background as `background` specifies."""
        background = {"ignore": IGNORED, "count": NO_CLASS, "threshold": len(self.names)}[self.background]
        return label_table({i + 1: i for i in range(len(self.names))}, {0: background, 255: IGNORED})


class Foreground(Pascal):
    """Segmentation into object classes without a background class.

    Args:
        root: The folder of the data set.
        background: `ignore` excludes the pixels of the background; `count` counts every prediction on them as wrong.
        options: Options of all segmentation suites; see `Segmentation`.
    """

    def __init__(self, root: str, background: Literal["ignore", "count"] = "ignore", **options: Any) -> None:
        super().__init__(root, **options)
        self.background = background


class WithBackground(Pascal):
    """Segmentation into object classes and background, which is the last class.

    Args:
        root: The folder of the data set.
        threshold: A pixel whose best score is below the threshold is predicted as background.
        temperature: Compare the threshold with the softmax over the objects of scores / temperature; null compares it
            with the best score itself.
        options: Options of all segmentation suites; see `Segmentation`.

    Raises:
        UserError: If the temperature is 0 or less.
    """

    def __init__(self, root: str, threshold: float, temperature: float | None = None, **options: Any) -> None:
        super().__init__(root, **options)
        if temperature is not None and temperature <= 0:
            raise UserError(f"data.temperature must be above 0, or null, not {temperature}")
        self.background = "threshold"
        self.threshold = threshold
        self.temperature = temperature


class _VOC(Pascal):
    data_set = "Pascal VOC 2012, val"
    names_file = "voc_classes.txt"
    listing = ("ImageSets/Segmentation/val.txt", "of VOCtrainval_11-May-2012.tar")
    label_folder = "SegmentationClass"
    training_free_side = None


class VOC20(_VOC, Foreground):
    """Segmentation into the 20 classes of Pascal VOC 2012, without background.

    Args:
        root: The folder `VOCdevkit/VOC2012`, with `JPEGImages`, `SegmentationClass` and
            `ImageSets/Segmentation/val.txt`.
    """

    name = "voc20_val"


class VOC21(_VOC, WithBackground):
    """Segmentation into the 20 classes of Pascal VOC 2012 and background.

    Args:
        root: The folder `VOCdevkit/VOC2012`; see `VOC20`.
    """

    name = "voc21_val"


class _Context(Pascal):
    data_set = "Pascal Context, val"
    names_file = "context_classes.txt"
    listing = ("ImageSets/SegmentationContext/val.txt", "made by MMSegmentation's pascal_context.py")
    label_folder = "SegmentationClassContext"


class Context59(_Context, Foreground):
    """Segmentation into the 59 most frequent classes of Pascal Context, without background.

    Args:
        root: The folder `VOCdevkit/VOC2010`, with `JPEGImages`, `SegmentationClassContext` and
            `ImageSets/SegmentationContext/val.txt`.
    """

    name = "context59_val"


class Context60(_Context, WithBackground):
    """Segmentation into the 59 most frequent classes of Pascal Context and background.

    Args:
        root: The folder `VOCdevkit/VOC2010`; see `Context59`.
    """

    name = "context60_val"
