"""Segmentation of the 2,000 validation images of ADE20K (Zhou et al., CVPR 2017) in its scene parsing challenge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from patchword.errors import UserError
from patchword.metrics.segmentation import IGNORED
from patchword.suites.segmentation import Segmentation, label_table


class ADE20k(Segmentation):
    """Segmentation into the 150 classes of ADE20K. Pixels of other objects (0) are ignored.

    Args:
        root: The folder `ADEChallengeData2016`, with `images/validation` and `annotations/validation`.
    """

    data_set = "ADE20K (ADEChallengeData2016), validation"
    name = "ade20k_validation"
    names_file = "ade20k_classes.txt"

    def files(self) -> list[tuple[Path, Path]]:
        """Return all images with their label maps."""
        folder = self.root / "annotations/validation"
        maps = sorted(folder.glob("ADE_val_*.png"))
        if not maps:
            raise UserError(f"there is no label map in {folder}: set data.root to the folder ADEChallengeData2016")
        images = self.image_folder("images/validation", "validation")
        return [(images / f"{path.stem}.jpg", path) for path in maps]

    def labels(self) -> UInt8[np.ndarray, " 256"]:
        """Map the values from 1 on to the classes."""
        return label_table({i + 1: i for i in range(len(self.names))}, {0: IGNORED, 255: IGNORED})
