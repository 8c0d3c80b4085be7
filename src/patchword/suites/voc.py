"""Segmentation of the 1,449 validation images of Pascal VOC 2012 (Everingham et al., IJCV 2010)."""

from __future__ import annotations

from pathlib import Path

from patchword.suites.background import Foreground, WithBackground
from patchword.suites.files import require_file
from patchword.suites.segmentation import image_list


class VOC20(Foreground):
    """The 20 classes of Pascal VOC 2012, without background; `root` is `VOCdevkit/VOC2012`."""

    data_set = "Pascal VOC 2012, val"
    key = "voc20_val"
    names_file = "voc_classes.txt"

    def files(self) -> list[tuple[Path, Path]]:
        """The images of `ImageSets/Segmentation/val.txt`."""
        return _files(self.root)


class VOC21(WithBackground):
    """The 20 classes of Pascal VOC 2012 and background; `root` is `VOCdevkit/VOC2012`."""

    data_set = "Pascal VOC 2012, val"
    key = "voc21_val"
    names_file = "voc_classes.txt"

    def files(self) -> list[tuple[Path, Path]]:
        """The images of `ImageSets/Segmentation/val.txt`."""
        return _files(self.root)


def _files(root: Path) -> list[tuple[Path, Path]]:
    names = image_list(require_file(root, "ImageSets/Segmentation/val.txt", "VOCtrainval_11-May-2012.tar"))
    return [(root / f"JPEGImages/{name}.jpg", root / f"SegmentationClass/{name}.png") for name in names]
