"""Segmentation of the 1,449 validation images of Pascal VOC 2012 (Everingham et al., IJCV 2010)."""

from __future__ import annotations

from patchword.suites.background import Foreground, Listed, WithBackground


class _VOC(Listed):
    data_set = "Pascal VOC 2012, val"
    names_file = "voc_classes.txt"
    listing = ("ImageSets/Segmentation/val.txt", "of VOCtrainval_11-May-2012.tar")
    label_folder = "SegmentationClass"


class VOC20(_VOC, Foreground):
    """The 20 classes of Pascal VOC 2012, without background.

    Args:
        root: `VOCdevkit/VOC2012`, with `JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation/val.txt`.
    """

    key = "voc20_val"


class VOC21(_VOC, WithBackground):
    """The 20 classes of Pascal VOC 2012 and background.

    Args:
        root: `VOCdevkit/VOC2012`, with `JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation/val.txt`.
    """

    key = "voc21_val"
