"""Zero-shot detection of COCO's 80 categories."""

from __future__ import annotations

from typing import Any

from patchword.suites.coco_objects import coco_objects
from patchword.suites.detection import Detection
from patchword.suites.objects import AnnotatedImages

RULE = "Mean over classes of the average precision over 101 recalls, as COCO's evaluation computes it, at an IoU of"


class CocoDetection(Detection):
    """Zero-shot detection of COCO's 80 categories (Lin et al., ECCV 2014). Crowds need not be found.

    Args:
        root: The folder with `val2017/` (also in `images/`) and `annotations/instances_val2017.json`.
        split: The split; the names of the folder and of the file contain it.
        options: Options of all suites of detection; see `Detection`.
    """

    rules = {"": ("coco", RULE)}  # noqa: RUF012 - a ClassVar

    def __init__(self, root: str, split: str = "val2017", **options: Any) -> None:
        super().__init__(root, **options)
        self.split = split
        self.data_set = f"COCO, objects of {split}"  # type: ignore[misc]

    @property
    def key(self) -> str:
        """`coco_detection_` and the split."""
        return f"coco_detection_{self.split}"

    def annotated(self) -> AnnotatedImages:
        """See `ObjectSuite.annotated`."""
        return coco_objects(self.root, self.image_folder(self.split), self.split)
