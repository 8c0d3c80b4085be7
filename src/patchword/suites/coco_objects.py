"""The objects of COCO (Lin et al., ECCV 2014, arXiv 1405.0312), from `instances_*.json`."""

from __future__ import annotations

from pathlib import Path

from patchword.data.published import instances
from patchword.errors import UserError
from patchword.files.published import field, named_inside, require_file
from patchword.suites.objects import AnnotatedImage, AnnotatedImages, Object, require_inside


def coco_objects(root: Path, images: Path, split: str) -> AnnotatedImages:
    """The images of a split with their objects; crowds are ignored objects. Classes are in the order of their ids.

    Args:
        root: The folder with `annotations/instances_<split>.json`.
        images: The folder of the images.
        split: The split, such as `val2017`.

    Raises:
        UserError: If the file is missing or not as published; the message names the record.
    """
    path = require_file(root, f"annotations/instances_{split}.json", "of COCO's annotations_trainval*.zip")
    content = instances.read(path)
    position = {category: n for n, category in enumerate(content.names)}
    found, known = [], set()
    for place, image, own in content.images():
        known.add(image["id"])
        size = (field(image, "width", int, place), field(image, "height", int, place))
        objects = tuple(
            Object(require_inside(one.box, size, one.place), position[one.category], one.crowd is not None)
            for one in own
        )
        file = named_inside(images, field(image, "file_name", str, place), place)
        found.append(AnnotatedImage(file, place, size, objects))
    if orphans := sorted(content.of_image.keys() - known):
        place = content.of_image[orphans[0]][0].place
        raise UserError(f"{place}: image_id {orphans[0]} is not the id of an image of the file: use the published file")
    return AnnotatedImages([*content.names.values()], found)
