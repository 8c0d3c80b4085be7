"""Zero-shot detection of the 20 classes of Pascal VOC."""

from __future__ import annotations

from typing import Any, Literal

from patchword.suites.coco_detection import RULE
from patchword.suites.detection import Detection
from patchword.suites.objects import AnnotatedImages
from patchword.suites.voc_objects import voc_objects

_OWN_RULE = (
    "Mean over classes of the area under the precision, as VOC's development kit computes it from 2010 on, at an IoU of"
)


class VOCDetection(Detection):
    """Zero-shot detection of the 20 classes of Pascal VOC. Objects that are marked as difficult need not be found.

    Args:
        root: The folder `VOCdevkit/VOC<year>`, with `JPEGImages`, `Annotations` and `ImageSets/Main`.
        year: The year of the data set, which must be that of the annotations.
        split: The name of a list in `ImageSets/Main`, such as `val`, or `test` of 2007.
        options: Options of all suites of detection; see `Detection`.
    """

    rules = {"": ("coco", RULE), "voc_": ("voc", _OWN_RULE)}  # noqa: RUF012 - a ClassVar

    def __init__(self, root: str, year: Literal["2007", "2012"] = "2012", split: str = "val", **options: Any) -> None:
        super().__init__(root, **options)
        self.year = year
        self.split = split
        self.data_set = f"Pascal VOC {year}, objects of {split}"  # type: ignore[misc]

    @property
    def key(self) -> str:
        """`voc<year>_detection_` and the split."""
        return f"voc{self.year}_detection_{self.split}"

    def annotated(self) -> AnnotatedImages:
        """See `ObjectSuite.annotated`."""
        return voc_objects(self.root, self.image_folder("JPEGImages"), self.split, self.year)
