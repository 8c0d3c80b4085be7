"""The instances of COCO, and phrases that name their categories.

COCO does not say which words of a caption name which instance. A phrase here is the name of a category, in singular or
plural, in a caption of an image with instances of this category. Its boxes and polygons are those of all of them. In an
image with a crowd of the category, whose outline is only rough, the name is no phrase.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from patchword.errors import UserError
from patchword.files.published import field, read_json

_PLURALS = {"person": "people", "knife": "knives", "mouse": "mice"}


@dataclass(frozen=True)
class Instance:
    """An object of an image.

    Attributes:
        category: The id of its category.
        area: Its area in pixels.
        box: Left, top, right, bottom in pixels, right and bottom exclusive.
        polygons: The outlines of its parts, each x0, y0, x1, y1, ... in pixels; empty for a crowd.
        crowd: For a crowd, the lengths of alternating runs of pixels outside and inside, column by column, from the top
            left; None for a single object.
        place: Where the file has the annotation, for messages.
    """

    category: int
    area: float
    box: tuple[float, float, float, float]
    polygons: tuple[tuple[float, ...], ...] = ()
    crowd: tuple[int, ...] | None = None
    place: str = ""

    def crowd_pixels(self, width: int, height: int, place: str) -> Bool[np.ndarray, "height width"]:
        """Return the pixels of a crowd in an image of this size.

        Raises:
            UserError: If the runs do not fill the image; the message begins with `place`.
        """
        runs = np.array(self.crowd or (), dtype=np.int64)
        if (runs < 0).any() or runs.sum() != width * height:
            raise UserError(f"{place}: the runs of a crowd do not fill its image: use the published file")
        return (np.arange(len(runs)) % 2 == 1).repeat(runs).reshape(width, height).T


@dataclass(frozen=True)
class Instances:
    """The annotations of `instances_*.json`.

    Attributes:
        names: The name of each category by its id, in ascending order.
        kinds: The supercategory of each category.
        of_image: The instances of each image by its id.
        records: The image records of the file with their places, for messages.
    """

    names: dict[int, str]
    kinds: dict[int, str]
    of_image: dict[int, list[Instance]]
    records: list[tuple[str, dict[str, Any]]]

    def images(self) -> Iterator[tuple[str, dict[str, Any], list[Instance]]]:
        """Yield the place, the record and the instances of each image."""
        for place, record in self.records:
            yield place, record, self.of_image.get(field(record, "id", int, place), [])

    @cached_property
    def _forms(self) -> dict[str, int]:
        """The category of each word or words that name one."""
        forms = {name + ending: number for number, name in self.names.items() for ending in ("", "s", "es")}
        return forms | {_PLURALS[name]: number for number, name in self.names.items() if name in _PLURALS}

    @cached_property
    def _named(self) -> re.Pattern[str]:
        """Matches names from the left: `teddy bear` is not a bear."""
        return re.compile(rf"\b(?:{'|'.join(map(re.escape, self._forms))})\b", re.IGNORECASE)

    def phrases(self, image: int, captions: list[str]) -> list[dict[str, Any]]:
        """Return the names of the image's categories in its captions, with all boxes and polygons of the category."""
        own: dict[int, list[Instance]] = {}
        for instance in self.of_image.get(image, []):
            own.setdefault(instance.category, []).append(instance)
        found = []
        for number, caption in enumerate(captions):
            for match in self._named.finditer(caption):
                category = self._forms[match.group().lower()]
                named = [one for one in own.get(category, []) if one.box[0] < one.box[2] and one.box[1] < one.box[3]]
                if named and all(one.crowd is None for one in named):
                    polygons = [[*polygon] for one in named for polygon in one.polygons]
                    boxes = {"boxes": [[*one.box] for one in named], "polygons": polygons}
                    span = {"caption": number, "start": match.start(), "end": match.end()}
                    found.append(span | boxes | {"type": self.kinds[category]})
        return found


def read(path: Path) -> Instances:
    """Read `instances_*.json`.

    Raises:
        UserError: If the file is not as published; the message names the record.
    """
    content = read_json(path)
    names, kinds = {}, {}
    for i, category in enumerate(field(content, "categories", list, str(path))):
        place = f"{path}, categories[{i}]"
        number = field(category, "id", int, place)
        names[number], kinds[number] = field(category, "name", str, place), field(category, "supercategory", str, place)
    found: dict[int, list[Instance]] = {}
    for i, annotation in enumerate(field(content, "annotations", list, str(path))):
        place = f"{path}, annotations[{i}]"
        instance = _instance(annotation, place)
        if instance.category not in names:
            raise UserError(f"{place}: {instance.category} is not the id of a category: use the published file")
        found.setdefault(field(annotation, "image_id", int, place), []).append(instance)
    images = [(f"{path}, images[{i}]", image) for i, image in enumerate(field(content, "images", list, str(path)))]
    return Instances(dict(sorted(names.items())), kinds, found, images)


def _instance(annotation: Any, place: str) -> Instance:
    category = field(annotation, "category_id", int, place)
    left, top, width, height = _numbers(field(annotation, "bbox", list, place), f"{place}: bbox", 4)
    area = _numbers([annotation.get("area")], f"{place}: area", 1)[0]
    outline, box = annotation.get("segmentation"), (left, top, left + width, top + height)
    if field(annotation, "iscrowd", int, place):
        runs = field(outline, "counts", list, f"{place}: segmentation")
        return Instance(category, area, box, crowd=tuple(runs), place=place)
    if not isinstance(outline, list):
        raise UserError(f"{place}: segmentation must be a list of polygons: use the published file")
    polygons = [_numbers(one, f"{place}: segmentation", None) for one in outline]
    outlines = tuple(one for one in polygons if len(one) >= 6)  # two points have no inside
    return Instance(category, area, box, outlines, place=place)


def _numbers(values: Any, place: str, count: int | None) -> tuple[float, ...]:
    numbers = isinstance(values, list) and all(isinstance(one, int | float) for one in values)
    if not numbers or (len(values) != count if count else len(values) % 2):
        wanted = count or "an even number of"
        raise UserError(f"{place} must be {wanted} numbers, not {str(values)[:60]}: use the published file")
    return tuple(float(one) for one in values)
