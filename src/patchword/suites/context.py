"""Segmentation of the validation images of Pascal Context (Mottaghi et al., CVPR 2014).

Its label maps, with 59 classes in alphabetical order from 1 on, and its list of images are those that MMSegmentation's
`tools/dataset_converters/pascal_context.py` makes of the published `trainval_merged.json`.
"""

from __future__ import annotations

from patchword.suites.background import Foreground, Listed, WithBackground


class _Context(Listed):
    data_set = "Pascal Context, val"
    names_file = "context_classes.txt"
    listing = ("ImageSets/SegmentationContext/val.txt", "made by MMSegmentation's pascal_context.py")
    label_folder = "SegmentationClassContext"


class Context59(_Context, Foreground):
    """The 59 most frequent classes of Pascal Context, without background.

    Args:
        root: `VOCdevkit/VOC2010`, with `JPEGImages`, `SegmentationClassContext` and
            `ImageSets/SegmentationContext/val.txt`.
    """

    key = "context59_val"


class Context60(_Context, WithBackground):
    """The 59 most frequent classes of Pascal Context and background.

    Args:
        root: `VOCdevkit/VOC2010`, with `JPEGImages`, `SegmentationClassContext` and
            `ImageSets/SegmentationContext/val.txt`.
    """

    key = "context60_val"
