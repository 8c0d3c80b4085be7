"""Segmentation of the 5,000 validation images of COCO-Stuff (Caesar et al., CVPR 2018)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from patchword.errors import UserError
from patchword.metrics.segmentation import IGNORED
from patchword.suites.segmentation import Segmentation, label_table

# Those of COCO's 91 things that no image shows: street sign, hat, shoe, eye glasses, plate, mirror, window, desk, door,
# blender, hair brush. The values are the ids of the published labels.txt minus one.
MISSING = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
FIRST_STUFF = 91  # the values below are things


def published_maps(suite: Segmentation, split: str) -> list[tuple[Path, Path]]:
    """Return all images of a split with their published label maps; other files in the folder are ignored.

    Raises:
        UserError: If there are no label maps.
    """
    folder = suite.root / f"annotations/{split}"
    maps = sorted(path for path in folder.glob("*.png") if path.stem.isdigit())
    if not maps:
        raise UserError(f"there is no label map in {folder}: unpack stuffthingmaps_trainval2017.zip in {folder.parent}")
    images = suite.image_folder(f"images/{split}", split)
    return [(images / f"{path.stem}.jpg", path) for path in maps]


class CocoStuff(Segmentation):
    """Segmentation into the 171 classes of COCO-Stuff: 80 things and 91 stuff classes.

    Args:
        root: The folder with `images/val2017` and, from `stuffthingmaps_trainval2017.zip`, `annotations/val2017`.
    """

    data_set = "COCO-Stuff, val2017"
    name = "coco_stuff_val2017"
    names_file = "coco_stuff_classes.txt"

    def files(self) -> list[tuple[Path, Path]]:
        """Return all images with their published label maps; other files in the folder are ignored."""
        return published_maps(self, "val2017")

    def labels(self) -> UInt8[np.ndarray, " 256"]:
        """Map the values of the label maps to the classes; unlabeled pixels (255) are ignored."""
        values = [value for value in range(182) if value not in MISSING]
        return label_table({value: label for label, value in enumerate(values)}, {255: IGNORED})
