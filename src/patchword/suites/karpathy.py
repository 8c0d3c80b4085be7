"""The splits of COCO and Flickr30k by Karpathy & Fei-Fei (CVPR 2015, arXiv 1412.2306), in two published forms.

Karpathy's `dataset_*.json` has all splits. BLIP (Li et al., ICML 2022, arXiv 2201.12086) and many others distribute the
same images and captions as one list for each split, such as `coco_karpathy_test.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from patchword.data.published.karpathy import images
from patchword.errors import UserError
from patchword.files.published import field, named_inside, read_json, require_file
from patchword.suites.base import Suite
from patchword.suites.captioned import Captioned
from patchword.suites.pictures import PictureFile


def karpathy(
    suite: Suite, names: tuple[str, str], find: Callable[[Suite, str], Path], captions: int | None
) -> list[Captioned]:
    """Return the images of the split `test` with their captions, in the order of the file. The ids count them.

    Args:
        suite: The suite, which knows the folders.
        names: The names of Karpathy's file and of BLIP's file. The first of them that exists in the folder of the data
            set or in its `annotations/` or `annotation/` is read.
        find: Function that returns the path of an image from the suite and the image's name.
        captions: Use the first captions of each image, up to this number; None for all captions.

    Raises:
        UserError: If there is no such file or it is not as published, or if `captions` is less than 1.
    """
    places = [suite.root / folder / name for name in names for folder in ("", "annotations", "annotation")]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        what = f"of Karpathy's caption_datasets.zip), and no {names[1]} (of BLIP"
        path = require_file(suite.root, names[0], what)
    entries = _entries(path) if path.name == names[0] else _blip_entries(path)
    found = []
    for number, (place, name, texts) in enumerate(entries):
        file = find(suite, named_inside(suite.root, name, place).name)
        found.append(Captioned(number, (PictureFile(file, place),), some(texts, captions, place)))
    return found


def _entries(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    for position, image, texts in images(path, "test"):
        place = f"{path}, images[{position}]"
        yield place, field(image, "filename", str, place), texts


def _blip_entries(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} must be a list of images, as in BLIP: use the published file")
    for position, image in enumerate(content):
        place = f"{path}, [{position}]"
        texts = field(image, "caption", list, place)
        if not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"{place}: caption must be a list of texts, not {str(texts)[:60]!r}: use the published file"
            )
        yield place, field(image, "image", str, place), texts


def coco_image(suite: Suite, name: str) -> Path:
    """Return the path of an image of COCO 2014 from its name, such as `COCO_val2014_000000391895.jpg`.

    COCO 2017 has the same images under shorter names (`000000391895.jpg`), in `train2017/` and `val2017/`. They are
    used if the image is not in `val2014/`.
    """
    split, _, number = name.removeprefix("COCO_").rpartition("_")
    published = suite.image_folder(split or "val2014") / name
    renamed = [suite.image_folder(folder) / number for folder in ("val2017", "train2017")]
    return next((path for path in (published, *renamed) if path.is_file()), published)


def some(captions: list[str], number: int | None, place: str) -> tuple[str, ...]:
    """Return the first `number` of an image's captions; None for all captions.

    Raises:
        UserError: If the image has no captions, or if `number` is less than 1.
    """
    if number is not None and number < 1:
        raise UserError(f"captions_per_image must be 1 or more, or null for all captions, not {number}")
    if not captions:
        raise UserError(f"{place} has no captions: use the published file")
    return tuple(captions[:number])
