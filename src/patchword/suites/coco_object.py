"""Segmentation of COCO's images into the categories of their instances, which papers call COCO-Object."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from torch.utils.data import Dataset

from patchword.data.polygons import filled
from patchword.data.published import instances
from patchword.errors import UserError
from patchword.files.published import field, require_file
from patchword.metrics.segmentation import IGNORED
from patchword.suites.coco_stuff import FIRST_STUFF, MISSING, published_maps
from patchword.suites.files import Framing
from patchword.suites.segmentation import Segmentation, SegmentationBatch, label_table, read_png

_CROWD = 255


@dataclass(frozen=True)
class Outlines:
    """The instances of an image, from which its label map is drawn.

    Attributes:
        place: The image, for messages.
        size: The width and height of the image.
        objects: The value and the annotation of each instance.
    """

    place: str
    size: tuple[int, int]
    objects: tuple[tuple[int, instances.Instance], ...]

    def __str__(self) -> str:
        return self.place


class CocoObject(Segmentation):
    """Segmentation into COCO's 80 categories, with or without background as a class.

    Where instances overlap, the smaller one is above the larger one. Pixels of crowds are ignored. The label maps of
    COCO-Stuff differ from these.

    Args:
        root: The folder with `val2017/` (also in `images/`), and with `annotations/instances_val2017.json` or, from
            `stuffthingmaps_trainval2017.zip`, `annotations/val2017/`.
        split: The split; the names of the folder and of the file contain it.
        masks: The label maps. `instances` draws them from the outlines of instances. `stuffthingmaps` takes those of
            COCO-Stuff, in `annotations/val2017/`, and everything but their things is background, as in training-free
            methods.
        threshold: A pixel whose best score is below the threshold is predicted as background, which is then a class.
            null ignores the pixels outside of all instances.
        temperature: Compare the threshold with the softmax over the categories of scores / temperature; null compares
            it with the best score itself.
        options: Options of all segmentation suites; see `Segmentation`.

    Raises:
        UserError: If the temperature is 0 or less.
    """

    names_file = "coco_object_classes.txt"

    def __init__(
        self,
        root: str,
        split: str = "val2017",
        masks: Literal["instances", "stuffthingmaps"] = "instances",
        threshold: float | None = None,
        temperature: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if temperature is not None and temperature <= 0:
            raise UserError(f"data.temperature must be above 0, or null, not {temperature}")
        self.split = split
        self.masks = masks
        self.data_set = f"COCO-Object, {split}"  # type: ignore[misc]
        if threshold is not None:
            self.background = "threshold"
            self.threshold = threshold
            self.temperature = temperature

    @property
    def name(self) -> str:  # type: ignore[override]
        """`coco_object_` and the split; with `_background` if background is a class."""
        return f"coco_object_{self.split}" + ("_background" if self.background == "threshold" else "")

    def protocol(self) -> dict[str, Any]:
        """See `Suite.protocol`. `masks` was added later and is left out while it has its default."""
        found = super().protocol()
        return {name: value for name, value in found.items() if (name, value) != ("masks", "instances")}

    def read(self, framing: Framing) -> Dataset[SegmentationBatch]:
        """List the images; see `Suite.read`.

        Raises:
            UserError: If the label maps are not those of the protocol `training_free`, if it is chosen.
        """
        if self.labeling.protocol == "training_free" and (
            self.masks != "stuffthingmaps" or self.background == "ignore"
        ):
            raise UserError(
                "data.labeling.protocol training_free has data.masks stuffthingmaps and data.threshold 0.1 for "
                "COCO-Object: set both"
            )
        return super().read(framing)

    def files(self) -> list[tuple[Path, Any]]:
        """Return the images with their instances or with the label maps of COCO-Stuff.

        Raises:
            UserError: If the file is missing or not as published.
        """
        if self.masks == "stuffthingmaps":
            return published_maps(self, self.split)
        path = require_file(self.root, f"annotations/instances_{self.split}.json", "of annotations_trainval2017.zip")
        content = instances.read(path)
        if len(content.names) != (classes := len(self.names)):
            raise UserError(f"{path} has {len(content.names)} categories, not {classes}: use the published file")
        values = {category: value for value, category in enumerate(content.names, start=1)}
        images, found = self.image_folder(self.split), []
        for place, image, own in content.images():
            size = (field(image, "width", int, place), field(image, "height", int, place))
            objects = tuple((values[one.category], one) for one in sorted(own, key=lambda one: -one.area))
            name = field(image, "file_name", str, place)
            found.append((images / name, Outlines(place, size, objects)))
        return found

    @staticmethod
    def label_map(source: Outlines | Path) -> UInt8[np.ndarray, "H W2"]:
        """Draw the instances: 0 is background, 1, 2, ... are the categories, 255 is a crowd; or read a label map."""
        if isinstance(source, Path):
            return read_png(source)
        width, height = source.size
        values = np.zeros((height, width), dtype=np.uint8)
        for value, instance in source.objects:
            if instance.crowd is None:
                values[filled(instance.polygons, width, height)] = value
        for _, instance in source.objects:
            if instance.crowd is not None:
                values[instance.crowd_pixels(width, height, source.place) & (values == 0)] = _CROWD
        return values

    def labels(self) -> UInt8[np.ndarray, " 256"]:
        """Map the values to the classes; background is the last class, or ignored."""
        background = len(self.names) if self.background == "threshold" else IGNORED
        if self.masks == "stuffthingmaps":
            things = [value for value in range(FIRST_STUFF) if value not in MISSING]
            others = {value: background for value in (*range(182), 255) if value not in things}
            return label_table({value: label for label, value in enumerate(things)}, others)
        classes = {value: value - 1 for value in range(1, len(self.names) + 1)}
        return label_table(classes, {0: background, _CROWD: IGNORED})
