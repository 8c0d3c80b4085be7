"""Segmentation of the 500 validation images of Cityscapes (Cordts et al., CVPR 2016, arXiv 1604.01685)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from patchword.errors import UserError
from patchword.metrics.segmentation import IGNORED
from patchword.suites.segmentation import Segmentation, label_table

# The ids of the published label maps that are evaluated, in the order of cityscapes_classes.txt.
_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_LAST = 33


class Cityscapes(Segmentation):
    """Segmentation into the 19 classes of Cityscapes that are evaluated. Pixels of the other 15 labels are ignored.

    Args:
        root: The folder with `leftImg8bit/val` and `gtFine/val`, of leftImg8bit_trainvaltest.zip and
            gtFine_trainvaltest.zip.
    """

    data_set = "Cityscapes, val"
    name = "cityscapes_val"
    names_file = "cityscapes_classes.txt"
    training_free_side = 560

    def files(self) -> list[tuple[Path, Path]]:
        """Return all images with their published label maps (`*_gtFine_labelIds.png`)."""
        folder, ending = self.root / "gtFine/val", "_gtFine_labelIds.png"
        maps = sorted(folder.glob(f"*/*{ending}"))
        if not maps:
            raise UserError(
                f"there is no label map {folder / f'*/*{ending}'}: unpack gtFine_trainvaltest.zip in {self.root}"
            )
        images = self.image_folder("leftImg8bit/val")
        return [(images / m.parent.name / f"{m.name.removesuffix(ending)}_leftImg8bit.png", m) for m in maps]

    def labels(self) -> UInt8[np.ndarray, " 256"]:
        """Map the ids of the label maps to the classes; the other ids are ignored."""
        others = {value: IGNORED for value in range(_LAST + 1) if value not in _IDS}
        return label_table({value: label for label, value in enumerate(_IDS)}, others)
