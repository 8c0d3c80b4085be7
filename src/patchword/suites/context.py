"""Segmentation of the validation images of Pascal Context (Mottaghi et al., CVPR 2014).

Its label maps, with 59 classes in alphabetical order from 1 on, and its list of images are those that MMSegmentation's
`tools/dataset_converters/pascal_context.py` makes of the published `trainval_merged.json`.
"""

from __future__ import annotations

from pathlib import Path

from patchword.suites.background import Foreground, WithBackground
from patchword.suites.files import require_file
from patchword.suites.segmentation import image_list


class Context59(Foreground):
    """The 59 most frequent classes of Pascal Context, without background; `root` is `VOCdevkit/VOC2010`."""

    data_set = "Pascal Context, val"
    key = "context59_val"
    names_file = "context_classes.txt"

    def files(self) -> list[tuple[Path, Path]]:
        """The images of `ImageSets/SegmentationContext/val.txt`."""
        return _files(self.root)


class Context60(WithBackground):
    """The 59 most frequent classes of Pascal Context and background; `root` is `VOCdevkit/VOC2010`."""

    data_set = "Pascal Context, val"
    key = "context60_val"
    names_file = "context_classes.txt"

    def files(self) -> list[tuple[Path, Path]]:
        """The images of `ImageSets/SegmentationContext/val.txt`."""
        return _files(self.root)


def _files(root: Path) -> list[tuple[Path, Path]]:
    names = image_list(
        require_file(root, "ImageSets/SegmentationContext/val.txt", "made by MMSegmentation's pascal_context.py")
    )
    return [(root / f"JPEGImages/{name}.jpg", root / f"SegmentationClassContext/{name}.png") for name in names]
