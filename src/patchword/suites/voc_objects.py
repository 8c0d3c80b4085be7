"""The objects of Pascal VOC (Everingham et al., IJCV 2010), from `Annotations` and `ImageSets/Main`."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree.ElementTree import Element

from patchword.errors import UserError
from patchword.files.plain_xml import read_xml
from patchword.files.published import read_lines, require_file
from patchword.suites.objects import AnnotatedImage, AnnotatedImages, Object, require_inside

_NAMES = Path(__file__).parent / "voc_classes.txt"


def voc_objects(root: Path, images: Path, split: str, year: str) -> AnnotatedImages:
    """The images of a split with their objects; difficult objects are ignored.

    Published boxes count pixels from 1 and include the last ones, so that a box is left - 1, top - 1, right, bottom.
    Parts of persons (heads, hands, feet) are no objects of their own.

    Args:
        root: The folder `VOCdevkit/VOC<year>`.
        images: The folder of the images.
        split: The name of a list in `ImageSets/Main`.
        year: The year that `folder` in the annotations must have.

    Raises:
        UserError: If a file is missing or not as published; the message names the file and the object.
    """
    listed = require_file(root, f"ImageSets/Main/{split}.txt", "a list of Pascal VOC")
    names = [name for _, name in read_lines(_NAMES)]
    classes = {name.replace(" ", ""): n for n, name in enumerate(names)}
    found = []
    for number, name in read_lines(listed, comments=False):
        if Path(name).name != name or len(name.split()) != 1:
            raise UserError(
                f"{listed}, line {number}: must be the name of an image, not {name!r}. Lists of single classes, such "
                "as aeroplane_val.txt, are no splits"
            )
        path = require_file(root, f"Annotations/{name}.xml", f"of {listed}, line {number}")
        found.append(_image(path, images / f"{name}.jpg", classes, f"VOC{year}"))
    return AnnotatedImages(names, found)


def _image(path: Path, image: Path, classes: dict[str, int], folder: str) -> AnnotatedImage:
    content = read_xml(path)
    if (own := content.findtext("folder", folder).strip()) != folder:
        raise UserError(f"{path} is of {own}, not of {folder}: set data.year or data.root")
    measures = content.find("size")
    size = (int(_number(measures, "width", str(path))), int(_number(measures, "height", str(path))))
    objects = []
    for n, one in enumerate(content.findall("object"), start=1):
        place = f"{path}, object {n}"
        name = one.findtext("name", "").strip()
        if name not in classes:
            raise UserError(
                f"{place}: {name!r} is none of VOC's classes ({', '.join(classes)}): use the published file"
            )
        corners = one.find("bndbox")
        left, top, right, bottom = (_number(corners, side, place) for side in ("xmin", "ymin", "xmax", "ymax"))
        box = require_inside((left - 1, top - 1, right, bottom), size, place)
        objects.append(Object(box, classes[name], bool(_number(one, "difficult", place))))
    return AnnotatedImage(image, str(path), size, tuple(objects))


def _number(element: Element | None, name: str, place: str) -> float:
    text = None if element is None else element.findtext(name)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{place}: {name} must be a number, not {text!r}: use the published file")
    return value
